"""Files in the folder of a run, of which any may be missing or damaged."""

import json
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or {} if there is none."""
    try:
        value = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines that are JSON objects; skips others, such as a line cut off when the process was killed."""
    try:
        lines = path.read_text(encoding='utf-8').split('\n')
    except (OSError, ValueError):
        return []
    rows = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and (path.name != 'metrics.jsonl' or 'step' in row):
            rows.append(row)
    return rows
