"""Which of several adapters each row of a batch has: modules that hold the choice, and `choose`, which changes it.

Number 0 is no adapter, number i the i-th. B rows of a batch.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

_CHOICE = 'adapter_of_row'


class Chooser(nnx.Module):
    """A module that holds the choice."""

    def hold_choice(self, layers: tuple[int, ...] = ()) -> None:
        """Gives the module a choice, none at first; `layers` is () or the number of layers of its parameters."""
        choice = jnp.zeros((*layers, 1), jnp.int32)
        setattr(self, _CHOICE, nnx.Param(choice, axes=(*('layers' for _ in layers), 'adapters')))

    def chosen(self, rows: int) -> jax.Array:
        """The number of each of `rows` rows, int32 [rows].

        There may be several rows for each chosen one, which are its beams or samples.
        """
        chosen_B = getattr(self, _CHOICE)[...]
        return jnp.repeat(chosen_B, rows // len(chosen_B), total_repeat_length=rows)


class Extension(Chooser):
    """Base class of what is added to a module where it stands; the module may have other extensions already."""

    def __init__(self, base: nnx.Module):
        copy_attributes(base, self)


class VirtualTokens(nnx.Module):
    """Vectors, or keys and values, that stand before the first token: those of several adapters, as one table.

    In a row of the table the ones of an adapter stand at the right, and the `unread` places at their left are padding.
    G adapters, P the most virtual tokens of one.
    """

    def __init__(self, of_adapters: Mapping[int, jax.Array]):
        """`of_adapters`: number -> [P, ...]."""
        shapes = [(number, x.shape) for number, x in of_adapters.items()]
        count, most = 1 + max(of_adapters), max(shape[0] for _, shape in shapes)
        table = jnp.zeros((count, most, *shapes[0][1][1:]), jnp.float32)
        unread = np.full(count, most, np.int32)
        for number, x in of_adapters.items():
            unread[number] = most - len(x)
            table = table.at[number, unread[number] :].set(x)
        self.table = nnx.Param(table, axes=('adapters', 'prompt', *[None] * (table.ndim - 2)))
        self.unread_of = nnx.Param(jnp.asarray(unread), axes=('adapters',))

    def _number(self, chosen_B: jax.Array) -> jax.Array:
        return jnp.where(chosen_B < len(self.unread_of[...]), chosen_B, 0)  # adapters after the last one in the table

    def of_rows(self, chosen_B: jax.Array) -> jax.Array:
        """The virtual tokens of each row, [B, P, ...]."""
        return self.table[...][self._number(chosen_B)]

    def unread(self, chosen_B: jax.Array) -> jax.Array:
        """How many places at the left of each row are padding, int32 [B]."""
        return self.unread_of[...][self._number(chosen_B)]

    def read(self, chosen_B: jax.Array) -> jax.Array:
        """1, or 0 where a place is padding: int32 [B, P]."""
        places_P = jnp.arange(self.table.shape[1], dtype=jnp.int32)
        return (places_P[None, :] >= self.unread(chosen_B)[:, None]).astype(jnp.int32)


def extended(module: nnx.Module, extension: type[Extension]) -> Any:
    """A module with the attributes of the given one, whose methods are those of the extension and then its own."""
    return _extended(extension, type(module))(module)


@functools.cache  # equal classes, since functions are compiled for each class of a module
def _extended(extension: type[Extension], kind: type[nnx.Module]) -> Any:
    return type(f'{extension.__name__}Of{kind.__name__}', (extension, kind), {'__doc__': extension.__doc__})


def copy_attributes(base: nnx.Module, to: nnx.Module) -> None:
    """Gives `to` all attributes of `base`: the same arrays."""
    for name, value in vars(base).items():
        if not name.startswith('_'):
            setattr(to, name, value)


def choose(tree: Any, numbers_B: Any) -> Any:
    """A model, or what decoding makes of one, in which row b of a batch has adapter numbers_B[b]; 0 is none."""

    def put(path: tuple[Any, ...], leaf: Any) -> Any:
        if not any(getattr(key, 'name', getattr(key, 'key', None)) == _CHOICE for key in path):
            return leaf
        shape = (*leaf.shape[:-1], len(numbers_B))
        return (np if isinstance(numbers_B, np.ndarray) else jnp).broadcast_to(numbers_B, shape)

    return jax.tree_util.tree_map_with_path(put, tree)
