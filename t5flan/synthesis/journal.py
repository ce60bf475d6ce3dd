"""The journal of a run that asks a model: what the model answered, written as it goes, so that a killed run resumes.

    with open_run(Path('new.jsonl'), settings) as journal:
        texts = journal.recall('round 0', lambda: model.generate(prompts))   # asks the model once, then remembers
        ...
        journal.finish(rows, provenance)

A run is a function of its settings and of the model's answers. Each answer is a line of `OUTPUT.journal`. A run that
starts again makes the same requests in the same order, gets those answers from the journal, and asks the model from
the first missing one on. So the finished file does not depend on where a run was killed. OUTPUT and
OUTPUT.provenance.json appear at the end, whole; then the journal is removed.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5flan.errors import UserError
from t5flan.files import locks, open_append, size_of, write_json, write_whole

PROVENANCE = '.provenance.json'
JOURNAL = '.journal'
Row = dict[str, Any]


def provenance_path(output: Path) -> Path:
    """OUTPUT.provenance.json."""
    return output.with_name(output.name + PROVENANCE)


def journal_path(output: Path) -> Path:
    """OUTPUT.journal."""
    return output.with_name(output.name + JOURNAL)


def fingerprint(value: Any) -> str:
    """A hash of anything that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def finished(output: Path, settings: Mapping[str, Any]) -> Row | None:
    """The provenance of an output that a run with these settings has finished, or None if there is no such file.

    Raises:
        UserError: the output is of another run.
    """
    if not output.exists() or journal_path(output).exists():
        return None
    try:
        known = json.loads(provenance_path(output).read_text('utf-8'))
    except (OSError, ValueError):
        known = None
    if not isinstance(known, dict):
        raise UserError(f'{output} exists and was not written by this command. Remove it, or set another --output.')
    _require_same(output, known, settings)
    return known


def _require_same(path: Path, known: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raises a UserError that names the first setting in which two runs differ."""
    for name, value in json.loads(json.dumps(dict(settings))).items():
        if known.get(name) != value:
            raise UserError(
                f'{path} is of another run: {name}={known.get(name)!r:.60}, now {value!r:.60}. Set the former, '
                'remove the file, or set another --output.'
            )


@contextlib.contextmanager
def open_run(output: Path, settings: Mapping[str, Any]) -> Iterator['Journal']:
    """Opens the journal of a new or killed run. Only one process at a time may do so.

    Args:
        settings: what decides the model's answers.

    Raises:
        UserError: the journal is of a run with other settings or is damaged, or another process writes it.
    """
    with locks.hold_file(output, '--output'), contextlib.ExitStack() as stack:
        yield Journal(output, stack, settings)


class Journal:
    """Answers of a model by request, in the order of the requests; see the module.

    Attributes:
        recalled: number of answers that an earlier run wrote.
        asked: number of answers that this run wrote.
    """

    def __init__(self, output: Path, stack: contextlib.ExitStack, settings: Mapping[str, Any]) -> None:
        self._output, self._path = output, journal_path(output)
        self.recalled = self.asked = 0
        self._known = whole = 0  # bytes of the answers of the earlier run that are not recalled yet
        if size_of(self._path):
            with self._path.open('rb') as file:
                self._known = whole = sum(len(line) for line in file if line.endswith(b'\n'))
            self._read = stack.enter_context(self._path.open('rb'))
        self._file = open_append(self._path, whole)  # without the incomplete line of a killed run
        stack.callback(self._file.close)
        if whole == 0:
            self._append({'settings': dict(settings)})
        else:
            head = self._next()
            if not isinstance(head.get('settings'), dict):
                raise self._damaged()
            _require_same(self._path, head['settings'], settings)

    def recall(self, key: str, ask: Callable[[], Any]) -> Any:
        """The answer to the next request: that of the journal, or what `ask` returns, once it is written.

        Args:
            key: identifies the request.
            ask: returns anything that JSON can hold.

        Raises:
            UserError: the journal has the answer to another request.
        """
        if self._known:
            entry = self._next()
            if entry.get('key') != key or 'value' not in entry:
                raise self._damaged()
            self.recalled += 1
            return entry['value']
        entry = {'key': key, 'value': ask()}
        self._append(entry)
        self.asked += 1
        return json.loads(json.dumps(entry['value']))  # as a resumed run reads it

    def finish(self, lines: Sequence[str], provenance: Mapping[str, Any]) -> None:
        """Writes the output and its provenance, each whole or not at all, and removes the journal."""
        write_whole(self._output, ''.join(f'{line}\n' for line in lines).encode('utf-8', 'replace'))
        write_json(provenance_path(self._output), provenance, indent=2)
        self._file.close()
        self._path.unlink(missing_ok=True)

    def discard(self) -> None:
        """Removes a journal that nothing was asked for."""
        if not self.recalled + self.asked:
            self._file.close()
            self._path.unlink(missing_ok=True)

    def _next(self) -> Row:
        line = self._read.readline()
        self._known -= len(line)
        try:
            entry = json.loads(line)
        except ValueError:
            raise self._damaged() from None
        if not isinstance(entry, dict):
            raise self._damaged()
        return entry

    def _append(self, entry: Row) -> None:
        self._file.write(json.dumps(entry).encode() + b'\n')  # ASCII: half a character is escaped

    def _damaged(self) -> UserError:
        return UserError(f'{self._path} is damaged, or of another version. Remove it to start over.')
