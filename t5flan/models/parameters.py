"""How parameters are created, named and described.

A parameter is an `nnx.Param` that holds a float32 array and its logical axes as metadata `axes`. Its path in the module
tree, written with slashes ('decoder/layers/mlp/wo/kernel'), is its name everywhere: in checkpoints, `freeze` patterns
and conversion, and in the random key that initializes it.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from t5flan.errors import UserError

Initializer = Callable[..., jax.Array]


@dataclasses.dataclass(frozen=True)
class Scope:
    """A position in the module tree, where parameters are created: `scope / 'mlp'` is one level down.

    The key is folded with each name on the way down, and with the layer's number inside a stack. So a parameter's
    initial value depends on its path only, not on the order of creation, other parameters or the mesh.
    """

    key: jax.Array
    layers: int | None = None  # inside a stack: its number of layers

    def __truediv__(self, name: str) -> 'Scope':
        return dataclasses.replace(self, key=jax.random.fold_in(self.key, zlib.crc32(name.encode())))

    def stacked(self, layers: int) -> 'Scope':
        """A scope whose parameters have a leading axis of `layers`, with a key for each layer."""
        return dataclasses.replace(self, layers=layers)

    def parameter(self, name: str, shape: tuple[int, ...], axes: tuple[str, ...], init: Initializer) -> nnx.Param:
        """A parameter of `shape` with logical `axes` (one name each); inside a stack [layers, *shape]."""
        key = (self / name).key
        if self.layers is None:
            return nnx.Param(init(key, shape, jnp.float32), axes=axes)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(self.layers))
        return nnx.Param(jax.vmap(lambda key: init(key, shape, jnp.float32))(keys), axes=('layers', *axes))


def fan_in(num_input_axes: int, *, truncated: bool = False, variance: float = 1.0) -> Initializer:
    """A normal initializer of variance `variance / inputs`, as in T5X (truncated at two deviations for MLP and logits).

    `num_input_axes` leading axes are summed over: 1 for [D, N, H], 2 for [N, H, D] (T5X merges N and H).
    """

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        axes = tuple(range(len(shape)))
        kind: Literal['truncated_normal', 'normal'] = 'truncated_normal' if truncated else 'normal'
        inputs, outputs = axes[:num_input_axes], axes[num_input_axes:]
        return jax.nn.initializers.variance_scaling(variance, 'fan_in', kind, inputs, outputs)(key, shape, dtype)

    return init


def path_name(path: tuple[Any, ...]) -> str:
    """The slash-separated name of a `jax.tree_util` key path, without the `value` inside an `nnx.Param`."""
    parts = [str(getattr(part, 'key', getattr(part, 'name', getattr(part, 'idx', part)))) for part in path]
    return '/'.join(parts[:-1] if parts[-1] == 'value' else parts)


def named_parameters(tree: Any) -> dict[str, Any]:
    """'encoder/layers/mlp/wo/kernel' -> array, in tree order, of a model or a tree with a model's structure."""
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def logical_axes(model: nnx.Module) -> Any:
    """A tree with the model's structure whose leaves are tuples of logical axes.

    `jax.tree.map(f, model, logical_axes(model))` calls f with each array and its tuple of axes.
    """
    return jax.tree.unflatten(jax.tree.structure(model), list(named_axes(model).values()))


def named_axes(model: nnx.Module) -> dict[str, tuple[str, ...]]:
    """'encoder/layers/mlp/wo/kernel' -> ('layers', 'mlp', 'embed')."""
    parameters = jax.tree.leaves(model, is_leaf=lambda x: isinstance(x, nnx.Param))
    axes = [parameter.get_metadata('axes') for parameter in parameters]
    return dict(zip(named_parameters(model), axes, strict=True))


def replace_parameters(tree: Any, values: Mapping[str, Any]) -> Any:
    """`tree` with every leaf replaced by the value of its name.

    Raises:
        UserError: the names or shapes differ from those of `tree`.
    """
    leaves = named_parameters(tree)
    if leaves.keys() != values.keys():
        missing, unknown = sorted(leaves.keys() - values.keys()), sorted(values.keys() - leaves.keys())
        differ = f'{len(missing)} missing {missing[:3]}, {len(unknown)} unknown {unknown[:3]}'
        trained = 'Set ModelConfig to the values they were trained with.'
        raise UserError(f'parameters do not fit the model: {differ}. {trained}')
    for name, leaf in leaves.items():
        if leaf.shape != values[name].shape:
            expected = f'the model expects {leaf.shape}. Set ModelConfig to the values it was trained with.'
            raise UserError(f'{name} has shape {values[name].shape}, {expected}')
    return jax.tree.unflatten(jax.tree.structure(tree), [values[name] for name in leaves])


def parameter_count(tree: Any) -> int:
    """The number of scalars in a tree of arrays or of their shapes."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
