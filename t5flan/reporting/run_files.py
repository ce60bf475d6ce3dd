"""Files in the folder of a run, of which any may be missing or damaged."""

import json
from pathlib import Path
from typing import Any

from t5flan.errors import UserError
from t5flan.files import read_object

_LONGEST_LINE = 2**24  # bytes


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or {} if there is none."""
    try:
        return read_object(path)
    except UserError:
        return {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines that are JSON objects; skips others, such as a line cut off when the process was killed."""
    if not path.is_file():
        return []
    rows = []
    with path.open('rb') as file:
        for line in iter(lambda: file.readline(_LONGEST_LINE), b''):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and (path.name != 'metrics.jsonl' or 'step' in row):
                rows.append(row)
    return rows


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics.jsonl that have a step, with those of their values that are numbers."""
    rows = ({name: value for name, value in row.items() if is_number(value)} for row in read_lines(path))
    return [row for row in rows if 'step' in row]


def is_number(value: Any) -> bool:
    """Whether a value is a number that can be drawn; NaN, the loss of a run that failed, is one."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) > 1e300
