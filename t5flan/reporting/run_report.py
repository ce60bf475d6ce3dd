"""`t5flan report WORKDIR`: a run as one HTML page.

Curves come from metrics.jsonl, the model and its settings from t5flan.json and config.gin. Scores and samples come from
samples.jsonl, and every evaluation*.json and predictions*.jsonl in the folder, as written by
`t5flan evaluate --steps=all --json=WORKDIR/evaluation.json --predictions=WORKDIR/predictions.jsonl`, with or without
--benchmark. Missing files are skipped.
"""

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t5flan.config.gin_files import read_text
from t5flan.errors import UserError
from t5flan.files import to_path
from t5flan.models.build import abstract_model
from t5flan.models.config import ModelConfig
from t5flan.models.parameters import parameter_count
from t5flan.reporting.evaluation_sections import evaluation_sections, sample_sections
from t5flan.reporting.page import Curves, Panel, Section, Table, Text, write_report
from t5flan.reporting.run_files import read_json, read_metrics

# Panels in order: title, label -> metric for each curve, y label, logarithmic.
_PANELS = (
    ('Loss', {'train': 'loss', 'held out': 'eval/loss'}, 'nats per token', False),
    ('Accuracy', {'train': 'accuracy', 'held out': 'eval/accuracy'}, 'fraction of tokens', False),
    ('Learning rate', {'learning rate': 'learning_rate'}, '', False),
    ('Gradient norm', {'gradient norm': 'grad_norm'}, '', True),
    ('Speed', {'tokens per second': 'tokens_per_second'}, 'tokens/s', False),
    ('Model FLOP/s', {'TFLOP/s per device': 'tflops_per_second_per_device'}, 'TFLOP/s', False),
    ('Peak memory', {'peak memory': 'peak_memory_gib'}, 'GiB', False),
    ('Model FLOPs utilization', {'utilization': 'model_flops_utilisation'}, 'fraction of peak', False),
)


def report(workdir: str, output: str | None = None) -> Path:
    """Writes WORKDIR/report.html, or `output`, and returns its path.

    Raises:
        UserError: `workdir` does not exist or is not the workdir of a run.
    """
    folder = to_path(workdir)
    if not folder.is_dir():
        raise UserError(f'{workdir} is not a folder. Give the workdir of a `t5flan train` run.')
    description = read_json(folder / 't5flan.json')
    metrics = read_metrics(folder / 'metrics.jsonl')
    if not description and not metrics:
        raise UserError(
            f'{workdir} has neither t5flan.json nor metrics.jsonl. Give the workdir of a `t5flan train` run.'
        )
    sections = [
        *_overview(description, metrics),
        *training_sections(metrics),
        *_data(folder),
        *evaluation_sections(folder),
        *sample_sections(folder),
        *_settings(folder, description),
    ]
    where = folder if '://' in workdir else folder.resolve()
    last = f', step {metrics[-1]["step"]}' if metrics else ''
    return write_report(output or folder / 'report.html', where.name, sections, f'{where}{last}')


def training_sections(metrics: Sequence[Mapping[str, float]]) -> list[Section]:
    """Returns the curves of the rows of a metrics.jsonl, and a table of first, lowest, highest and last values."""
    panels = []
    for title, series, label, log in _PANELS:
        found = {name: points for name, key in series.items() if (points := curve(metrics, key))[0]}
        if found:
            panels.append(Panel(title, found, y_label=label, log_y=log))
    shown = {key for _, series, _, _ in _PANELS for key in series.values()}
    others = dict.fromkeys(key for row in metrics for key in row if key not in shown and key.startswith('eval/'))
    for metric, label in (('loss', 'nats per token'), ('accuracy', 'fraction')):
        keys = [key for key in others if key.startswith(f'eval/{metric}/')]
        names = _without_common_start([key.removeprefix(f'eval/{metric}/') for key in keys])
        by_task = {name: curve(metrics, key) for name, key in zip(names, keys)}
        if keys:
            panels.append(Panel(f'Held-out {metric} by task', by_task, y_label=label))
    single = (key for key in others if not key.startswith(('eval/loss/', 'eval/accuracy/')))
    panels += [Panel(key, {key: curve(metrics, key)}) for key in single]
    keys = [key for key in dict.fromkeys(key for row in metrics for key in row) if key != 'step']
    ends = [[key, *_ends(metrics, key)] for key in keys]
    return [
        Curves('Training', panels),
        Table('First, lowest, highest and last', ['metric', 'first', 'lowest', 'highest', 'last'], ends, digits=4),
    ]


def _without_common_start(names: Sequence[str]) -> list[str]:
    """Drops the words that all names start with: 'c4_ul2_s' and 'c4_ul2_r_3_15' become 's' and 'r_3_15'."""
    start = os.path.commonprefix(list(names)) if len(names) > 1 else ''
    start = start[: start.rfind('_') + 1]
    return [name.removeprefix(start) for name in names]


def curve(metrics: Sequence[Mapping[str, float]], key: str) -> tuple[list[float], list[float]]:
    """Returns the steps and values of the rows that have `key`."""
    rows = [row for row in metrics if isinstance(row.get(key), (int, float))]
    return [row['step'] for row in rows], [row[key] for row in rows]


def _ends(metrics: Sequence[Mapping[str, float]], key: str) -> list[float]:
    values = [float(value) for value in curve(metrics, key)[1]] or [float('nan')]
    return [values[0], min(values), max(values), values[-1]]


def _overview(description: Mapping[str, Any], metrics: Sequence[Mapping[str, float]]) -> list[Section]:
    """What the run is, in a few rows: parameters, vocabulary, steps, loss, speed and memory."""
    losses = [(row['step'], row['eval/loss']) for row in metrics if isinstance(row.get('eval/loss'), float)]
    rows: list[list[Any]] = []
    with contextlib.suppress(UserError, TypeError, KeyError, AttributeError):
        rows.append(['parameters', f'{parameter_count(abstract_model(ModelConfig.from_dict(description["model"]))):,}'])
    for name in ('format', 'feature_lengths'):
        if name in description:
            rows.append([name.replace('_', ' '), json.dumps(description[name]).strip('"')])
    if isinstance(vocabulary := description.get('vocabulary'), dict) and 'size' in vocabulary:
        rows.append(['vocabulary', f'{vocabulary["size"]} ids'])
    if losses:
        best = min(losses, key=lambda one: one[1])
        words = [f'{loss:.4f} at step {step}' for step, loss in (losses[0], best, losses[-1])]
        rows.append(
            ['held-out loss', ', '.join(f'{name} {word}' for name, word in zip(('first', 'best', 'last'), words))]
        )
    for key, name, unit in (('tokens_per_second', 'speed', 'tokens/s'), ('peak_memory_gib', 'peak memory', 'GiB')):
        if values := curve(metrics, key)[1]:
            rows.append([name, f'{values[-1]:,.1f} {unit}'])
    return [Table('Overview', ['', ''], rows)]


def _data(folder: Path) -> list[Section]:
    """The tasks of data.json: their rates, and the examples that the run has read since its last start."""
    rows: list[list[Any]] = []
    with contextlib.suppress(KeyError, TypeError, AttributeError):  # a file of something else
        for name, task in read_json(folder / 'data.json')['tasks'].items():
            long = task['trimmed'] + task['dropped']
            rows.append([name, 100 * task['rate'], task['examples'], long, 100 * task['share']])
    columns = ['task', 'rate, %', 'examples read', 'too long', 'share of the examples, %']
    rows.sort(key=lambda row: -row[2])
    return [Table('Data', columns, rows, 'since the last start of the run')]


def _settings(folder: Path, description: Mapping[str, Any]) -> list[Section]:
    sections: list[Section] = []
    model = description.get('model')
    if isinstance(model, dict):
        rows = [[name, json.dumps(value)] for name, value in model.items()]
        sections.append(Table('Model', ['field', 'value'], rows))
    with contextlib.suppress(UserError):
        sections.append(Text('Settings', read_text(f'{folder}/config.gin'), code=True))
    return sections
