"""T5's relative position bias: distances to buckets, one vector per head for all distances, and tiles cut from it.

The bias depends on the distance only, so a [T, S] tile holds just T + S - 1 different numbers per head (it is a
Toeplitz matrix). A reshape makes a tile from that vector, and turns the gradient of a tile into the vector's.

N heads, R buckets, T queries, S keys, W = T + S - 1 distances.
"""

import dataclasses
import functools
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from t5flan.errors import UserError


@dataclasses.dataclass(frozen=True)
class RelativeBias:
    """How distances fall into buckets (arXiv:1910.10683, section 2.1; the T5 code is the definition).

    Attributes:
        bidirectional: True: half of the buckets are for keys after the query (encoder). False: those share bucket 0
            (decoder).
        num_buckets: of both directions together.
        max_distance: from this distance on, all keys of a direction share its last bucket.
    """

    bidirectional: bool
    num_buckets: int = 32
    max_distance: int = 128

    def __post_init__(self) -> None:
        directions = 2 if self.bidirectional else 1
        if self.num_buckets % directions or self.num_buckets < 2 * directions:
            expected = f'a multiple of {directions}, at least {2 * directions}. Set ModelConfig.relative_buckets.'
            raise UserError(f'relative_buckets={self.num_buckets}, expected {expected}')
        exact = self.num_buckets // directions // 2
        if self.max_distance <= exact:
            expected = f'more than {exact}, the distances that have their own bucket'
            change = 'Set ModelConfig.relative_max_distance.'
            raise UserError(f'relative_max_distance={self.max_distance}, expected {expected}. {change}')


@functools.lru_cache(maxsize=64)
def _first_distances(buckets: int, max_distance: int) -> tuple[int, ...]:
    """The smallest distance of each bucket after the exact ones, for one direction.

    T5 computes `exact + int(log(d / exact) / log(max_distance / exact) * m)` with m = buckets - exact. Bucket exact + j
    starts where d^m >= exact^(m-j) max_distance^j: integers, so that the rounding of a logarithm does not matter.
    """
    exact = buckets // 2
    m = buckets - exact
    distances, d = [], exact
    for j in range(1, m):
        while d**m < exact ** (m - j) * max_distance**j:
            d += 1
        distances.append(d)
    return tuple(distances)


def relative_buckets(relative_positions: Any, bias: RelativeBias, xp: ModuleType = jnp) -> Any:
    """Relative positions (key index - query index), any shape -> int32 buckets of that shape; `xp` is `numpy` or `jnp`.

    >>> import numpy as np
    >>> relative_buckets(np.array([-200, -9, -1, 0, 1, 200]), RelativeBias(bidirectional=True), np)
    array([15,  8,  1,  0, 17, 31], dtype=int32)
    >>> relative_buckets(np.array([-200, -17, -1, 0, 1, 200]), RelativeBias(bidirectional=False), np)
    array([31, 16,  1,  0,  0,  0], dtype=int32)
    """
    relative_positions = xp.asarray(relative_positions, xp.int32)
    buckets = bias.num_buckets // 2 if bias.bidirectional else bias.num_buckets
    after = (relative_positions > 0).astype(xp.int32)
    first = buckets * after if bias.bidirectional else 0 * after
    distance = xp.abs(relative_positions) if bias.bidirectional else xp.maximum(-relative_positions, 0)
    bucket = xp.minimum(distance, buckets // 2)
    for least in _first_distances(buckets, bias.max_distance):
        bucket = bucket + (distance >= least).astype(xp.int32)
    return first + bucket


def bias_vector(
    table_NR: jax.Array, bias: RelativeBias, queries: int, keys: int, q_offset: int | jax.Array
) -> jax.Array:
    """The bias of every distance from T `queries` to S `keys`, float32 [N, T + S - 1].

    Element w belongs to the distance w - (T - 1) - q_offset, so query t reads key s at w = s - t + T - 1.
    """
    return bias_of_distances(table_NR, bias, jnp.arange(queries + keys - 1, dtype=jnp.int32) - (queries - 1) - q_offset)


def bias_of_distances(table_NR: jax.Array, bias: RelativeBias, distance_W: jax.Array) -> jax.Array:
    """The bias of distances (key index - query index) [W], float32 [N, W]."""
    # A product with a one-hot matrix, not a gather: it is exact, and its gradient is a product too, not a scatter.
    chosen_WR = jax.nn.one_hot(relative_buckets(distance_W, bias), bias.num_buckets, dtype=jnp.float32)
    return jnp.einsum('NR,WR->NW', table_NR.astype(jnp.float32), chosen_WR, precision='highest')


def toeplitz(vector: jax.Array, rows: int, columns: int) -> jax.Array:
    """[..., rows + columns - 1] -> [..., rows, columns] whose element [i, j] is vector[j - i + rows - 1].

    Each row is the one above shifted by one: copies of the vector, of length W, are read as rows of length W - 1.

    >>> toeplitz(jnp.arange(5), rows=3, columns=3)
    Array([[2, 3, 4],
           [1, 2, 3],
           [0, 1, 2]], dtype=int32)
    """
    *leading, width = vector.shape
    if width != rows + columns - 1:
        raise ValueError(f'a Toeplitz matrix of {rows} x {columns} needs {rows + columns - 1} numbers, got {width}')
    width += 1
    padded = jnp.pad(vector, [(0, 0)] * len(leading) + [(0, 1)])
    flat = jnp.broadcast_to(padded[..., None, :], (*leading, rows, width)).reshape(*leading, rows * width)
    flat = flat[..., rows - 1 : rows - 1 + rows * (width - 1)]
    return flat.reshape(*leading, rows, width - 1)[..., :columns]


def toeplitz_transposed(vector: jax.Array, rows: int, columns: int) -> jax.Array:
    """`toeplitz(vector, rows, columns)` with its last two axes swapped, without a transposition.

    It is assembled from square tiles, since the reshape of one tall matrix would need columns^2 numbers.
    """
    *leading, _ = vector.shape
    tiles = -(-columns // rows)
    padded = jnp.pad(vector, [(0, 0)] * len(leading) + [(0, (tiles + 1) * rows - vector.shape[-1])])
    parts = padded.reshape(*leading, tiles + 1, rows)
    windows = jnp.concatenate([parts[..., :-1, :], parts[..., 1:, :]], axis=-1)[..., : 2 * rows - 1]
    square = toeplitz(windows[..., ::-1], rows, rows)
    return square.reshape(*leading, tiles * rows, rows)[..., :columns, :]


def bias_tile(vector_NW: jax.Array, start: int | jax.Array, block: int, keys: int, *, transposed: bool) -> jax.Array:
    """The bias of queries start ... start + block - 1: [N, block, S], or [N, S, block] if `transposed`.

    `vector_NW` is that of all T queries, from `bias_vector`; `start` is a multiple of `block` and may be traced.
    """
    queries = vector_NW.shape[1] - keys + 1
    part = jax.lax.dynamic_slice_in_dim(vector_NW, queries - block - start, block + keys - 1, axis=1)
    return (toeplitz_transposed if transposed else toeplitz)(part, block, keys)
