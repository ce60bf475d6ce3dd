"""Sections of a run's page from its evaluations: scores by task, benchmark, category and checkpoint, and answers.

`evaluation*.json` of `t5flan evaluate` may hold one checkpoint or several, of held-out splits or of benchmarks; all in
the folder are read. A number with two checkpoints or more is also a curve.
"""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5flan.reporting.page import COLORS, Curves, Panel, Sample, Samples, Section, Table
from t5flan.reporting.run_files import read_json, read_lines

SAMPLES = 6
"""Right answers, and wrong answers, shown from each file."""
MOST_CHARACTERS = 4000
"""Longer prompts lose their beginning on the page."""

Row = dict[str, Any]
Scores = dict[str, dict[int, float]]
"""Name -> step -> value."""


def evaluation_sections(folder: Path) -> list[Section]:
    """Tables and curves of all evaluations in the folder of a run."""
    files = [(path.name, _entries(read_json(path))) for path in sorted(folder.glob('evaluation*.json'))]
    sections: list[Section] = []
    for name, entries in files:
        measured = [entry for entry in entries if _is_object(entry.get('tasks'))]
        if len(measured) == 1:
            sections.append(_one_checkpoint(name, measured[0]))
        elif measured:
            rows = [[*key.rsplit(': ', 1)] for key in _by_metric(measured)]
            split = measured[0].get('split')
            columns = ['task', 'metric']
            sections.append(
                _by_step('Scores by checkpoint', columns, rows, _by_metric(measured), f'{name}: split {split}')
            )
    every = [entry for _, entries in files for entry in entries]
    sections.append(Curves('Scores over checkpoints', _task_panels(every)))
    return [*sections, *_benchmark_sections(every)]


def _entries(found: Row) -> list[Row]:
    """The results of an evaluation's file, one for each checkpoint, with what they have in common."""
    entries = found.get('steps', [found])
    entries = [found | one for one in entries if isinstance(one, dict)] if isinstance(entries, list) else []
    return [one for one in entries if one.get('tasks') or one.get('benchmarks')]


def _is_object(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(one, dict) for one in value.values())


def _one_checkpoint(name: str, entry: Row) -> Table:
    tasks, means = entry['tasks'], entry.get('means', {})
    names = list(dict.fromkeys(name for one in tasks.values() for name, value in one.items() if _is_score(value)))
    rows = [[task, one.get('examples'), *(one.get(name) for name in names)] for task, one in tasks.items()]
    rows += [[f'mean of {group}', None, *(one.get(name) for name in names)] for group, one in means.items()]
    caption = f'{name}: split {entry.get("split")}, step {entry.get("step")}'
    return Table('Scores', ['task', 'examples', *names], rows, caption, total=len(means) == 1)


def _is_score(value: Any) -> bool:
    return isinstance(value, float)


def _by_metric(entries: Iterable[Row]) -> Scores:
    """'TASK: METRIC' -> step -> value, of tasks and of means."""
    found: Scores = {}
    for entry in entries:
        groups = entry['tasks'] | {f'mean of {name}': one for name, one in (entry.get('means') or {}).items()}
        for task, one in groups.items():
            for metric, value in one.items():
                if _is_score(value) and isinstance(entry.get('step'), int):
                    found.setdefault(f'{task}: {metric}', {})[entry['step']] = value
    return found


def _by_step(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], scores: Scores, caption: str) -> Table:
    """A table with a column for each checkpoint; `rows` are the first cells of the rows, in the order of `scores`."""
    steps = sorted({step for values in scores.values() for step in values})
    cells = [[*row, *(values.get(step) for step in steps)] for row, values in zip(rows, scores.values(), strict=True)]
    return Table(title, [*columns, *(f'step {step:,}' for step in steps)], cells, caption)


def _task_panels(entries: Sequence[Row]) -> list[Panel]:
    """A panel for each metric: its means if there are any, else its tasks."""
    scores = _by_metric(entry for entry in entries if _is_object(entry.get('tasks')))
    by_metric: dict[str, Scores] = {}
    for key, values in scores.items():
        task, metric = key.rsplit(': ', 1)
        by_metric.setdefault(metric, {})[task] = values
    return [panel for metric, of_task in by_metric.items() if (panel := _panel(metric, _shown(of_task)))]


def _shown(scores: Scores) -> Scores:
    """As many series as there are colors: all, else the means, else the first."""
    if len(scores) <= len(COLORS):
        return scores
    means = {name: values for name, values in scores.items() if name.startswith('mean of ')}
    return dict(itertools.islice((means or scores).items(), len(COLORS)))


def _panel(title: str, scores: Scores) -> Panel | None:
    """The curves of what has two checkpoints or more; None if nothing has."""
    series = {
        name: (sorted(values), [values[step] for step in sorted(values)])
        for name, values in scores.items()
        if len(values) > 1
    }
    return Panel(title, series) if series else None


# -- Benchmarks ------------------------------------------------------------------------------------------------------


def _benchmark_sections(entries: Sequence[Row]) -> list[Section]:
    found: dict[str, dict[int, Row]] = {}  # benchmark -> step -> result
    averages: Scores = {}
    for entry in entries:
        if not _is_object(entry.get('benchmarks')) or not isinstance(entry.get('step'), int):
            continue
        for name, result in entry['benchmarks'].items():
            found.setdefault(name, {})[entry['step']] = result
        for name in ('normalized_average', 'mean'):
            if _is_score(entry.get(name)):
                averages.setdefault(name.replace('_', ' '), {})[entry['step']] = entry[name]
    if not found:
        return []
    scores: Scores = {
        name: {step: one['score'] for step, one in of_step.items() if _is_score(one.get('score'))}
        for name, of_step in found.items()
    }
    last = {name: of_step[max(of_step)] for name, of_step in found.items()}
    rows = [[name, last[name].get('metric'), f'mean of {last[name].get("reported")}'] for name in scores]
    rows += [['all', name, ''] for name in averages]
    columns = ['benchmark', 'metric', '']
    sections: list[Section] = [_by_step('Benchmarks', columns, rows, scores | averages, '')]
    panels = [_panel('Benchmarks', _shown(scores | averages))]
    for name, of_step in found.items():
        metric = str(last[name].get('metric'))
        for kind, field in (('category', 'averages'), ('task', 'tasks')):
            of_kind = _metric_of(of_step, field, metric)
            caption = f'{name}: {metric} by {kind}'
            sections.append(_by_step(f'{name} by {kind}', [kind], [[one] for one in of_kind], of_kind, caption))
            if field == 'averages':
                panels.append(_panel(f'{name} by category', _shown(of_kind)))
    curves = Curves('Benchmarks over checkpoints', [panel for panel in panels if panel])
    samples = [section for name, result in last.items() for section in _right_and_wrong(result.get('samples'), name)]
    return [*sections[:1], curves, *sections[1:], *samples]


def _metric_of(of_step: Mapping[int, Row], field: str, metric: str) -> Scores:
    """The metric of every category or task of a benchmark by step."""
    found: Scores = {}
    for step, result in of_step.items():
        members = result.get(field, {})
        for name, one in members.items() if _is_object(members) else ():
            if metric in one:
                found.setdefault(name, {})[step] = one[metric]
    return found


# -- Answers ---------------------------------------------------------------------------------------------------------


def sample_sections(folder: Path) -> list[Section]:
    """Right and wrong answers with their prompts, of the samples of the run and each predictions*.jsonl."""
    sections: list[Section] = []
    for path in [folder / 'samples.jsonl', *sorted(folder.glob('predictions*.jsonl'))]:
        rows = [row for row in read_lines(path) if isinstance(row.get('prediction'), str)]
        steps = [row['step'] for row in rows if isinstance(row.get('step'), int)]
        rows = [row for row in rows if row.get('step') in (None, max(steps, default=None))]
        if any(isinstance(row.get('correct'), bool) for row in rows) and path.name != 'samples.jsonl':
            sections += _right_and_wrong(rows, path.name)
            continue
        chosen = list(_of_many_tasks(rows, 2 * SAMPLES))
        title = 'Predictions' if path.name != 'samples.jsonl' else 'Answers at the last evaluation'
        caption = f'{len(chosen)} of {len(rows)} rows of {path.name}'
        sections.append(Samples(title, list(map(_sample, chosen)), caption))
    return sections


def _right_and_wrong(rows: Any, source: str) -> Iterator[Section]:
    """Samples of the right and of the wrong ones of answers that were judged."""
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    for word, is_right in (('right', True), ('wrong', False)):
        own = [row for row in rows if row.get('correct') is is_right]
        chosen = list(_of_many_tasks(own, SAMPLES))
        caption = f'{len(chosen)} of {len(own)} {word} answers of {source}'
        yield Samples(f'{word.capitalize()} answers', list(map(_sample, chosen)), caption)


def _of_many_tasks(rows: Sequence[Row], count: int) -> Iterator[Row]:
    """The first row of each task, then the second, and so on, so that a few samples show many tasks."""
    by_task: dict[str, list[Row]] = {}
    for row in rows:
        by_task.setdefault(str(row.get('task', '')), []).append(row)
    rounds = itertools.zip_longest(*by_task.values())
    return itertools.islice((row for of_round in rounds for row in of_round if row is not None), count)


def _sample(row: Row) -> Sample:
    prompt = str(row.get('prompt') or row.get('input', row.get('inputs', '')))
    if len(prompt) > MOST_CHARACTERS:
        prompt = f'… {prompt[-MOST_CHARACTERS:]}'
    correct = {'model': row['correct']} if isinstance(row.get('correct'), bool) else {}
    target = row.get('target')
    target = target if target is None or isinstance(target, str) else str(target)
    return Sample(prompt, {'model': str(row['prediction'])}, target, correct, str(row.get('task', '')))
