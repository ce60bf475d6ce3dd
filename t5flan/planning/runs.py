"""Finished runs of `t5flan train` as points of a scaling law."""

import glob
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from t5flan import configurables
from t5flan.errors import UserError
from t5flan.files import to_path
from t5flan.files.buckets import match_objects
from t5flan.files.gcs import is_bucket
from t5flan.models.config import ModelConfig
from t5flan.planning.cost import batch_of, count_parameters
from t5flan.planning.fit import Point
from t5flan.training.config import RunConfig
from t5flan.training.metric_writer import DATA, read_metrics
from t5flan.training.throughput import model_flops

_LAST_SHARE = 0.1
"""Share of a run whose training losses are averaged where it did not evaluate: one batch is noisy."""


def read_runs(pattern: str) -> tuple[list[Point], list[str]]:
    """The finished runs among the workdirs of a glob pattern.

    Returns:
        The runs, and a line for each workdir that is left out, which says why.

    Raises:
        UserError: no folder matches, or none is a workdir.
    """
    matched = match_objects(pattern) if is_bucket(pattern) else glob.glob(os.path.expanduser(pattern))
    folders = sorted(folder for folder in matched if to_path(folder).is_dir())
    workdirs = [folder for folder in folders if to_path(f'{folder}/t5flan.json').is_file()]
    if not workdirs:
        found = f'{len(folders)} folders without a t5flan.json' if folders else 'no folder'
        raise UserError(f'--fit={pattern} matches {found}. Set it to the workdirs of runs, as in --fit="runs/*"')
    points, left_out = [], []
    for workdir in workdirs:
        read = read_run(workdir)
        if isinstance(read, Point):
            points.append(read)
        else:
            left_out.append(f'{workdir} is left out: {read}')
    return points, left_out


def read_run(workdir: str) -> Point | str:
    """A finished run, or why it cannot be used.

    The loss is the last eval/loss if the run evaluated at its last step; else the mean of its last training losses.
    Tokens are steps times tokens of a batch, without padding.
    """
    found = configurables.checkpoint_settings(workdir)
    assert found is not None, workdir
    description = json.loads(to_path(found[0]).read_text(encoding='utf-8'))
    if description.get('adapter'):
        return 'it trains an adapter'
    rows = [row for row in read_metrics(workdir) if 'step' in row]
    if not rows or 'batch_size' not in description.get('data', {}):
        return 'it has no metrics'
    steps, planned = int(max(row['step'] for row in rows)), _planned_steps(workdir)
    report = _read_json(f'{workdir}/{DATA}')
    if not report or (planned is not None and steps < planned):
        return f'it is not finished (step {steps}{"" if planned is None else f" of {planned}"})'
    model = ModelConfig.from_dict(found[1][ModelConfig])
    batch = batch_of(model, description['data']['batch_size'], description['feature_lengths'])
    loss = _final_loss(rows, steps)
    if loss is None:
        return 'it has no loss'
    filled = float(report.get('packing_efficiency') or 1.0)
    tokens, flops = steps * batch.tokens * filled, steps * model_flops(model, batch.shapes)
    return Point(workdir, count_parameters(model), tokens, flops, loss)


def _final_loss(rows: Sequence[Mapping[str, float]], steps: int) -> float | None:
    evaluated = [row['eval/loss'] for row in rows if 'eval/loss' in row and row['step'] == steps]
    if evaluated:
        return evaluated[-1]
    last = [row['loss'] for row in rows if 'loss' in row and row['step'] > (1 - _LAST_SHARE) * steps]
    return sum(last) / len(last) if last else None


def _planned_steps(workdir: str) -> int | None:
    """RunConfig.steps of the run's gin; None if it has none, or counts in epochs."""
    if not os.path.isfile(f'{workdir}/config.gin'):
        return None
    try:
        run = configurables.parse([f'{workdir}/config.gin']).read(RunConfig)
    except UserError:  # of an older release
        return None
    return None if run.epochs is not None else run.steps


def _read_json(path: str) -> dict[str, Any]:
    try:
        value = json.loads(to_path(path).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
