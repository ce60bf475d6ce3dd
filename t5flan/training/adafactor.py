"""Adafactor, factored by the names of axes.

Adafactor stores the second moment of a matrix of gradients as the outer product of its row means and column means
(Shazeer and Stern, https://arxiv.org/abs/1804.04235). The names of the axes decide which are rows and which columns,
as in T5X's `standard_logical_factor_rules` (google-research/t5x, t5x/adafactor.py): a query kernel ('embed', 'heads',
'kv') is factored as the matrix [embed, heads x kv].

'layers' is a batch axis. Each layer of a stack has its own factors, parameter scale and clipping, so a stack is updated
exactly as its layers would be alone. Treating it as one array would be a different optimizer.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from t5flan import sharding
from t5flan.errors import UserError
from t5flan.training.config import OptimizerConfig

BATCH_AXES = frozenset({'layers'})
ROW_AXES = frozenset({'embed'})
COLUMN_AXES = frozenset({'vocab', 'mlp', 'heads', 'kv', 'kv_heads', 'joined_kv'})
UNFACTORED_AXES = frozenset({'relpos_buckets'})

_EPSILON = 1e-30  # added to squared gradients
_SMALLEST_SCALE = 1e-3  # of a parameter
_WIDE = 4096

Moments = dict[str, jax.Array]


class AdafactorState(NamedTuple):
    """The state of `adafactor`.

    Attributes:
        count: steps so far, int32 [].
        moments: a tree like the parameters, with a dict of float32 arrays for each: if factored, 'v_row' and 'v_col',
            means of squared gradients over the columns [batch and row axes] and over the rows [batch and column axes];
            else 'v', of the parameter's shape. With momentum also 'm'.
    """

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as in optax's own states
    moments: Any


class Groups(NamedTuple):
    """The dimensions of a parameter by role; `within_layer` is all but the batch dimensions."""

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    within_layer: tuple[int, ...]


def axis_groups(axes: Sequence[str]) -> Groups:
    """The dimensions by role; rows and columns are empty where the second moment is not factored.

    >>> axis_groups(('layers', 'embed', 'heads', 'kv'))
    Groups(rows=(1,), columns=(2, 3), within_layer=(1, 2, 3))

    Raises:
        UserError: Adafactor has no rule for an axis.
    """
    known = BATCH_AXES | ROW_AXES | COLUMN_AXES | UNFACTORED_AXES
    for name in axes:
        if name not in known:
            problem = f'Adafactor has no rule for the axis {name!r} of {tuple(axes)}; expected one of {sorted(known)}'
            fix = "Set OptimizerConfig.name = 'adamw', or add the axis in training/adafactor.py."
            raise UserError(f'{problem}. {fix}')
    dims = lambda names: tuple(i for i, name in enumerate(axes) if name in names)
    rows, columns = dims(ROW_AXES), dims(COLUMN_AXES)
    if not rows or not columns or dims(UNFACTORED_AXES):
        rows, columns = (), ()
    return Groups(rows, columns, tuple(i for i, name in enumerate(axes) if name not in BATCH_AXES))


def moment_axes(axes: Sequence[str], moment: str) -> tuple[str, ...]:
    """Logical axes of one moment of a parameter: ('embed', 'mlp'), 'v_col' -> ('mlp',)."""
    groups = axis_groups(axes)
    reduced = {'v_row': groups.columns, 'v_col': groups.rows}.get(moment, ())
    return tuple(name for i, name in enumerate(axes) if i not in reduced)


def adafactor(
    config: OptimizerConfig, learning_rate: Callable[[jax.Array], jax.Array], axes: Any
) -> optax.GradientTransformation:
    """T5X's Adafactor as an optax transformation, whose updates are added to the parameters.

    Args:
        config: decay_rate, step_offset, clipping_threshold, multiply_by_parameter_scale, factored, min_dim_to_factor
            and b1 (momentum); the size of joined axes counts for `min_dim_to_factor`.
        learning_rate: maps a step (from 0) to its rate.
        axes: a tree like the parameters, with a tuple of logical axes for each.
    """

    def init(parameters: Any) -> AdafactorState:
        structure: Any = jax.tree.structure(parameters)
        columns = jax.tree.leaves(parameters), structure.flatten_up_to(axes)
        moments = [_init_moments(config, *one) for one in zip(*columns, strict=True)]
        return AdafactorState(jnp.zeros((), jnp.int32), structure.unflatten(moments))

    def update(gradients: Any, state: AdafactorState, parameters: Any) -> tuple[Any, AdafactorState]:
        structure: Any = jax.tree.structure(parameters)
        rate = jnp.asarray(learning_rate(state.count), jnp.float32)
        decay = 1.0 - (jnp.maximum(state.count - config.step_offset, 0) + 1).astype(jnp.float32) ** -config.decay_rate
        columns = (structure.flatten_up_to(tree) for tree in (parameters, gradients, state.moments, axes))
        results = [_update_one(config, rate, decay, *one) for one in zip(*columns, strict=True)]
        updates, moments = zip(*results, strict=True)
        return structure.unflatten(updates), AdafactorState(state.count + 1, structure.unflatten(moments))

    return optax.GradientTransformation(init, update)


def _groups(config: OptimizerConfig, parameter: jax.Array, names: Sequence[str]) -> Groups:
    """`axis_groups`, with rows and columns only if the parameter is large enough to be factored."""
    groups = axis_groups(names)
    size = lambda dims: math.prod(parameter.shape[i] for i in dims)
    if not config.factored or min(size(groups.rows), size(groups.columns)) < config.min_dim_to_factor:
        return groups._replace(rows=(), columns=())
    return groups


def _init_moments(config: OptimizerConfig, parameter: jax.Array, names: Sequence[str]) -> Moments:
    groups = _groups(config, parameter, names)
    without = lambda dims: jnp.zeros([n for i, n in enumerate(parameter.shape) if i not in dims], jnp.float32)
    moments = {'v_row': without(groups.columns), 'v_col': without(groups.rows)} if groups.rows else {'v': without(())}
    return moments | ({} if config.b1 is None else {'m': without(())})


def _update_one(
    config: OptimizerConfig,
    rate: jax.Array,
    decay: jax.Array,
    parameter: jax.Array,
    gradient: jax.Array,
    moments: Moments,
    names: Sequence[str],
) -> tuple[jax.Array, Moments]:
    """One parameter's update and its new moments; `rate` and `decay` are this step's, float32 []."""
    groups = _groups(config, parameter, names)
    mean = lambda x, dims: jnp.mean(x, axis=dims, keepdims=True)
    mix = lambda old, new: decay * old + (1.0 - decay) * (new + _EPSILON)
    reads = _separate_reads(gradient.astype(jnp.float32))
    # The second moment is the product of these factors, which broadcast to the parameter's shape.
    if groups.rows:
        averaged = {'v_row': groups.columns, 'v_col': groups.rows}
        new = {name: mix(moments[name], _mean_square(next(reads), dims)) for name, dims in averaged.items()}
        row = jnp.expand_dims(new['v_row'], groups.columns)
        factors = [row / mean(row, groups.rows), jnp.expand_dims(new['v_col'], groups.rows)]
    else:
        new = {'v': mix(moments['v'], jnp.square(next(reads)))}
        factors = [new['v']]
    scale = jnp.full((1,) * gradient.ndim, -rate)
    if config.clipping_threshold is not None:
        squared = functools.reduce(jnp.divide, factors, jnp.square(next(reads)))
        size = jnp.sqrt(mean(squared, groups.within_layer))
        scale = scale / jnp.maximum(1.0, size / config.clipping_threshold)
    if config.multiply_by_parameter_scale:
        size = jnp.sqrt(mean(parameter * parameter, groups.within_layer))
        scale = scale * jnp.maximum(size, _SMALLEST_SCALE)
    first, *others = (factor**-0.5 for factor in factors)
    update = functools.reduce(jnp.multiply, others, next(reads) * (first * scale))
    if config.b1 is not None:
        update = config.b1 * moments['m'] + (1.0 - config.b1) * update
        new['m'] = update
    return update.astype(parameter.dtype), new


def _separate_reads(x: jax.Array) -> Iterator[jax.Array]:
    """Yields the same array again and again, each time as a different value to the compiler.

    The compiler then computes x * x again wherever it is used. Shared, it would be written to memory for its readers,
    which on a CPU took ten times as long as all reductions together.
    """
    while True:
        x = jax.lax.optimization_barrier(x)
        yield x


def _mean_square(x: jax.Array, dims: tuple[int, ...]) -> jax.Array:
    """Mean of squares over `dims`, which are removed."""
    wide = x.ndim == 2 and dims == (0,) and x.shape[1] > _WIDE
    if wide and sharding.platform() == 'cpu' and sharding.current() is None:
        # XLA's CPU code walks down one column after the other, a page per step: 200 ms for [512, 32128]; this takes 3.
        total, _ = jax.lax.scan(lambda total, row: (total + row * row, None), jnp.zeros(x.shape[1], x.dtype), x)
        return total / x.shape[0]
    return jnp.mean(jnp.square(x), axis=dims)
