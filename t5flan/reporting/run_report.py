"""`t5flan report WORKDIR`: what a run left behind as one HTML page.

Curves come from metrics.jsonl, the model and its settings from t5flan.json and config.gin, scores and samples from what
`evaluate --json=WORKDIR/evaluation.json --predictions=WORKDIR/predictions.jsonl` wrote (any evaluation*.json and
predictions*.jsonl in the folder). Whatever is missing is left out.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t5flan.errors import UserError
from t5flan.reporting.page import Curves, Panel, Sample, Samples, Section, Table, Text, write_report

SAMPLES = 12

# Panels in this order: title, the metrics in them (train, held out), label, logarithmic.
_PANELS = (
    ('Loss', {'train': 'loss', 'held out': 'eval/loss'}, 'nats a token', False),
    ('Accuracy', {'train': 'accuracy', 'held out': 'eval/accuracy'}, 'share of tokens', False),
    ('Learning rate', {'learning rate': 'learning_rate'}, '', False),
    ('Gradient norm', {'gradient norm': 'grad_norm'}, '', True),
    ('Speed', {'tokens a second': 'tokens_per_second'}, 'tokens/s', False),
    ('Model FLOPs utilisation', {'utilisation': 'model_flops_utilisation'}, 'share of the peak', False),
)


def report(workdir: str, output: str | None = None) -> Path:
    """Writes WORKDIR/report.html (or `output`) and returns its path.

    Raises:
        UserError: the folder does not exist or holds nothing of a run.
    """
    folder = Path(workdir)
    if not folder.is_dir():
        raise UserError(f'{workdir} is not a folder; expected the workdir of a `t5flan train` run.')
    description = _read_json(folder / 't5flan.json')
    metrics = _read_lines(folder / 'metrics.jsonl')
    if not description and not metrics:
        raise UserError(
            f'{workdir} holds neither t5flan.json nor metrics.jsonl; expected the workdir of a `t5flan train` run.'
        )
    sections = [
        *training_sections(metrics),
        *_evaluations(folder),
        *_predictions(folder),
        *_settings(folder, description),
    ]
    last = f', step {metrics[-1]["step"]}' if metrics else ''
    path = write_report(output or folder / 'report.html', folder.resolve().name, sections, f'{folder.resolve()}{last}')
    print(path)
    return path


def training_sections(metrics: Sequence[Mapping[str, float]]) -> list[Section]:
    """Curves of the rows of a metrics.jsonl, and a table of where they ended."""
    panels = []
    for title, series, label, log in _PANELS:
        found = {name: points for name, key in series.items() if (points := curve(metrics, key))[0]}
        if found:
            panels.append(Panel(title, found, y_label=label, log_y=log))
    shown = {key for _, series, _, _ in _PANELS for key in series.values()}
    others = dict.fromkeys(key for row in metrics for key in row if key not in shown and key.startswith('eval/'))
    for metric, title, label in (
        ('loss', 'Held-out loss by task', 'nats a token'),
        ('accuracy', 'Held-out accuracy by task', 'share'),
    ):
        keys = [key for key in others if key.startswith(f'eval/{metric}/')]
        names = _endings([key.removeprefix(f'eval/{metric}/') for key in keys])
        if keys:
            panels.append(Panel(title, {name: curve(metrics, key) for name, key in zip(names, keys)}, y_label=label))
    panels += [
        Panel(key, {key: curve(metrics, key)}) for key in others if not key.startswith(('eval/loss/', 'eval/accuracy/'))
    ]
    ends = [
        [key, *_ends(metrics, key)] for key in dict.fromkeys(key for row in metrics for key in row) if key != 'step'
    ]
    return [
        Curves('Training', panels),
        Table('First, best and last', ['metric', 'first', 'lowest', 'highest', 'last'], ends, digits=4),
    ]


def _endings(names: Sequence[str]) -> list[str]:
    """Names without the words that all of them begin with: 'c4_ul2_s' and 'c4_ul2_r_3_15' are 's' and 'r_3_15'."""
    begin = os.path.commonprefix(list(names)) if len(names) > 1 else ''
    begin = begin[: begin.rfind('_') + 1]
    return [name.removeprefix(begin) for name in names]


def curve(metrics: Sequence[Mapping[str, float]], key: str) -> tuple[list[float], list[float]]:
    """Steps and values of the rows that have `key`."""
    rows = [row for row in metrics if isinstance(row.get(key), (int, float))]
    return [row['step'] for row in rows], [row[key] for row in rows]


def _ends(metrics: Sequence[Mapping[str, float]], key: str) -> list[float]:
    values = [float(value) for value in curve(metrics, key)[1]] or [float('nan')]
    return [values[0], min(values), max(values), values[-1]]


def _evaluations(folder: Path) -> list[Section]:
    sections: list[Section] = []
    for path in sorted(folder.glob('evaluation*.json')):
        summary = _read_json(path)
        tasks, means = summary.get('tasks', {}), summary.get('means', {})
        if not isinstance(tasks, dict) or not tasks:
            continue
        names = list(
            dict.fromkeys(
                name for result in tasks.values() for name, value in result.items() if isinstance(value, float)
            )
        )
        rows = [[task, result.get('examples'), *(result.get(name) for name in names)] for task, result in tasks.items()]
        rows += [[f'mean of {name}', None, *(result.get(metric) for metric in names)] for name, result in means.items()]
        sections.append(
            Table(
                'Scores',
                ['task', 'examples', *names],
                rows,
                f'{path.name}: split {summary.get("split")}, step {summary.get("step")}',
                total=len(means) == 1,
            )
        )
    return sections


def _predictions(folder: Path) -> list[Section]:
    sections: list[Section] = []
    for path in sorted(folder.glob('predictions*.jsonl')):
        rows = [row for row in _read_lines(path) if isinstance(row.get('prediction'), str)]
        by_task: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            by_task.setdefault(str(row.get('task', '')), []).append(row)
        # One of each task in turn, so that a few show many tasks.
        turns = sorted(((place, number) for number, task in enumerate(by_task) for place in range(len(by_task[task]))))
        tasks = list(by_task)
        chosen = [by_task[tasks[number]][place] for place, number in turns[:SAMPLES]]
        samples = [
            Sample(
                str(row.get('input', row.get('inputs', ''))),
                {'model': row['prediction']},
                row.get('target'),
                {'model': row['correct']} if isinstance(row.get('correct'), bool) else {},
                str(row.get('task', '')),
            )
            for row in chosen
        ]
        sections.append(Samples('Predictions', samples, f'{len(samples)} of {len(rows)} rows of {path.name}'))
    return sections


def _settings(folder: Path, description: Mapping[str, Any]) -> list[Section]:
    sections: list[Section] = []
    model = description.get('model')
    if isinstance(model, dict):
        sections.append(
            Table('Model', ['field', 'value'], [[name, json.dumps(value)] for name, value in model.items()])
        )
    try:
        sections.append(Text('Settings', (folder / 'config.gin').read_text(encoding='utf-8'), code=True))
    except OSError:
        pass
    return sections


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """All lines that are JSON objects; one cut by a kill is left out."""
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
