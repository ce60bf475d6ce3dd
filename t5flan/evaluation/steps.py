"""Which checkpoints of a run are evaluated: the latest, the best, all, or some by their steps; also while it trains."""

import dataclasses
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from t5flan.adapters.rows import choose
from t5flan.errors import UsageError, UserError
from t5flan.language_model import LanguageModel, load
from t5flan.processes.gathering import load_together
from t5flan.training.checkpoints import CHECKPOINTS, checkpoint_root, saved_steps
from t5flan.training.config import CheckpointConfig
from t5flan.training.metric_writer import METRICS, read_metrics

LATEST, BEST, ALL = 'latest', 'best', 'all'

_PATIENCE = 3.0
"""Seconds in which a run that is removing a checkpoint should have removed all of it."""


def chosen_steps(checkpoint: str, which: str, config: CheckpointConfig) -> Iterator[int]:
    """The steps to evaluate. Of 'all', also those that a run saves meanwhile.

    Args:
        checkpoint: the workdir of a run.
        which: 'latest', 'best', 'all', or steps separated by commas.
        config: of the run, with what 'auto' stands for; `best_metric` and `best_mode` apply.

    Raises:
        UsageError: `which` is something else, or `checkpoint` is one step of a run.
        UserError: there is no such step, or no metric says which is the best.
    """
    root = checkpoint_root(checkpoint)
    if re.search(rf'{CHECKPOINTS}/\d+/?$', checkpoint):
        raise UsageError(f'--checkpoint={checkpoint} is one step. Remove --steps, or set --checkpoint={root}')
    steps = saved_steps(root)
    if not steps:
        raise UserError(f'{root / CHECKPOINTS} has no complete checkpoint yet.')
    if which == ALL:
        return _all_steps(root)
    if which == LATEST:
        return iter(steps[-1:])
    if which == BEST:
        return iter([best_step(checkpoint, config)])
    words = [word.strip() for word in which.split(',')]
    if not all(word.isdecimal() for word in words):
        raise UsageError(f'--steps={which}, expected latest, best, all, or steps such as {steps[-1]}. Set --steps')
    asked = [int(word) for word in words]
    for step in asked:
        if step not in steps:
            known = ', '.join(map(str, steps))
            raise UserError(f'{root / CHECKPOINTS} has no step {step}; it has {known}. Set --steps.')
    return iter(asked)


def _all_steps(root: Any) -> Iterator[int]:
    seen: set[int] = set()
    while new := [step for step in saved_steps(root) if step not in seen]:
        seen.add(new[0])
        yield new[0]


def best_step(checkpoint: str, config: CheckpointConfig) -> int:
    """The saved step with the best `best_metric` in metrics.jsonl, the earliest of equals.

    Raises:
        UserError: the run has no best metric, or none of its saved steps was evaluated.
    """
    root, metric = checkpoint_root(checkpoint), config.best_metric
    if metric is None:
        raise UserError(
            f'{root} has no best checkpoint: the run had CheckpointConfig.best_metric=None or did not evaluate. '
            "Set --steps=latest, or --gin.CheckpointConfig.best_metric='eval/loss'."
        )
    rows = read_metrics(root)
    measured = {int(row['step']): row[metric] for row in rows if metric in row and 'step' in row}
    steps = saved_steps(root)
    known = {step: value for step, value in measured.items() if step in steps}
    if not known:
        what = f'at {len(measured)} steps without a checkpoint' if measured else 'nowhere'
        there = ', '.join(map(str, steps)) or 'none'
        raise UserError(
            f'{root / METRICS} has {metric} {what}; the checkpoints are {there}. Set --steps=latest or --steps=N.'
        )
    sign = 1 if config.best_is_lowest else -1
    return min(known, key=lambda step: (sign * known[step], step))


def load_on_all(checkpoint: str, step: int, adapter: str | None = None) -> LanguageModel | None:
    """`load_if_there` on all processes of the job; None if the checkpoint was removed for one of them."""
    return load_together(lambda: load_if_there(checkpoint, step, adapter))


def load_if_there(checkpoint: str, step: int, adapter: str | None = None) -> LanguageModel | None:
    """Loads a checkpoint, or returns None, and says so, if a run has removed it meanwhile.

    Args:
        adapter: the folder of an adapter of the checkpoint, which every row then has.
    """
    try:
        return load_adapted(checkpoint, adapter, step)
    except Exception:  # of many kinds: files vanish one by one
        end = time.monotonic() + _PATIENCE
        while step in saved_steps(checkpoint_root(checkpoint)):
            if time.monotonic() > end:
                raise
            time.sleep(_PATIENCE / 10)
        print(f'step {step} was removed before it was read: skipped', file=sys.stderr, flush=True)
        return None


def load_adapted(
    checkpoint: str, adapter: str | None, step: int | None = None, dtype: str | None = None
) -> LanguageModel:
    """Loads a checkpoint with an adapter in every row, as `language_model.load`.

    Args:
        adapter: the folder of an adapter of the checkpoint; None is the checkpoint alone.
    """
    if adapter is None:
        return load(checkpoint, step, dtype=dtype)
    model = load(checkpoint, step, dtype=dtype, adapters={adapter: adapter})
    every_row = np.ones(1, np.int32)
    return dataclasses.replace(model, model=choose(model.model, every_row), adapters=())


def each_step(steps: Iterator[int], evaluate: Callable[[int], dict[str, Any] | None]) -> list[dict[str, Any]]:
    """The results of the steps that were there when their turn came.

    Args:
        evaluate: evaluates one step; None if it was removed.

    Raises:
        UserError: all were removed.
    """
    found = [result for step in steps if (result := evaluate(step)) is not None]
    if not found:
        raise UserError('every chosen checkpoint was removed before it was read. Set CheckpointConfig.keep higher.')
    return found
