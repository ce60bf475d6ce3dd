"""Tasks to start from: an instruction and its instances, in Self-Instruct's format.

    {"instruction": "Give a word that means the opposite.", "instances": [{"input": "generous", "output": "stingy"}],
     "is_classification": false}

`seeds.jsonl` has 26, written for t5flan, of the kinds of Natural Instructions (arXiv:2204.07705).
"""

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t5flan.data.records.paths import match_files
from t5flan.data.records.rows import read_rows
from t5flan.errors import UserError

SEEDS = Path(__file__).parent / 'seeds.jsonl'
PROMPTS: Mapping[str, Any] = json.loads((Path(__file__).parent / 'prompts.json').read_text('utf-8'))
"""Command -> name -> wording, with {fields}."""


@dataclasses.dataclass(frozen=True)
class Instance:
    """An input, which may be empty, and an output."""

    input: str
    output: str


@dataclasses.dataclass(frozen=True)
class Task:
    """An instruction with its instances.

    Attributes:
        id: its name in the origin of rows made from it.
        is_classification: whether the outputs are a few fixed labels.
    """

    id: str
    instruction: str
    instances: tuple[Instance, ...]
    is_classification: bool = False

    def row(self, origin: Mapping[str, Any]) -> dict[str, Any]:
        """A row that DataConfig.chat reads, with the origin of the task."""
        fields = dataclasses.asdict(self)
        return fields | {'instances': list(fields['instances']), 'origin': dict(origin)}


def read_seeds(pattern: str | None = None) -> list[Task]:
    """The tasks of files in any format: rows of instruction and instances, or of instruction, input and output.

    Args:
        pattern: a file or glob; None is the packaged seeds.

    Raises:
        UserError: a file is missing or has no rows, or a row is no task; names file and row.
    """
    paths = [str(SEEDS)] if pattern is None else match_files(pattern, '--seeds')
    tasks = [_task(row.value, row.where, number) for path in paths for number, row in enumerate(read_rows(path), 1)]
    if not tasks:
        raise UserError(f'{pattern} has no rows, expected tasks with an instruction and instances. Set --seeds.')
    return tasks


def _task(row: Any, where: str, number: int) -> Task:
    if not isinstance(row, Mapping):
        raise UserError(f'{where}: is {type(row).__name__}, expected an object with instruction and instances. Fix it.')
    instruction = row.get('instruction')
    if not isinstance(instruction, str) or not instruction.strip():
        names = ', '.join(map(str, row)) or 'none'
        raise UserError(f"{where}: no text in field 'instruction' (the fields are {names}). Fix the file or --seeds.")
    found = row.get('instances', [row] if 'output' in row else None)
    if not isinstance(found, list) or not found:
        raise UserError(f"{where}: 'instances' is missing or empty, expected a list of input and output. Fix the file.")
    return Task(
        str(row.get('id') or f'seed_{number}'),
        instruction.strip(),
        tuple(_instance(one, f'{where} instance {place}') for place, one in enumerate(found, 1)),
        bool(row.get('is_classification')),
    )


def _instance(one: Any, where: str) -> Instance:
    given, output = (one.get('input') or '', one.get('output')) if isinstance(one, Mapping) else ('', None)
    if not isinstance(given, str) or not isinstance(output, str) or not output.strip():
        raise UserError(f"{where}: expected an object with text in 'output' and 'input'. Fix the file.")
    return Instance(given.strip(), output.strip())


def request(instruction: str, given: str = '') -> str:
    """The prompt of an instance, as in rows of DataConfig.chat."""
    return f'{instruction}\n\n{given}' if given else instruction


def generator(*place: Any) -> random.Random:
    """Random numbers that depend on a place, such as (seed, stage, round, number), and on nothing else."""
    return random.Random('/'.join(map(str, place)))


def chosen(tasks: Sequence[Task], count: int, *place: Any) -> list[Task]:
    """At most `count` different tasks in random order."""
    return generator(*place).sample(list(tasks), min(count, len(tasks)))
