"""One tile of the Pallas TPU kernels: its logits, T5's bias, its mask, and which tiles are skipped.

Tiles are transposed, [keys, queries]: the maxima and sums of queries are then rows [1, queries], which the vector unit
reduces without crossing lanes. Heads narrower than the 128 lanes share them: q is [B, T, N * H], cut into groups of 128
lanes, and a kernel selects one head of a group by setting the lanes of the others to zero, which is free on a matrix
unit of 128 lanes.

**The bias.** Beyond `max_distance`, T5's buckets depend on the sign of the distance only, so a vector of the distances
near zero is enough for every tile (`Band`): a tile far from the diagonal reads one of its constant ends. Once for each
group of heads that vector is laid out as 128 rows, each the one above moved by one lane (`shear_into`); then the bias
of any 128 keys is a slice that starts at a multiple of 128 lanes, a plain load. The gradient goes the reverse way:
tiles are added into 128 such rows, which are moved back and summed once for each group of heads.

B batch, T queries, S keys, J groups of heads, U heads of a group, H head_dim, E = U * H lanes, I and O blocks of
queries and keys, C and P queries and keys of a tile, W numbers of a band.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from t5flan.kernels.operands import MASKED, AttentionSpec, KernelArrays, dot, is_near, visible_tiles

LANES = 128
_SAFE = 512 * 512  # logits of the largest tile that fits on every chip
_WORD = 32  # tiles whose visibility fits in one integer
Refs = dict[str, Any]  # the references of a kernel, by name
Arrays = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Band:
    """The distances in the bias vector of a head, for tiles of `block_q` queries and a bias constant from `reach` on.

    Number w is the bias of the distance centre - w - (q_offset modulo 128). Slices start in [128, last]; at both ends
    of that range a slice holds only distances beyond `reach`, in every one of the 128 rows and for every q_offset.

    >>> Band(block_q=512, reach=128)
    Band(centre=896, last=1152, width=1664)
    """

    centre: int
    last: int
    width: int

    def __init__(self, block_q: int, reach: int):
        object.__setattr__(self, 'centre', _up(reach + block_q + 2 * LANES))
        object.__setattr__(self, 'last', _up(self.centre + reach + LANES))
        object.__setattr__(self, 'width', self.last + block_q)

    def distances(self, q_offset: jax.Array) -> jax.Array:
        """The distance (key index) - (query index + q_offset) of every number, int32 [W]."""
        return self.centre - jnp.arange(self.width, dtype=jnp.int32) - q_offset % LANES


def _up(n: int) -> int:
    return -(-n // LANES) * LANES


@dataclasses.dataclass(frozen=True, kw_only=True)
class TileSpec(AttentionSpec):
    """The options of a call, and the sizes that the kernels are built for."""

    heads: int  # U
    head_dim: int  # H, padded so that heads fill the lanes
    share: int  # groups of query heads that read one group of key-value heads
    block_q: int  # C
    block_k: int  # P
    masked: bool  # there are `query_ids` and `key_ids`
    interpret: Any  # Pallas' argument

    @property
    def lanes(self) -> int:
        """E."""
        return self.heads * self.head_dim

    @property
    def large(self) -> bool:
        """Whether the blocks are for chips whose cores have more than the 16 MiB of a v4's (`tpu/flash.py`)."""
        return self.block_q * self.block_k > _SAFE

    @property
    def band(self) -> Band | None:
        """The layout of the bias; None without one."""
        return None if self.bias is None else Band(self.block_q, self.bias.max_distance)


class Seen(NamedTuple):
    """Which tiles are computed: int32, flat, since they lie in scalar memory."""

    bits: jax.Array  # [B * I * ceil(O / 32)]: one bit a tile
    # The first and the last block of keys that a block of queries sees, [B * I]; in the kernel of the gradients of
    # keys, the first and the last block of queries that see a block of keys, [B * O].
    first: jax.Array
    last: jax.Array
    q_offset: jax.Array  # [1]


class Place(NamedTuple):
    """The position of a tile: row of the batch, group of heads, block of queries, block of keys (int32 scalars)."""

    row: Any
    group: Any
    query: Any
    key: Any
    q_offset: Any = None  # set where logits are computed


def seen_tiles(spec: TileSpec, arrays: KernelArrays, axis: int) -> Seen:
    """For kernels that loop over keys for a block of queries (axis 2), or over queries for a block of keys (axis 1)."""
    seen_BIO = visible_tiles(arrays, spec.block_q, spec.block_k, spec.causal, spec.window, spec.far_prefix)
    any_seen = jnp.any(seen_BIO, axis=axis)
    last = jnp.where(any_seen, seen_BIO.shape[axis] - 1 - jnp.argmax(jnp.flip(seen_BIO, axis), axis=axis), 0)
    words = -(-seen_BIO.shape[2] // _WORD)
    padded = jnp.pad(seen_BIO, [(0, 0), (0, 0), (0, words * _WORD - seen_BIO.shape[2])])
    weights = jnp.left_shift(jnp.uint32(1), jnp.arange(_WORD, dtype=jnp.uint32))[None, None, None]
    bits = jnp.sum(padded.reshape(*seen_BIO.shape[:2], words, _WORD) * weights, axis=-1, dtype=jnp.uint32)
    flat = lambda x: x.reshape(-1).astype(jnp.int32)
    first = flat(jnp.argmax(seen_BIO, axis=axis))
    return Seen(lax.bitcast_convert_type(bits, jnp.int32).reshape(-1), first, flat(last), arrays.q_offset)


def is_seen(seen: Seen, place: Place, blocks_q: int, blocks_k: int) -> jax.Array:
    """Whether a tile is computed; `seen` and `place` inside a kernel."""
    words = -(-blocks_k // _WORD)
    word = seen.bits[(place.row * blocks_q + place.query) * words + lax.div(place.key, _WORD)]
    return (word >> lax.rem(place.key, _WORD)) & 1 == 1


def block_specs(spec: TileSpec, place: Callable[..., Place]) -> dict[str, pl.BlockSpec]:
    """The block of each array at a step of the grid; `place` maps grid indices to the position of a tile."""
    (c, p), (u, e) = (spec.block_q, spec.block_k), (spec.heads, spec.lanes)

    def block(shape: tuple, index: Callable[[Place], tuple]) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda *ids: index(place(*ids)))

    by_query = block((None, c, e), lambda at: (at.row, at.query, at.group))
    by_key = block((None, p, e), lambda at: (at.row, at.key, lax.div(at.group, spec.share)))
    per_query = block((None, None, u, c), lambda at: (at.row, at.group, 0, at.query))
    specs = {
        **dict.fromkeys(('q', 'y', 'dy'), by_query),
        **dict.fromkeys(('k', 'v'), by_key),
        **dict.fromkeys(('lse', 'delta'), per_query),
        'keep': block((None, None, u, p), lambda at: (at.row, at.group, 0, at.key)),
        'query_ids': block((None, 1, c), lambda at: (at.row, 0, at.query)),
        'key_ids': block((None, 1, p), lambda at: (at.row, 0, at.key)),
    }
    if spec.band:
        specs['bias'] = block((None, u, spec.band.width), lambda at: (at.group, 0, 0))
    return specs


def one_head(spec: TileSpec, x_CE: jax.Array, head: int) -> jax.Array:
    """A group's lanes, with those of the other heads set to zero."""
    if spec.heads == 1:
        return x_CE
    lane = lax.broadcasted_iota(jnp.int32, x_CE.shape, 1)
    own = (lane >= head * spec.head_dim) & (lane < (head + 1) * spec.head_dim)
    return jnp.where(own, x_CE, jnp.zeros_like(x_CE))


def head_rows(spec: TileSpec, head: int) -> slice:
    """The rows of a head in a transposed group, [E, ...]."""
    return slice(head * spec.head_dim, (head + 1) * spec.head_dim)


def head_logits(
    spec: TileSpec, refs: Refs, q_CE: jax.Array, k_PE: jax.Array, allowed_PC: jax.Array | None, at: Place, head: int
) -> tuple[jax.Array, jax.Array | None]:
    """The masked logits of a tile [P, C], and the derivative of the soft cap there (None without one)."""
    logits, slope = dot(spec, k_PE, one_head(spec, q_CE, head), 1, 1), None
    if spec.scale != 1.0:
        logits = logits * spec.scale
    if spec.soft_cap is not None:
        tanh = jnp.tanh(logits / spec.soft_cap)
        logits, slope = spec.soft_cap * tanh, 1.0 - tanh * tanh
    if spec.band:
        starts = band_starts(spec, spec.band, at)
        slices = [refs['sheared_ref'][head, :, pl.ds(start, spec.block_q)] for start in starts]
        logits = logits + jnp.concatenate(slices, axis=0)
    return (logits if allowed_PC is None else jnp.where(allowed_PC, logits, MASKED)), slope


def allowed(spec: TileSpec, refs: Refs, at: Place) -> jax.Array | None:
    """Which query sees which key of a tile, bool [P, C], for all heads; None if every query sees every key."""
    shape = (spec.block_k, spec.block_q)
    masks = []
    if spec.masked:
        key_P1 = refs['key_ids'][...].T
        masks.append(key_P1 >> 1 == jnp.broadcast_to(refs['query_ids'][...], shape))
    if spec.causal:
        key_PC = at.key * spec.block_k + lax.broadcasted_iota(jnp.int32, shape, 0)
        if spec.masked:  # keys of the prefix count as before every query
            key_PC = jnp.where((key_P1 & 1) == 1, jnp.iinfo(jnp.int32).min, key_PC)
        masks.append(key_PC <= at.query * spec.block_q + at.q_offset + lax.broadcasted_iota(jnp.int32, shape, 1))
    if spec.window is not None:
        first = at.key * spec.block_k - at.query * spec.block_q - at.q_offset
        iota = functools.partial(lax.broadcasted_iota, jnp.int32, shape)
        distance_PC = first + iota(0) - iota(1)
        if spec.far_prefix:  # and as near
            distance_PC = jnp.where((key_P1 & 1) == 1, 0, distance_PC)
        masks.append(is_near(spec.window, distance_PC))
    return functools.reduce(jnp.logical_and, masks) if masks else None


def band_starts(spec: TileSpec, band: Band, at: Place) -> list[jax.Array]:
    """Where in the sheared bias each 128 keys of a tile start: multiples of 128, clipped to the band."""
    first = band.centre - at.key * spec.block_k + at.query * spec.block_q + (at.q_offset & -LANES)
    return [pl.multiple_of(jnp.clip(first - c, LANES, band.last), LANES) for c in range(0, spec.block_k, LANES)]


def near_blocks(spec: TileSpec, blocks_k: int) -> int:
    """The number of blocks of keys, one after the other, that hold all keys with a bias of their own for a block."""
    assert spec.bias is not None
    span = spec.block_q + 2 * spec.bias.max_distance - 2
    return min(blocks_k, 1 - (-span // spec.block_k))


def first_near(spec: TileSpec, query: Any, q_offset: Any, blocks_k: int) -> jax.Array:
    """The first of those blocks: the bias of every key before it is the same."""
    assert spec.bias is not None
    key = query * spec.block_q + q_offset - spec.bias.max_distance
    return jnp.clip(lax.div(jnp.maximum(key, 0), spec.block_k), 0, blocks_k - near_blocks(spec, blocks_k))


def shear_into(spec: TileSpec, bias_UW: jax.Array, sheared_ref: Any) -> None:
    """Writes each head's vector as 128 rows, row r moved right by r."""
    for head in range(spec.heads):
        x = jnp.broadcast_to(bias_UW[head : head + 1], (LANES, bias_UW.shape[1]))
        sheared_ref[head] = _shear(x, lambda bit: bit)


def unshear(spec: TileSpec, sums_ref: Any) -> list[jax.Array]:
    """The inverse for gradients: rows moved back and summed, [1, W] for each head."""
    back = lambda bit: sums_ref.shape[2] - bit
    return [jnp.sum(_shear(sums_ref[head], back), axis=0, keepdims=True) for head in range(spec.heads)]


def _shear(x: jax.Array, move: Callable[[int], int]) -> jax.Array:
    """Moves row r by r lanes, bit by bit of r: only some TPUs can roll each row by its own amount."""
    row = lax.broadcasted_iota(jnp.int32, x.shape, 0)
    for bit in (1, 2, 4, 8, 16, 32, 64):
        x = jnp.where(row & bit != 0, pltpu.roll(x, move(bit), 1), x)
    return x
