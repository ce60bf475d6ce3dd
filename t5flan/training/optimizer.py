"""The optimizer of a run: the schedule, the trained parameters, and how gradients become updates.

The optimizer sees only the trained parameters, as a nested dict by name ({'encoder': {'layers': {…: array}}}). A frozen
parameter is not in it, so it has no gradient, no moments and no update.
"""

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import unflatten_dict

from t5flan import sharding
from t5flan.errors import UserError
from t5flan.models.parameters import named_parameters, path_name
from t5flan.training.adafactor import adafactor, moment_axes
from t5flan.training.config import OptimizerConfig

Schedule = Callable[[jax.Array], jax.Array]

_MOMENTS = ('v_row', 'v_col', 'v', 'm')


def make_schedule(config: OptimizerConfig, total_steps: int) -> Schedule:
    """Returns the function from a step (from 0) to the learning rate, float32 [].

    With base b, warm-up w, decay_steps d (default `total_steps`), final_ratio f, at step s:

        ramp       min(1, (s + 1) / w)                        1 without warm-up; no step has rate 0
        constant   b * ramp
        rsqrt      b / sqrt(max(s, w, 1))                     T5X's; T5's recipe is b = 1, w = 10000: 0.01, then falling
        linear     b * ramp * (1 - (1 - f) * p)               p = clip((s - w) / (d - w), 0, 1)
        cosine     b * ramp * (f + (1 - f) * (1 + cos(pi * p)) / 2)

    Raises:
        UserError: 'linear' or 'cosine' ends within the warm-up.
    """
    warmup, base, final = config.warmup_steps, config.learning_rate, config.final_ratio
    end = config.decay_steps if config.decay_steps is not None else total_steps
    if config.schedule in ('linear', 'cosine') and end <= warmup:
        problem = f'the {config.schedule} schedule ends at step {end}, within its warm-up of {warmup} steps'
        raise UserError(f'{problem}. Set OptimizerConfig.warmup_steps or OptimizerConfig.decay_steps.')

    def schedule(step: jax.Array) -> jax.Array:
        step = jnp.asarray(step, jnp.float32)
        if config.schedule == 'rsqrt':
            return base / jnp.sqrt(jnp.maximum(step, max(warmup, 1)))
        rate = base * jnp.minimum(1.0, (step + 1.0) / max(warmup, 1))
        progress = jnp.clip((step - warmup) / max(end - warmup, 1), 0.0, 1.0)
        if config.schedule == 'linear':
            rate *= 1.0 - (1.0 - final) * progress
        elif config.schedule == 'cosine':
            rate *= final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        return rate

    return schedule


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """How a model's parameters change. `make_optimizer` builds it; `training/step.py` uses it.

    Attributes:
        transformation: over the nested dict of trained parameters.
        schedule: step -> learning rate.
        axes: path -> logical axes, of all parameters.
        trained: paths of the trained parameters.
    """

    transformation: optax.GradientTransformation
    schedule: Schedule
    axes: Mapping[str, tuple[str, ...]]
    trained: frozenset[str]

    def init(self, model: Any) -> Any:
        """Optimizer state for a model (arrays, or their shapes under `jax.eval_shape`)."""
        return self.transformation.init(self.trained_parameters(model))

    def trained_parameters(self, model: Any) -> dict[str, Any]:
        """The model's trained parameters as a nested dict."""
        trained = {path: leaf for path, leaf in named_parameters(model).items() if path in self.trained}
        return unflatten_dict(trained, sep='/')

    def constrain(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """Constrains gradients or parameters to the parameters' places on the mesh."""
        place = lambda path, x: sharding.constrain(x, self.axes[path_name(path)])
        return jax.tree_util.tree_map_with_path(place, parameters)


def with_parameters(model: Any, parameters: Mapping[str, Any]) -> Any:
    """The model with the parameters of a nested dict; those that are not in it stay."""
    new = named_parameters(parameters)
    leaves = [new.get(path, leaf) for path, leaf in named_parameters(model).items()]
    return jax.tree.unflatten(jax.tree.structure(model), leaves)


def make_optimizer(
    config: OptimizerConfig, axes: Any, total_steps: int, base: frozenset[str] = frozenset()
) -> Optimizer:
    """The optimizer of a run.

    Args:
        config: the settings.
        axes: `models.parameters.logical_axes(model)`: a tree like the model, with a tuple of axes at each leaf.
        total_steps: the run's steps, over which a schedule without `decay_steps` decays.
        base: paths that are not trained because an adapter is.

    Raises:
        UserError: a pattern of `freeze` or `no_weight_decay` matches no parameter, or all parameters are frozen.
    """
    flat_axes = _named_axes(axes)
    frozen = base | matching_paths(config.freeze, flat_axes, 'OptimizerConfig.freeze')
    trained = frozenset(flat_axes) - frozen
    if not trained:
        raise UserError(f'OptimizerConfig.freeze={list(config.freeze)} freezes every parameter. Leave some to train.')
    schedule = make_schedule(config, total_steps)
    trained_axes = unflatten_dict({path: names for path, names in flat_axes.items() if path in trained}, sep='/')
    clip = config.clip_by_global_norm
    parts = [] if clip is None else [optax.clip_by_global_norm(clip)]
    if config.name == 'adafactor':
        parts.append(adafactor(config, schedule, trained_axes))
    else:
        adam = optax.scale_by_adam(0.9 if config.b1 is None else config.b1, config.b2, config.epsilon)
        parts += [adam, optax.scale_by_learning_rate(schedule)]
    undecayed = matching_paths(config.no_weight_decay, flat_axes, 'OptimizerConfig.no_weight_decay')
    if config.weight_decay:
        share = lambda step: config.weight_decay * schedule(step) ** config.weight_decay_lr_exponent
        parts.append(decay_weights(share, undecayed))
    return Optimizer(optax.chain(*parts), schedule, flat_axes, trained)


class DecayState(NamedTuple):
    """The state of `decay_weights`: steps so far, int32 []."""

    count: jax.Array  # type: ignore[assignment]  # hides tuple.count, as in optax's own states


def decay_weights(share: Schedule, undecayed: Iterable[str] = ()) -> optax.GradientTransformation:
    """Subtracts share(step) of each parameter from its update, except for the paths in `undecayed`."""
    undecayed = frozenset(undecayed)

    def update(updates: Any, state: DecayState, parameters: Any) -> tuple[Any, DecayState]:
        rate = share(state.count)
        decay = lambda path, u, p: u if path_name(path) in undecayed else u - rate * p
        return jax.tree_util.tree_map_with_path(decay, updates, parameters), DecayState(state.count + 1)

    return optax.GradientTransformation(lambda parameters: DecayState(jnp.zeros((), jnp.int32)), update)


def matching_paths(patterns: Sequence[str], paths: Iterable[str], setting: str) -> frozenset[str]:
    """The paths that some pattern matches as a whole: 'encoder/.*' matches the encoder, 'encoder' matches nothing.

    Raises:
        UserError: a pattern matches no path; the message suggests the nearest ones.
    """
    paths = list(paths)
    found: set[str] = set()
    for pattern in patterns:
        matched = {path for path in paths if re.fullmatch(pattern, path)}
        if not matched:
            names = [path.split('/') for path in paths]
            subtrees = {'/'.join([*parts[:depth], '.*']) for parts in names for depth in range(1, len(parts))}
            near = difflib.get_close_matches(pattern, sorted(subtrees) + paths, n=3, cutoff=0.0)
            problem = f'{setting} contains {pattern!r}, which matches no whole parameter path'
            raise UserError(f'{problem}; the nearest are {", ".join(near)}. Set {setting} in your .gin.')
        found |= matched
    return frozenset(found)


def _named_axes(axes: Any) -> dict[str, tuple[str, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(axes, is_leaf=lambda x: isinstance(x, tuple))[0]
    return {path_name(path): names for path, names in leaves}


def state_axes(opt_state: Any, axes: Any) -> Any:
    """Logical axes of every array of an optimizer state, so that it is sharded like its parameters.

    The path of a moment ends with its parameter's path; row and column means lack the axes they average over; counters
    have no axes.

    Args:
        opt_state: the state from `Optimizer.init`, or its shapes.
        axes: as for `make_optimizer`.

    Returns:
        A tree like `opt_state`, with a tuple of axis names at each leaf.
    """
    flat_axes = _named_axes(axes)

    def leaf(path: tuple[Any, ...], x: jax.Array) -> tuple[str, ...]:
        words = path_name(path).split('/')
        moment = words.pop() if words[-1] in _MOMENTS else ''
        for start in range(len(words)):
            names = flat_axes.get('/'.join(words[start:]))
            if names is not None:
                return moment_axes(names, moment) if moment else names
        if x.ndim:
            raise AssertionError(f'optimizer state {path_name(path)} {x.shape} belongs to no parameter')
        return ()

    return jax.tree_util.tree_map_with_path(leaf, opt_state)
