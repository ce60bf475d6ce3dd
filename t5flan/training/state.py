"""The state that training carries from step to step."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5flan.data.batches.streams import Position, merge_positions
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


def gather_position(position: Position) -> Position:
    """The data position of all hosts, each of which knows only its own streams."""
    if jax.process_count() == 1:
        return position
    from jax.experimental import multihost_utils

    text = json.dumps(position).encode()
    sizes = multihost_utils.process_allgather(np.array(len(text), np.int32))
    padded = np.frombuffer(text.ljust(int(sizes.max()), b' '), np.uint8)
    return merge_positions([json.loads(bytes(row)) for row in multihost_utils.process_allgather(padded)])
