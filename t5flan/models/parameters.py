"""Parameters: how they are made, named and described.

A parameter is an `nnx.Param` holding a float32 array, with its logical axes as metadata `axes`. Its path in the module
tree, written with slashes ('decoder/layers/mlp/wo/kernel'), is its name everywhere: in checkpoints, in `freeze`
patterns, in conversion, and in the random key that initialises it.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t5flan.errors import UserError

Initializer = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Scope:
    """Where in the tree parameters are being made.

    The key is folded with each name on the way down, and with the layer's number inside a stack: a parameter's first
    value depends on its path alone, not on the order of making, on the other parameters or on the mesh.
    """

    key: jax.Array
    layers: int | None = None  # inside a stack: how many layers every parameter here holds

    def __truediv__(self, name: str) -> 'Scope':
        return dataclasses.replace(self, key=jax.random.fold_in(self.key, zlib.crc32(name.encode())))

    def stacked(self, layers: int) -> 'Scope':
        """Parameters made under this scope get a leading axis of `layers`, each layer from its own key."""
        return dataclasses.replace(self, layers=layers)

    def parameter(self, name: str, shape: tuple[int, ...], axes: tuple[str, ...], init: Initializer) -> nnx.Param:
        """A parameter of `shape` with logical `axes` (one name each); inside a stack [layers, *shape]."""
        key = (self / name).key
        if self.layers is None:
            return nnx.Param(init(key, shape, jnp.float32), axes=axes)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(self.layers))
        return nnx.Param(jax.vmap(lambda key: init(key, shape, jnp.float32))(keys), axes=('layers', *axes))


def fan_in(num_input_axes: int, *, truncated: bool = False, variance: float = 1.0) -> Initializer:
    """Normal of variance `variance / inputs`, as in T5X (cut at two deviations for the MLP and the logits).

    `num_input_axes` says how many leading axes are summed over: 1 for [D, N, H], 2 for [N, H, D]; T5X joins N and H.
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        axes = tuple(range(len(shape)))
        draw = jax.nn.initializers.variance_scaling(
            variance,
            'fan_in',
            'truncated_normal' if truncated else 'normal',
            in_axis=axes[:num_input_axes],
            out_axis=axes[num_input_axes:],
        )
        return draw(key, shape, dtype)

    return init


def path_name(path: tuple[Any, ...]) -> str:
    """A key path of `jax.tree_util` as a slash-separated name, without the `value` inside an `nnx.Param`."""
    parts = [str(getattr(part, 'key', getattr(part, 'name', getattr(part, 'idx', part)))) for part in path]
    return '/'.join(parts[:-1] if parts[-1] == 'value' else parts)


def named_parameters(tree: Any) -> dict[str, Any]:
    """'encoder/layers/mlp/wo/kernel' -> array, in tree order. `tree` is a model, or has a model's structure."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def logical_axes(model: nnx.Module) -> Any:
    """A tree of the model's structure whose leaves are tuples of logical axes.

    Use it beside the model: `jax.tree.map(f, model, logical_axes(model))` gives f each array and its axes whole.
    """
    parameters = jax.tree.leaves(model, is_leaf=lambda x: isinstance(x, nnx.Param))
    return jax.tree.unflatten(jax.tree.structure(model), [parameter.get_metadata('axes') for parameter in parameters])


def named_axes(model: nnx.Module) -> dict[str, tuple[str, ...]]:
    """'encoder/layers/mlp/wo/kernel' -> ('layers', 'mlp', 'embed')."""
    parameters = jax.tree.leaves(model, is_leaf=lambda x: isinstance(x, nnx.Param))
    return {
        name: parameter.get_metadata('axes')
        for name, parameter in zip(named_parameters(model), parameters, strict=True)
    }


def replace_parameters(tree: Any, values: Mapping[str, Any]) -> Any:
    """`tree` with every leaf taken from `values` by name.

    Raises:
        UserError: names or shapes are not those of `tree`.
    """
    leaves = named_parameters(tree)
    if leaves.keys() != values.keys():
        missing, unknown = sorted(leaves.keys() - values.keys()), sorted(values.keys() - leaves.keys())
        raise UserError(
            f'parameters do not fit the model: missing {missing[:3]}, unknown {unknown[:3]} '
            f'({len(missing)} and {len(unknown)} in number). Set ModelConfig as the parameters were trained.'
        )
    for name, leaf in leaves.items():
        if leaf.shape != values[name].shape:
            raise UserError(
                f'{name} has shape {values[name].shape}, the model expects {leaf.shape}. '
                'Set ModelConfig as the parameters were trained.'
            )
    return jax.tree.unflatten(jax.tree.structure(tree), [values[name] for name in leaves])


def parameter_count(tree: Any) -> int:
    """How many numbers the parameters hold (of arrays or of their shapes)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
