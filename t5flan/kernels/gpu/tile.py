"""One tile of the Pallas GPU kernels: its logits, T5's bias, its mask, and which tiles are skipped.

**The bias.** A head has 2 * reach + 1 numbers, one for each distance up to where T5's buckets depend on its sign only.
A tile near the diagonal reads vector[key - query], from a vector that stays in the L1 cache. A tile whose keys all lie
at least `reach` before its queries, or all after them, adds one number. So the loop over tiles is split into three, one
for each zone, without a branch inside. Causality too compares positions only near the diagonal.

Logits have base 2 (log2(e) is folded into the scale and the vector), since exp2 is what the hardware has. Pallas'
Triton backend requires arrays of power-of-two sizes, keeps nothing between two programs of a grid, and can neither
slice nor concatenate loaded arrays.

B batch, T queries, S keys, N heads, K key-value heads, H head_dim, I and O blocks of queries and of keys, C and P
queries and keys of a tile.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from t5flan.kernels.operands import MASKED, AttentionSpec, KernelArrays, is_near, visible_tiles

LEAST_SIZE = 16  # of the axes of a matrix product
LOG2_E = math.log2(math.e)


class Blocks(NamedTuple):
    """The size of a kernel's tiles, and the resources of one of its programs."""

    queries: int  # C, a power of two, at least 16
    keys: int  # P, likewise
    warps: int  # of 32 threads
    stages: int  # tiles that are loaded ahead


class Tiling(NamedTuple):
    """The blocks of the four kernels; those of the sums along diagonals are square."""

    forward: Blocks
    gradient_of_queries: Blocks
    gradient_of_keys: Blocks
    diagonals: Blocks

    @property
    def padding(self) -> tuple[int, int]:
        """The numbers that T and S must be multiples of."""
        return max(blocks.queries for blocks in self), max(blocks.keys for blocks in self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TileSpec(AttentionSpec):
    """The options of a call, and the sizes that the kernels are built for."""

    share: int  # query heads that read one key-value head
    prefix: bool  # with `causal`: keys may belong to a prefix
    masked: Literal['', 'keys', 'pairs']  # keys are hidden from all queries alike; or segments are compared ('pairs')
    tiling: Tiling
    interpret: Any  # Pallas' argument

    @property
    def reach(self) -> int:
        """The distance from which the bias is constant; 0 without a bias."""
        return 0 if self.bias is None else self.bias.max_distance

    @property
    def zones(self) -> tuple[str, ...]:
        """The zones of tiles: keys before, near or after their queries; one zone if positions do not matter.

        In a window every tile is near: the few that are seen compare positions.
        """
        if self.window is not None:
            return ('near',)
        if self.bias is None and not self.causal:
            return ('before',)
        return ('before', 'near', 'after') if self.looks_after else ('before', 'near')

    @property
    def looks_after(self) -> bool:
        """Whether queries see keys after them."""
        return not self.causal or self.prefix


class Part(NamedTuple):
    """The part of an array that a program reads: `ref[before, rows, after]`."""

    ref: Any
    before: tuple = ()
    after: tuple = ()


Refs = dict[str, Part]  # the arrays of a kernel, by name
Arrays = dict[str, jax.Array]


class At(NamedTuple):
    """The index of a tile's first query and first key, int32 scalars; `query` without the offset."""

    query: Any
    key: Any


def bounds(spec: TileSpec, arrays: KernelArrays, blocks: Blocks, axis: int) -> jax.Array:
    """The range [first, end) of tiles in which a block of queries (axis 2) or keys (axis 1) is seen, [B, I or O, 2].

    Unseen tiles inside the range are computed.
    """
    seen_BIO = visible_tiles(arrays, blocks.queries, blocks.keys, spec.causal, spec.window, spec.far_prefix)
    end = jnp.where(jnp.any(seen_BIO, axis), seen_BIO.shape[axis] - jnp.argmax(jnp.flip(seen_BIO, axis), axis), 0)
    return jnp.stack([jnp.argmax(seen_BIO, axis), end], axis=-1).astype(jnp.int32)


def over_keys(spec: TileSpec, blocks: Blocks, refs: Refs, query: Any, add_tile: Callable, carry: tuple) -> tuple:
    """`add_tile(zone, first key, keys, carry)` for all tiles of the block of queries that starts at `query`."""
    at = query + refs['q_offset'].ref[0]
    before = _floor(at + 1 - spec.reach, blocks.keys)
    near = _ceil(at + blocks.queries - 1 + max(spec.reach, 1), blocks.keys)
    return _over(spec.zones, refs['bounds'].ref, (before, near), blocks.keys, add_tile, carry)


def over_queries(spec: TileSpec, blocks: Blocks, refs: Refs, key: Any, add_tile: Callable, carry: tuple) -> tuple:
    """`add_tile(zone, first query, queries, carry)` for all tiles of the block of keys that starts at `key`."""
    at = key - refs['q_offset'].ref[0]
    after = _floor(at + 1 - max(spec.reach, 1), blocks.queries)
    near = _ceil(at + blocks.keys - 1 + spec.reach, blocks.queries)
    ends = (after, near) if 'after' in spec.zones else (near,)
    return _over(spec.zones[::-1], refs['bounds'].ref, ends, blocks.queries, add_tile, carry)


def _over(zones: tuple[str, ...], bounds_ref: Any, ends: tuple, length: int, add_tile: Callable, carry: tuple) -> tuple:
    first, last = bounds_ref[0], bounds_ref[1]
    for i, zone in enumerate(zones):
        end = last if i == len(zones) - 1 else jnp.clip(ends[i], first, last)
        # Tiles near the diagonal are halved: the bias they read takes registers and shared memory as well.
        parts = 2 if zone == 'near' and length >= 2 * LEAST_SIZE else 1
        part = length // parts
        step = lambda block, carry, zone=zone, part=part: add_tile(zone, block * part, part, carry)
        carry = lax.fori_loop(first * parts, end * parts, step, carry)
        first = end
    return carry


def _floor(x: Any, block: int) -> Any:
    return lax.div(jnp.maximum(x, 0), jnp.int32(block))


def _ceil(x: Any, block: int) -> Any:
    return _floor(x + block - 1, block)


def rows(part: Part, start: Any, length: int) -> jax.Array:
    """Rows start ... start + length - 1 of a part."""
    index = (*part.before, pl.ds(start, length), *part.after)
    return part.ref[index + (slice(None),) * (len(part.ref.shape) - len(index))]


def _bias(spec: TileSpec, refs: Refs, zone: str, distance: jax.Array | None) -> jax.Array | None:
    """The bias of a tile near the diagonal, or the one number of a tile far from it; None without a bias."""
    if spec.bias is None:
        return None
    part = refs['bias']
    if spec.window is not None and distance is not None:  # a tile of the window may be far from the diagonal
        distance = jnp.clip(distance, -spec.reach, spec.reach)
    ends = {'before': 0, 'after': part.ref.shape[-1] - 1}
    at = ends[zone] if distance is None else distance + (part.ref.shape[-1] - 1) // 2
    return part.ref[(*part.before, at)]


def logits(
    spec: TileSpec, products: jax.Array, zone: str, refs: Refs, at: At, query_ids_C: jax.Array | None, key_axis: int
) -> tuple[jax.Array, jax.Array | None]:
    """Products of queries and keys -> masked logits of base 2, and the derivative of the soft cap (None without one).

    Both are [C, P] if `key_axis` is 1, else [P, C]. `query_ids_C` is None unless segments are compared.
    """
    x, slope = products, None
    factor = (spec.scale if spec.soft_cap is None else spec.soft_cap) * LOG2_E
    if spec.soft_cap is not None:
        x = jnp.tanh(x * (spec.scale / spec.soft_cap))
        slope = 1.0 - x * x
    key_ids_P = rows(refs['key_ids'], at.key, products.shape[key_axis]) if spec.masked else None
    distance = distances(refs, at, products.shape, key_axis) if zone == 'near' else None
    added, seen_P = _bias(spec, refs, zone, distance), _keys_seen(spec, zone, key_ids_P)
    if seen_P is not None:  # one number for each key, combined with the bias of a far tile
        of_key = lambda x_P: jnp.expand_dims(x_P, 1 - key_axis)
        if added is None or zone != 'near':
            added = of_key(jnp.where(seen_P, 0.0 if added is None else added, MASKED))
        else:
            added = added + of_key(jnp.where(seen_P, 0.0, MASKED))
    x = x * factor if added is None else multiply_add(spec, x, factor, added)
    allowed = _pairs_allowed(spec, distance, query_ids_C, key_ids_P, key_axis)
    return (x if allowed is None else jnp.where(allowed, x, MASKED)), slope


def multiply_add(spec: TileSpec, x: jax.Array, factor: float, added: jax.Array) -> jax.Array:
    """Returns x * factor + added, in one instruction: Triton does not fuse the two."""
    if spec.interpret:
        return x * factor + added
    arguments = x, jnp.full_like(x, factor), jnp.broadcast_to(added, x.shape)
    return _instruction('fma.rn.f32 $0, $1, $2, $3;', arguments)


def exp2(spec: TileSpec, x: jax.Array) -> jax.Array:
    """2^x in one instruction, which flushes denormal results to zero; exact ones would take three more."""
    return jnp.exp2(x) if spec.interpret else _instruction('ex2.approx.ftz.f32 $0, $1;', (x,))


def _instruction(text: str, arguments: tuple[jax.Array, ...]) -> jax.Array:
    shapes = [jax.ShapeDtypeStruct(arguments[0].shape, jnp.float32)]
    types = ','.join(['=f'] + ['f'] * len(arguments))
    return plgpu.elementwise_inline_asm(text, args=arguments, constraints=types, pack=1, result_shape_dtypes=shapes)[0]


def distances(refs: Refs, at: At, shape: tuple[int, ...], key_axis: int) -> jax.Array:
    """(key index) - (query index + q_offset) of a tile's pairs, int32."""
    first = at.key - at.query - refs['q_offset'].ref[0]
    iota = lambda axis: lax.broadcasted_iota(jnp.int32, shape, axis)
    return first + iota(key_axis) - iota(1 - key_axis)


def _keys_seen(spec: TileSpec, zone: str, key_ids_P: jax.Array | None) -> jax.Array | None:
    """Which keys the tile's queries see, where that is the same for all queries; None if all keys are seen."""
    if key_ids_P is None:
        return None
    seen_P = key_ids_P >> 1 == 1 if spec.masked == 'keys' else None
    if spec.causal and zone == 'after':
        prefix_P = key_ids_P & 1 == 1
        return prefix_P if seen_P is None else seen_P & prefix_P
    return seen_P


def _pairs_allowed(
    spec: TileSpec, distance: Any, query_ids_C: jax.Array | None, key_ids_P: jax.Array | None, key_axis: int
) -> jax.Array | None:
    """Which query sees which key, besides `_keys_seen`; None if every query sees every key."""
    of_key = lambda x_P: jnp.expand_dims(x_P, 1 - key_axis)
    masks = []
    if query_ids_C is not None and key_ids_P is not None:
        masks.append(of_key(key_ids_P >> 1) == jnp.expand_dims(query_ids_C, key_axis))
    if spec.far_prefix and distance is not None and key_ids_P is not None:
        distance = jnp.where(of_key(key_ids_P & 1 == 1), 0, distance)
    if spec.window is not None and distance is not None:
        masks.append(is_near(spec.window, distance))
    if spec.causal and distance is not None:
        if spec.prefix and key_ids_P is not None:  # keys of the prefix count as before every query
            distance = jnp.where(of_key(key_ids_P & 1 == 1), -1, distance)
        masks.append(distance <= 0)
    return functools.reduce(operator.and_, masks) if masks else None


def dropout_factor(spec: TileSpec, refs: Refs, key: Any, keys: int, key_axis: int) -> jax.Array | None:
    """The factor of each key of a tile; None without dropout."""
    if spec.keep_rate is None:
        return None
    return jnp.expand_dims(rows(refs['keep'], key, keys) * (1.0 / spec.keep_rate), 1 - key_axis)
