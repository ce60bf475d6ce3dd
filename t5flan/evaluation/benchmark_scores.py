"""`t5flan score`: the metrics of a benchmark from a file of completions, wherever they were made.

A row of the file is an answer: {"task": "boolean_expressions", "prediction": "... So the answer is True.",
"target": "True"}. Rows with the same "task" and "index" are samples of one question, and vote on its answer
(self-consistency), as the texts of a list do: {"prediction": [TEXT, TEXT]}. Rows of another "benchmark" are skipped.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from t5flan.data.records.fields import find_field, require_field, require_text
from t5flan.data.records.rows import read_rows
from t5flan.errors import UserError, did_you_mean
from t5flan.evaluation.terminal import print_scores
from t5flan.files import write_json
from t5flan.scoring.benchmark import ALL, Answer, Benchmark, Scores, score
from t5flan.scoring.statistics import bootstrap_interval, compare

_SETTING = '--predictions'


def score_file(
    benchmark: Benchmark, predictions: str, *, json_file: str | None = None, baseline: str | None = None
) -> dict[str, Any]:
    """Scores a file of completions and prints a table.

    Args:
        predictions: rows with task, prediction and target, in any format that `read_rows` reads.
        json_file: also write the result to this file.
        baseline: another file of completions of the same questions, which the first is compared with.

    Returns:
        What `summary` returns, with 'predictions' and, if there is a baseline, 'comparison'.

    Raises:
        UserError: a file is missing or empty, a row lacks a field, or a task is not one of the benchmark's.
    """
    scores = score(benchmark, read_predictions(predictions, benchmark))
    found = {'predictions': predictions, **summary(benchmark, scores)}
    print_result(benchmark, found, predictions)
    if baseline is not None:
        other = score(benchmark, read_predictions(baseline, benchmark, '--baseline'))
        values = _values(benchmark, scores)
        if not values:
            raise UserError(f'{benchmark.metric} of {benchmark.name} has no value for one question. Remove --baseline.')
        comparison = compare(values, _values(benchmark, other))
        found['comparison'] = {'baseline': baseline, **dataclasses.asdict(comparison)}
        print(f'{benchmark.metric} against {baseline}: {comparison}')
    if json_file is not None:
        write_json(json_file, found, indent=2)
    return found


def read_predictions(path: str, benchmark: Benchmark, setting: str = _SETTING) -> list[Answer]:
    """The answers in a file, samples of one question together, in the order of the file.

    Raises:
        UserError: as `score_file`.
    """
    found: dict[tuple[str, int], Answer] = {}
    counts: dict[str, int] = {}
    for row in read_rows(path):
        if row.value.get('benchmark', benchmark.name) != benchmark.name:
            continue
        task = require_field(row.value, 'task', row.where, setting)
        if benchmark.known_tasks and task not in benchmark.known_tasks:
            near = did_you_mean(task, benchmark.known_tasks) or f'; one is {benchmark.known_tasks[0]}'
            raise UserError(f'{row.where}: {benchmark.name} has no task {task!r}{near}. Fix the file or --benchmark.')
        given = find_field(row.value, 'prediction', row.where, setting)
        texts = given if isinstance(given, list) and given else [given]
        samples = tuple(require_text(text, 'prediction', row.where, setting) for text in texts)
        target = find_field(row.value, 'target', row.where, setting)
        index = row.value.get('index', counts.get(task, 0))
        if isinstance(index, str) and index.isdigit():  # a cell of a table
            index = int(index)
        if not isinstance(index, int) or target is None:
            raise UserError(f'{row.where}: "index" must be a number and "target" must be given. Fix the file.')
        counts[task] = counts.get(task, 0) + 1
        before = found.get((task, index))
        if before is not None and before.target != target:
            raise UserError(f'{row.where}: index {index} of {task} has two targets. Number the questions of a task.')
        samples = samples if before is None else before.samples + samples
        found[task, index] = Answer(task, index, samples, target)
    if not found:
        raise UserError(f'{path} has no rows of {benchmark.name}. Set {setting}.')
    return list(found.values())


def summary(benchmark: Benchmark, scores: Scores) -> dict[str, Any]:
    """A result as JSON.

    Returns:
        benchmark, metric, `reported` (the category whose mean the papers report), `score` (that mean, in percent),
        `interval` (its 95 % bootstrap interval), `tasks` (task -> metrics), `averages` (category -> metrics) and
        `missing` (tasks of the release without predictions).
    """
    reported = benchmark.reported if benchmark.reported in scores.averages else ALL
    members = scores.categories[reported]
    values = _values(benchmark, scores)
    groups = [
        [[value for (name, _), value in values.items() if name == task] for task in _names(member)]
        for member in members
    ]  # fmt: skip
    interval = bootstrap_interval([present for group in groups if (present := [one for one in group if one])])
    return {
        'benchmark': benchmark.name,
        'metric': benchmark.metric,
        'reported': reported,
        'score': scores.averages[reported].get(benchmark.metric, 0.0),
        'interval': list(interval),
        'tasks': scores.tasks,
        'averages': scores.averages,
        'missing': list(scores.missing),
    }


def _names(member: str | Sequence[str]) -> Sequence[str]:
    return [member] if isinstance(member, str) else member


def _values(benchmark: Benchmark, scores: Scores) -> dict[tuple[str, int], float]:
    """(task, index) -> the metric of that question, in percent; of metrics of a whole task, nothing."""
    return {key: 100 * one[benchmark.metric] for key, one in scores.judged.items() if benchmark.metric in one}


def print_result(benchmark: Benchmark, found: Mapping[str, Any], title: str) -> None:
    """Prints a result: a table with a line for every task and the averages, then the score and its interval."""
    averages = {f'{category} ({one["tasks"]})': one for category, one in found['averages'].items()}
    print_scores(f'{benchmark.name}: {title}', found['tasks'], averages)
    low, high = found['interval']
    if high > low:
        shown = f'mean of {found["reported"]}, 95 % interval {low:.2f} to {high:.2f}'
        print(f'{benchmark.metric} {found["score"]:.2f} ({shown})')
    if missing := found['missing']:
        print(f'no predictions for {len(missing)} tasks: {", ".join(missing[:5])}{", ..." if len(missing) > 5 else ""}')
