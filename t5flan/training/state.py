"""The state that training carries from step to step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

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
