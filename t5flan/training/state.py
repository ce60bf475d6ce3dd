"""The state that training carries from step to step."""

import dataclasses
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from t5flan.data.batches.streams import Position, merge_positions
from t5flan.errors import UserError
from t5flan.files import PathLike
from t5flan.processes.gathering import gather
from t5flan.training.optimizer import Optimizer


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A pytree: jit, donate, shard and save it whole. Its shapes and its shardings are trees of this class too.

    Attributes:
        step: optimizer steps done, int32 []; an array, the same on all devices and hosts.
        model: the module, whose leaves are its float32 parameters.
        opt_state: the optimizer's moments and counters, for trained parameters only.
    """

    step: Any
    model: Any
    opt_state: Any


def create_state(model: Any, optimizer: Optimizer) -> TrainState:
    """The state before the first step, of arrays or, under `jax.eval_shape`, of shapes."""
    return TrainState(step=jnp.zeros((), jnp.int32), model=model, opt_state=optimizer.init(model))


def saved_position(meta: Mapping[str, Any], where: PathLike) -> Position:
    """The data position in what a step was saved with.

    Args:
        meta: what the step was saved with.
        where: the folder, for messages.

    Raises:
        UserError: there is none, as in a converted checkpoint, or it is damaged.
    """
    if 'position' not in meta:
        problem = f'{os.fspath(where)} has no data position: its checkpoint was converted, not trained'
        raise UserError(f'{problem}. Set another --workdir, and CheckpointConfig.initialize_from to this folder.')
    position: Position = meta['position']
    if not _is_position(position):
        problem = (
            f'the data position of step {meta["step"]} in {os.fspath(where)} is damaged: {json.dumps(position)[:80]}'
        )
        raise UserError(f'{problem}. Restore its meta/metadata, or remove the step to resume from the one before.')
    return position


def _is_position(position: Any) -> bool:
    """Whether this is a `Position` by its types and sizes."""
    is_number = lambda value: type(value) is int and 0 <= value < 2**63
    is_pair = lambda value: isinstance(value, list | tuple) and len(value) == 2 and all(map(is_number, value))
    if not isinstance(position, dict) or not is_number(position.get('stream_count')):
        return False
    streams, records = position.get('streams'), position.get('records', {})
    if not isinstance(streams, dict) or not isinstance(records, dict) or not all(map(is_number, records.values())):
        return False
    return bool(streams) and all(
        isinstance(at, dict)
        and is_pair(at.get('slot'))
        and is_number(at.get('batch', 0))
        and isinstance(at.get('tasks'), dict)
        and all(map(is_pair, at['tasks'].values()))
        for at in streams.values()
    )


def gather_position(position: Position) -> Position:
    """The data position of all hosts, each of which knows only its own streams."""
    if jax.process_count() == 1:
        return position
    return merge_positions(gather(position))
