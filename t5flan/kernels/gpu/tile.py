"""One tile of the Pallas GPU kernels: its logits, the bias of T5 in them, who sees whom, and which tiles are left out.

**The bias.** A head has 2 * reach + 1 numbers, one for each distance up to where T5's buckets tell no more than its sign.
On a GPU every thread may read where it likes, so that a tile near the diagonal reads vector[key - query], from a vector
of a few kilobytes that stays in the first cache. A tile whose keys all lie at least `reach` before its queries, or all after them,
adds one number. The loop over tiles is therefore three, one for each zone, and no loop holds a branch: of long inputs
almost all tiles are far ones, which cost as much as with no bias at all. Causality needs a look at positions near the
diagonal alone, for which the same zones serve.

Logits are of base 2 (times log2(e), which goes into the scale and the vector), as exp2 is what the hardware has.

Pallas' Triton backend takes arrays of powers of two, keeps nothing between two programs of a grid, and has neither slices
nor concatenations of what was loaded. Inside kernels no `//` or `%` of arrays: both ask the device at hand for its sort,
and there is none where a program is only compiled.

B batch, T queries, S keys, N heads, K key-value heads, H head_dim, I and O blocks of queries and of keys, C and P queries
and keys of a tile.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from t5flan.kernels.chunked import MASKED
from t5flan.kernels.tpu import tile as flash_tpu_tile

LEAST_SIZE = 16  # of a product's axes
LOG2_E = math.log2(math.e)
# Logits that are masked lie far below every running maximum, so that their exponential is zero.
LEAST_MAXIMUM = 0.1 * MASKED


class Blocks(NamedTuple):
    """What one program of a kernel works on, and with what."""

    queries: int  # C, a power of two from 16 on
    keys: int  # P, likewise
    warps: int  # of 32 threads
    stages: int  # tiles that are loaded ahead


class Tiling(NamedTuple):
    """The blocks of the four kernels. Those of the sums by diagonals are square."""

    forward: Blocks
    gradient_of_queries: Blocks
    gradient_of_keys: Blocks
    diagonals: Blocks

    @property
    def padding(self) -> tuple[int, int]:
        """What the numbers of queries and of keys must be multiples of."""
        return max(blocks.queries for blocks in self), max(blocks.keys for blocks in self)


@dataclasses.dataclass(frozen=True)
class TileForm:
    """What is fixed when the kernels are built."""

    share: int  # query heads that read one key-value head
    causal: bool
    prefix: bool  # with `causal`: keys may be of a prefix
    masked: str  # '' nothing, 'keys' what keys exist, 'pairs' which segment sees which
    kept: float | None  # `keep_BNS` is given, and this is its share of ones
    reach: int | None  # from this distance on the bias is constant; None: no bias
    scale: float
    soft_cap: float | None
    precision: Any
    tiling: Tiling
    interpret: bool

    @property
    def zones(self) -> tuple[str, ...]:
        """Where tiles may lie, by what their keys are to their queries; one zone if no position matters."""
        if self.reach is None and not self.causal:
            return ('before',)
        return ('before', 'near') if self.causal and not self.prefix else ('before', 'near', 'after')


class Arrays(NamedTuple):
    """What the kernels read; None where an option is off. T and S are multiples of the blocks, H is a power of two."""

    q_BTNH: jax.Array
    k_BSKH: jax.Array
    v_BSKH: jax.Array
    bias_NW: jax.Array | None  # float32, of the distances -w ... w, where w is more than `reach` and any tile near it
    keep_BNS: jax.Array | None  # float32, 0 or 1: dropout keeps this key for this head
    query_ids_BT: jax.Array | None  # int32: a query sees keys of an equal id
    key_ids_BS: jax.Array | None  # int32: 2 * id, plus 1 for a key of the prefix
    q_offset: jax.Array  # [1] int32


class Part(NamedTuple):
    """What a program reads of an array that it was given: `ref[before, rows, after]`."""

    ref: Any
    before: tuple = ()
    after: tuple = ()


class At(NamedTuple):
    """The places of a tile's first query and first key, int32 scalars; `query` without the offset."""

    query: Any
    key: Any


def bounds(form: TileForm, arrays: Arrays, blocks: Blocks, axis: int) -> jax.Array:
    """The first tile and the end of those that a block of queries (axis 2) or keys (axis 1) is seen in, [B, I or O, 2].

    What is seen is decided as for the TPU kernels (`tpu/tile.visible_tiles`); unseen tiles in between are computed.
    """
    flat = lambda x: jax.ShapeDtypeStruct((*x.shape[:2], x.shape[2] * x.shape[3]), x.dtype)
    ids = [None if x is None else x[:, None] for x in (arrays.query_ids_BT, arrays.key_ids_BS)]
    tpu_form = flash_tpu_tile.TileForm(
        1, 1, 1, blocks.queries, blocks.keys, form.causal, bool(form.masked), None, None, 1.0, None, None, False
    )
    seen_BIO = flash_tpu_tile.visible_tiles(
        tpu_form,
        flash_tpu_tile.Arrays(flat(arrays.q_BTNH), flat(arrays.k_BSKH), None, None, None, *ids, arrays.q_offset),
    )
    end = jnp.where(jnp.any(seen_BIO, axis), seen_BIO.shape[axis] - jnp.argmax(jnp.flip(seen_BIO, axis), axis), 0)
    return jnp.stack([jnp.argmax(seen_BIO, axis), end], axis=-1).astype(jnp.int32)


def over_keys(form: TileForm, blocks: Blocks, refs: dict, query: Any, add_tile: Callable, carry: tuple) -> tuple:
    """`add_tile(zone, first key, keys, carry)` for all tiles of the block of queries that begins at `query`."""
    at = query + refs['q_offset'].ref[0]
    before = _floor(at + 1 - (form.reach or 0), blocks.keys)
    near = _ceil(at + blocks.queries - 1 + max(form.reach or 0, 1), blocks.keys)
    return _over(form.zones, refs['bounds'].ref, (before, near), blocks.keys, add_tile, carry)


def over_queries(form: TileForm, blocks: Blocks, refs: dict, key: Any, add_tile: Callable, carry: tuple) -> tuple:
    """`add_tile(zone, first query, queries, carry)` for all tiles of the block of keys that begins at `key`."""
    at = key - refs['q_offset'].ref[0]
    after = _floor(at + 1 - max(form.reach or 0, 1), blocks.queries)
    near = _ceil(at + blocks.keys - 1 + (form.reach or 0), blocks.queries)
    names = tuple(reversed(form.zones))
    return _over(
        names, refs['bounds'].ref, (after, near) if 'after' in names else (near,), blocks.queries, add_tile, carry
    )


def _over(zones: tuple[str, ...], bounds_ref: Any, ends: tuple, length: int, add_tile: Callable, carry: tuple) -> tuple:
    first, last = bounds_ref[0], bounds_ref[1]
    for i, zone in enumerate(zones):
        end = last if i == len(zones) - 1 else jnp.clip(ends[i], first, last)
        # Tiles near the diagonal come in halves: what they read of the bias takes registers and shared memory as well.
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


def parts(names: tuple[str, ...], refs: tuple) -> dict[str, Part]:
    """A program's arrays by name."""
    return {name: Part(ref) for name, ref in zip(names, refs, strict=True)}


def rows(part: Part, start: Any, length: int) -> jax.Array:
    """Rows `start` ... of an array, of the batch row and head that the part says."""
    index = (*part.before, pl.ds(start, length), *part.after)
    return part.ref[index + (slice(None),) * (len(part.ref.shape) - len(index))]


def _bias(form: TileForm, refs: dict, zone: str, distance: jax.Array | None) -> jax.Array | None:
    """The bias of a tile near the diagonal, or the one number of a tile far from it; None if there is none."""
    if form.reach is None:
        return None
    part = refs['bias_NW']
    ends = {'before': 0, 'after': part.ref.shape[-1] - 1}
    at = ends[zone] if zone != 'near' else distance + (part.ref.shape[-1] - 1) // 2
    return part.ref[(*part.before, at)]


def dot(form: TileForm, a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """Product over one axis of each, summed and given in float32."""
    # Products of 16-bit numbers are exact in float32; float32 by default is a GPU's tf32, as everywhere in XLA.
    precision = form.precision if a.dtype == jnp.float32 else None
    return lax.dot_general(
        a, b, (((a_axis,), (b_axis,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


def logits(
    form: TileForm, products: jax.Array, zone: str, refs: dict, at: At, query_ids_C: jax.Array | None, key_axis: int
) -> tuple[jax.Array, jax.Array | None]:
    """Products of queries and keys -> masked logits of base 2, and the slope of the soft cap there.

    Args:
        products: [C, P] with `key_axis` 1, [P, C] with 0.
    """
    x, slope = products, None
    factor = (form.scale if form.soft_cap is None else form.soft_cap) * LOG2_E
    if form.soft_cap is not None:
        x = jnp.tanh(x * (form.scale / form.soft_cap))
        slope = 1.0 - x * x
    key_ids_P = rows(refs['key_ids_BS'], at.key, products.shape[key_axis]) if form.masked else None
    distance = distances(refs, at, products.shape, key_axis) if zone == 'near' else None
    added, seen_P = _bias(form, refs, zone, distance), _keys_seen(form, zone, key_ids_P)
    if seen_P is not None:  # one number for each key, which the bias of a far tile is part of
        of_key = lambda x_P: jnp.expand_dims(x_P, 1 - key_axis)
        if added is None or zone != 'near':
            added = of_key(jnp.where(seen_P, 0.0 if added is None else added, MASKED))
        else:
            added = added + of_key(jnp.where(seen_P, 0.0, MASKED))
    x = x * factor if added is None else multiply_add(form, x, factor, added)
    allowed = _pairs_allowed(form, zone, distance, query_ids_C, key_ids_P, key_axis)
    return (x if allowed is None else jnp.where(allowed, x, MASKED)), slope


def multiply_add(form: TileForm, x: jax.Array, factor: float, added: jax.Array) -> jax.Array:
    """x * factor + added in one instruction; Triton keeps the two apart."""
    if form.interpret:
        return x * factor + added
    arguments = x, jnp.full_like(x, factor), jnp.broadcast_to(added, x.shape)
    return _instruction('fma.rn.f32 $0, $1, $2, $3;', arguments)


def exp2(form: TileForm, x: jax.Array) -> jax.Array:
    """2 to the power of x in one instruction: what is too small for a normal number is zero, which takes three more to mend."""
    return jnp.exp2(x) if form.interpret else _instruction('ex2.approx.ftz.f32 $0, $1;', (x,))


def _instruction(text: str, arguments: tuple[jax.Array, ...]) -> jax.Array:
    shape = jax.ShapeDtypeStruct(arguments[0].shape, jnp.float32)
    constraints = ','.join(['=f'] + ['f'] * len(arguments))
    (result,) = plgpu.elementwise_inline_asm(
        text, args=arguments, constraints=constraints, pack=1, result_shape_dtypes=[shape]
    )
    return result


def distances(refs: dict, at: At, shape: tuple[int, int], key_axis: int) -> jax.Array:
    """(key index) - (query index + q_offset) of a tile's pairs, int32."""
    first = at.key - at.query - refs['q_offset'].ref[0]
    return (
        first + lax.broadcasted_iota(jnp.int32, shape, key_axis) - lax.broadcasted_iota(jnp.int32, shape, 1 - key_axis)
    )


def _keys_seen(form: TileForm, zone: str, key_ids_P: jax.Array | None) -> jax.Array | None:
    """Which keys any query of the tile may see, where that is the same for all of them."""
    seen_P = key_ids_P >> 1 == 1 if form.masked == 'keys' else None
    if form.causal and zone == 'after':
        prefix_P = key_ids_P & 1 == 1
        return prefix_P if seen_P is None else seen_P & prefix_P
    return seen_P


def _pairs_allowed(
    form: TileForm,
    zone: str,
    distance: jax.Array | None,
    query_ids_C: jax.Array | None,
    key_ids_P: jax.Array | None,
    key_axis: int,
) -> jax.Array | None:
    """Which query sees which key, apart from `_keys_seen`; None if all see all."""
    of_key = lambda x_P: jnp.expand_dims(x_P, 1 - key_axis)
    masks = []
    if form.masked == 'pairs':
        masks.append(of_key(key_ids_P >> 1) == jnp.expand_dims(query_ids_C, key_axis))
    if form.causal and zone == 'near':
        if form.prefix:  # keys of the prefix count as the first of all
            distance = jnp.where(of_key(key_ids_P & 1 == 1), -1, distance)
        masks.append(distance <= 0)
    if len(masks) == 2:
        return masks[0] & masks[1]
    return masks[0] if masks else None


def kept(form: TileForm, refs: dict, key: Any, keys: int, key_axis: int) -> jax.Array | None:
    """Dropout's factor of each key, to be multiplied with a tile; None if all are kept."""
    if form.kept is None:
        return None
    return jnp.expand_dims(rows(refs['keep_BNS'], key, keys) * (1.0 / form.kept), 1 - key_axis)
