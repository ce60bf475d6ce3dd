"""Results of checkpoints in JSON files, from which an evaluation resumes.

One step is an object: {"checkpoint": ..., "settings": ..., "step": 100, "tasks": {...}}. Several are a list:
{"checkpoint": ..., "settings": ..., "steps": [{"step": 100, "tasks": {...}}, {"step": 200, "tasks": {...}}]}.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5flan.errors import UserError
from t5flan.files import to_path, write_json, write_whole

Row = dict[str, Any]


class StepResults:
    """The results of the steps of one run with the same settings, in a file that grows by whole steps.

    Args:
        path: the file; None keeps nothing.
        header: what all steps have in common: checkpoint, settings and so on, as JSON.
        several: whether the file holds several steps. One that does already goes on to.

    Raises:
        UserError: the file has several steps, or is to have them, and its results are of other settings.
    """

    def __init__(self, path: str | Path | None, header: Mapping[str, Any], *, several: bool) -> None:
        self._path = None if path is None else to_path(path)
        self._header = json.loads(json.dumps(header))
        self._entries: dict[int, Row] = {}
        found = self._read()
        self._several = several or 'steps' in found
        entries = found.get('steps', [found] if 'step' in found else [])
        differing = next((name for name in self._header if found.get(name) != self._header[name]), None)
        if entries and differing is None:
            names = {*self._header, 'steps'}
            self._entries = {
                entry['step']: {name: value for name, value in entry.items() if name not in names} for entry in entries
            }
        elif entries and self._several:
            raise UserError(
                f'{path} has results of another {_where(found, self._header)}. Set another file, or remove it.'
            )

    def _read(self) -> Row:
        try:
            found = json.loads(self._path.read_text(encoding='utf-8')) if self._path else {}
        except (FileNotFoundError, ValueError):  # another error must not lead to a file without the older results
            return {}
        return found if isinstance(found, dict) else {}

    def known(self, step: int, saved: int | None) -> Row:
        """The result of a step so far, {} if there is none, or of a checkpoint saved at another time."""
        entry = self._entries.get(step, {})
        return entry if saved is not None and entry.get('saved') == saved else {}

    def others(self, step: int) -> list[Row]:
        """The results of other steps that stay in the file, by step."""
        return [self._entries[one] for one in sorted(self._entries) if one != step] if self._several else []

    def add(self, entry: Mapping[str, Any]) -> None:
        """Sets the result of `entry['step']` and writes the file, whole or not at all."""
        entry = {name: value for name, value in entry.items() if name not in self._header}
        others = {one['step']: one for one in self.others(entry['step'])}
        self._entries = others | {entry['step']: entry}
        if self._path is not None:
            every = [self._entries[step] for step in sorted(self._entries)]
            content = {'steps': every} if self._several else entry
            write_json(self._path, self._header | content, indent=2)


def _where(found: Mapping[str, Any], header: Mapping[str, Any], prefix: str = '') -> str:
    """Names the first value that differs, for an error message."""
    name = next(name for name in {**header, **found} if found.get(name) != header.get(name))
    before, now = found.get(name), header.get(name)
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        return _where(before, now, f'{prefix}{name}.')
    return f'{prefix}{name} ({before}, and now {now})'


class StepRows:
    """The rows of predictions of steps and tasks, in one .jsonl file.

    Args:
        path: the file; None keeps nothing.

    Raises:
        UserError: the file has something else, which is kept from harm.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._path = None if path is None else to_path(path)
        self._rows: dict[tuple[int, str], list[Row]] = {}
        for row in self._read():
            if not (isinstance(row, dict) and isinstance(row.get('step'), int) and isinstance(row.get('task'), str)):
                raise UserError(f'{path} has rows that are not predictions. Set another --predictions, or remove it.')
            self._rows.setdefault((row['step'], row['task']), []).append(row)

    def _read(self) -> Iterable[Any]:
        try:
            lines = self._path.read_text(encoding='utf-8').split('\n') if self._path else []
            return [json.loads(line) for line in lines if line]
        except FileNotFoundError:
            return []
        except ValueError:
            raise UserError(f'{self._path} is not a file of predictions. Set another, or remove it.') from None

    def has(self, step: int, task: str, count: int) -> bool:
        """Whether all `count` rows of a task are there, or none are kept at all."""
        return self._path is None or len(self._rows.get((step, task), [])) == count

    def add(self, rows: Sequence[Row], kept: Iterable[tuple[int, str]]) -> None:
        """Adds rows, and writes the file with them and those of the steps and tasks in `kept`."""
        if self._path is None:
            return
        new: dict[tuple[int, str], list[Row]] = {}
        for row in rows:
            new.setdefault((row['step'], row['task']), []).append(row)
        self._rows |= new
        self._rows = {key: self._rows[key] for key in dict.fromkeys([*kept, *new]) if key in self._rows}
        lines = [json.dumps(row, ensure_ascii=False) + '\n' for group in self._rows.values() for row in group]
        write_whole(self._path, ''.join(lines).encode('utf-8', 'backslashreplace'))
