"""Unknown pieces: what a vocabulary cannot spell becomes the unknown id, and its text is lost without a word."""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from t5flan.data.config import DataConfig
from t5flan.data.mixtures.readers import Reader
from t5flan.data.mixtures.stages import Plan
from t5flan.data.vocabulary.vocabulary import Vocabulary

SAMPLE, MOST_TASKS = 200, 50
"""Examples measured of each task, and tasks measured, those with the highest rates first."""
_SHOWN = 8


class Unknown(NamedTuple):
    """What a sample of a task's examples loses."""

    tokens: int
    unknown: int
    characters: Mapping[str, int]
    """Character without a piece -> how often it occurs, the most frequent first."""


def measure_unknown(task: Any, config: DataConfig, vocabulary: Vocabulary, sample: int = SAMPLE) -> Unknown:
    """Counts the unknown ids of a task's first `sample` examples, and the characters they stand for."""
    if 'inputs' not in task.output_features:  # any task can be measured, whatever the format
        config = dataclasses.replace(config, format='causal_lm')
    reader = Reader(task, dataclasses.replace(config, too_long='trim'), vocabulary, epochs=1)
    tokens = unknown = examples = 0
    characters: collections.Counter[str] = collections.Counter()
    while examples < sample and (ready := reader.peek()) is not None:
        reader.pop()
        examples += 1
        ids = [ready.example[name] for name in ('inputs', 'targets') if name in ready.example]
        found = sum(int((one == vocabulary.unk_id).sum()) for one in ids)
        tokens, unknown = tokens + sum(map(len, ids)), unknown + found
        if found:
            for text in _texts(ready.example):
                characters.update(text)
    if unknown and not characters:  # raw text is not kept with its tokens
        for text in _record_texts(task, config.split, sample):
            characters.update(text)
    lost = {char: count for char, count in characters.most_common() if vocabulary.unk_id in vocabulary.encode(char)}
    return Unknown(tokens, unknown, lost)


def _texts(example: Mapping[str, Any]) -> Iterator[str]:
    for name in ('inputs_pretokenized', 'targets_pretokenized'):
        if isinstance(text := example.get(name), str):
            yield text


def _record_texts(task: Any, split: str, sample: int) -> Iterator[str]:
    from t5flan.data.records.sources import IndexedSource

    if isinstance(task.source, IndexedSource):
        records = task.source.records(split)
        for number in range(min(sample, len(records))):
            yield from (value for value in records[number].values() if isinstance(value, str))


def unknown_lines(config: DataConfig, vocabulary: Vocabulary, plan: Plan) -> list[str]:
    """Lines to print: for each task of a run that loses text, the share of unknown pieces and the lost characters."""
    if not vocabulary.loses_text:
        return []
    rates = plan.rates.max(axis=0)
    order = sorted(range(len(plan.tasks)), key=lambda number: -rates[number])[:MOST_TASKS]
    tasks = [plan.tasks[number] for number in order]
    lines = [line for task in tasks for line in unknown_line(task.name, measure_unknown(task, config, vocabulary))]
    checked = f'the first {SAMPLE} examples of {len(tasks)} of {len(plan.tasks)} tasks'
    if not lines:
        return [f'unknown pieces: none in {checked}']
    return lines + ([f'unknown pieces: measured in {checked}'] if len(tasks) < len(plan.tasks) else [])


def unknown_line(task: str, found: Unknown) -> Sequence[str]:
    """The line of a task; none if nothing is lost."""
    if not found.unknown:
        return []
    shown = ', '.join(f'{char!r} {count:,}' for char, count in list(found.characters.items())[:_SHOWN])
    more = ', ...' if len(found.characters) > _SHOWN else ''
    share = f'{found.unknown / max(1, found.tokens):.1%} of {found.tokens:,} tokens'
    return [f'{task}: {share} are unknown pieces, whose text is lost: {shown}{more}']
