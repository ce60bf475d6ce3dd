"""One tile of the Pallas TPU kernels: its logits, the bias of T5 in them, who sees whom, and which tiles are left out.

Tiles lie transposed, [keys, queries]: maxima, sums and logarithms of queries are then rows [1, queries], which the vector
unit adds up without crossing lanes, and only keys and values, which are small, are ever transposed.

Heads narrower than the 128 lanes share them: q is [B, T, N * H], cut into groups of 128 lanes, and a head of a group is
picked by setting the lanes of the others to zero. The matrix unit works on 128 lanes at a time, so that this costs it
nothing, and no array of the model is copied into another order or padded to 128 lanes for each head.

**The bias.** A Toeplitz tile needs one vector. Of the distances beyond `max_distance` T5's buckets tell nothing more than
their sign, so that a vector of the distances near zero is enough for tiles anywhere (`Band`): a tile far off the diagonal
reads one of its constant ends. Once for each group of heads that vector is laid out as 128 rows, each the one above moved
by one lane (`shear`, seven steps); from there the 128 rows of keys of any tile are a slice that begins at a multiple of
128 lanes, which is a plain load. The gradient takes the way back: tiles are added into 128 such rows, and these are
moved back and summed once for each group of heads.

Inside kernels no `//` or `%` of arrays: both ask the device at hand for its sort, and there is none where a program is only
compiled.

B batch, T queries, S keys, J groups of heads, U heads of a group, H head_dim, E = U * H lanes, C and P queries and keys of
a tile, W numbers of a band.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from t5flan.kernels.chunked import MASKED

LANES = 128
_WORD = 32  # tiles whose visibility one integer holds


@dataclasses.dataclass(frozen=True)
class Band:
    """Which distances the bias vector of a head holds, for tiles of `block_q` queries and buckets constant from `reach` on.

    Number w is of the distance centre - w - (q_offset modulo 128). Slices begin in [128, last]; at both ends of that
    range a slice holds distances beyond `reach` alone, in every one of the 128 rows and for every q_offset.

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


@dataclasses.dataclass(frozen=True)
class TileForm:
    """What is fixed when the kernels are built."""

    heads: int  # U
    head_dim: int  # H
    share: int  # groups of query heads that read one group of key-value heads
    block_q: int  # C
    block_k: int  # P
    causal: bool
    masked: bool  # `query_ids` and `key_ids` are given
    kept: float | None  # `keep` is given, and this is its share of ones
    band: Band | None  # of the bias
    scale: float
    soft_cap: float | None
    precision: Any
    interpret: bool

    @property
    def lanes(self) -> int:
        """E."""
        return self.heads * self.head_dim


class Arrays(NamedTuple):
    """What the kernels read, in their order; None where an option is off. T and S are multiples of the blocks."""

    q: jax.Array  # [B, T, J * E]
    k: jax.Array  # [B, S, J / share * E]
    v: jax.Array
    bias: jax.Array | None  # [J, U, W] float32
    keep: jax.Array | None  # [B, J, U, S] float32, 0 or 1: dropout keeps this key for this head
    query_ids: jax.Array | None  # [B, 1, T] int32: a query sees keys of an equal id
    key_ids: jax.Array | None  # [B, 1, S] int32: 2 * id, plus 1 for a key of the prefix
    q_offset: jax.Array  # [1] int32


class Seen(NamedTuple):
    """Which tiles are computed (int32, flat: they lie in scalar memory). I blocks of queries, O of keys."""

    bits: jax.Array  # [B * I * ceil(O / 32)]: one bit a tile
    first: (
        jax.Array
    )  # [B * I] the first and the last block of keys that a block of queries sees; for the gradient of keys
    last: jax.Array  # [B * O] of queries that see a block of keys
    q_offset: jax.Array  # [1]


class Place(NamedTuple):
    """Where a tile lies: row of the batch, group of heads, block of queries, block of keys (int32 scalars)."""

    row: Any
    group: Any
    query: Any
    key: Any


def _up(n: int) -> int:
    return -(-n // LANES) * LANES


def visible_tiles(form: TileForm, arrays: Arrays) -> jax.Array:
    """Which tiles may hold a pair that sees each other, bool [B, I, O]; of ids only the range of a block is looked at."""
    (batch, queries, _), keys = arrays.q.shape, arrays.k.shape[1]
    i, o = jnp.arange(queries // form.block_q), jnp.arange(keys // form.block_k)
    seen_BIO = jnp.ones((batch, i.size, o.size), bool)
    most = jnp.iinfo(jnp.int32).max
    if form.causal:
        last_I = (i + 1) * form.block_q - 1 + arrays.q_offset
        seen_BIO &= (o[None, :] * form.block_k <= last_I[:, None])[None]
    if form.masked:
        query_BIC = arrays.query_ids.reshape(batch, i.size, form.block_q)
        key_BOP = arrays.key_ids.reshape(batch, o.size, form.block_k)
        if form.causal:
            seen_BIO |= jnp.any(key_BOP % 2 == 1, axis=-1)[:, None, :]
        key_BOP = key_BOP // 2
        least = lambda x: jnp.min(jnp.where(x > 0, x, most), axis=-1)
        seen_BIO &= least(query_BIC)[:, :, None] <= jnp.max(key_BOP, axis=-1)[:, None, :]
        seen_BIO &= jnp.max(query_BIC, axis=-1)[:, :, None] >= least(key_BOP)[:, None, :]
    return seen_BIO


def seen_by_queries(form: TileForm, arrays: Arrays) -> Seen:
    """For kernels that go through the keys of a block of queries."""
    return _seen(visible_tiles(form, arrays), 2, arrays.q_offset)


def seen_by_keys(form: TileForm, arrays: Arrays) -> Seen:
    """For kernels that go through the queries of a block of keys."""
    return _seen(visible_tiles(form, arrays), 1, arrays.q_offset)


def _seen(seen_BIO: jax.Array, axis: int, q_offset: jax.Array) -> Seen:
    any_seen = jnp.any(seen_BIO, axis=axis)
    last = jnp.where(any_seen, seen_BIO.shape[axis] - 1 - jnp.argmax(jnp.flip(seen_BIO, axis), axis=axis), 0)
    words = -(-seen_BIO.shape[2] // _WORD)
    padded = jnp.pad(seen_BIO, [(0, 0), (0, 0), (0, words * _WORD - seen_BIO.shape[2])])
    weights = jnp.left_shift(jnp.uint32(1), jnp.arange(_WORD, dtype=jnp.uint32))
    bits = jnp.sum(
        padded.reshape(*seen_BIO.shape[:2], words, _WORD) * weights[None, None, None], axis=-1, dtype=jnp.uint32
    )
    flat = lambda x: x.reshape(-1).astype(jnp.int32)
    return Seen(
        lax.bitcast_convert_type(bits, jnp.int32).reshape(-1),
        flat(jnp.argmax(seen_BIO, axis=axis)),
        flat(last),
        q_offset,
    )


def is_seen(seen: Seen, place: Place, blocks_q: int, blocks_k: int) -> jax.Array:
    """Whether a tile is computed; `seen` and `place` inside a kernel."""
    words = -(-blocks_k // _WORD)
    word = seen.bits[(place.row * blocks_q + place.query) * words + lax.div(place.key, _WORD)]
    return (word >> lax.rem(place.key, _WORD)) & 1 == 1


def block_specs(form: TileForm, place: Callable[..., Place]) -> dict[str, pl.BlockSpec]:
    """How each array is cut, where `place` says which tile a step of the grid is at."""
    (c, p), (u, e) = (form.block_q, form.block_k), (form.heads, form.lanes)

    def spec(shape: tuple, index: Callable[[Place], tuple]) -> pl.BlockSpec:
        return pl.BlockSpec(shape, lambda *ids: index(place(*ids)))

    by_query = spec((None, c, e), lambda at: (at.row, at.query, at.group))
    by_key = spec((None, p, e), lambda at: (at.row, at.key, lax.div(at.group, form.share)))
    per_query = spec((None, None, u, c), lambda at: (at.row, at.group, 0, at.query))
    specs = {
        'q': by_query,
        'k': by_key,
        'v': by_key,
        'y': by_query,
        'dy': by_query,
        'keep': spec((None, None, u, p), lambda at: (at.row, at.group, 0, at.key)),
        'query_ids': spec((None, 1, c), lambda at: (at.row, 0, at.query)),
        'key_ids': spec((None, 1, p), lambda at: (at.row, 0, at.key)),
        'log_sum': per_query,
        'inner': per_query,
    }
    if form.band:
        specs['bias'] = spec((None, u, form.band.width), lambda at: (at.group, 0, 0))
    return specs


def of_head(form: TileForm, x_CE: jax.Array, head: int) -> jax.Array:
    """A group's lanes with those of the other heads set to zero."""
    if form.heads == 1:
        return x_CE
    lane = lax.broadcasted_iota(jnp.int32, x_CE.shape, 1)
    own = (lane >= head * form.head_dim) & (lane < (head + 1) * form.head_dim)
    return jnp.where(own, x_CE, jnp.zeros_like(x_CE))


def rows_of_head(form: TileForm, head: int) -> slice:
    """Where a head lies in a transposed group, [E, ...]."""
    return slice(head * form.head_dim, (head + 1) * form.head_dim)


def dot(form: TileForm, a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    """Product over one axis of each, summed and given in float32."""
    # Products of 16-bit numbers are exact in float32; the compiler takes a precision for 32-bit ones alone.
    precision = form.precision if a.dtype == jnp.float32 else None
    return lax.dot_general(
        a, b, (((a_axis,), (b_axis,)), ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


def logits_of_head(
    form: TileForm,
    k_PE: jax.Array,
    q_CE: jax.Array,
    bias_row: Any,
    allowed_PC: jax.Array | None,
    at: Place,
    head: int,
    q_offset: jax.Array,
) -> tuple[jax.Array, jax.Array | None]:
    """The logits of a tile [P, C], masked, and the slope of the soft cap there.

    Args:
        q_CE: of this head alone (`of_head`).
        bias_row: the memory [U, 128, W] that holds the sheared bias (`shear_into`), or None.
    """
    logits, slope = dot(form, k_PE, q_CE, 1, 1), None
    if form.scale != 1.0:
        logits = logits * form.scale
    if form.soft_cap is not None:
        bent = jnp.tanh(logits / form.soft_cap)
        logits, slope = form.soft_cap * bent, 1.0 - bent * bent
    if form.band:
        slices = [bias_row[head, :, pl.ds(start, form.block_q)] for start in band_starts(form, at, q_offset)]
        logits = logits + jnp.concatenate(slices, axis=0)
    return (logits if allowed_PC is None else jnp.where(allowed_PC, logits, MASKED)), slope


def allowed(form: TileForm, refs: dict, at: Place, q_offset: jax.Array) -> jax.Array | None:
    """Which query sees which key of a tile, bool [P, C]; None if all see all. The same for all heads."""
    shape = (form.block_k, form.block_q)
    masks = []
    if form.masked:
        key_P1 = refs['key_ids'][...].T
        masks.append(key_P1 >> 1 == jnp.broadcast_to(refs['query_ids'][...], shape))
    if form.causal:
        key_PC = at.key * form.block_k + lax.broadcasted_iota(jnp.int32, shape, 0)
        if form.masked:  # keys of the prefix count as the first of all
            key_PC = jnp.where((key_P1 & 1) == 1, jnp.iinfo(jnp.int32).min, key_PC)
        masks.append(key_PC <= at.query * form.block_q + q_offset + lax.broadcasted_iota(jnp.int32, shape, 1))
    if len(masks) == 2:
        return jnp.logical_and(*masks)
    return masks[0] if masks else None


def band_starts(form: TileForm, at: Place, q_offset: jax.Array) -> list[jax.Array]:
    """Where in the sheared bias each 128 keys of a tile begin: multiples of 128, held inside the band."""
    first = form.band.centre - at.key * form.block_k + at.query * form.block_q + (q_offset & -LANES)
    return [pl.multiple_of(jnp.clip(first - c, LANES, form.band.last), LANES) for c in range(0, form.block_k, LANES)]


def shear_into(form: TileForm, bias_UW: jax.Array, sheared_ref: Any) -> None:
    """Lays each head's vector out as 128 rows, row r moved right by r."""
    for head in range(form.heads):
        x = jnp.broadcast_to(bias_UW[head : head + 1], (LANES, form.band.width))
        sheared_ref[head] = _shear(x, form.band.width, lambda bit, width: bit)


def unshear(form: TileForm, sums_ref: Any) -> list[jax.Array]:
    """The inverse for gradients: rows moved back and summed, [1, W] for each head."""
    back = lambda bit, width: width - bit
    return [jnp.sum(_shear(sums_ref[head], form.band.width, back), axis=0, keepdims=True) for head in range(form.heads)]


def _shear(x: jax.Array, width: int, move: Callable[[int, int], int]) -> jax.Array:
    """Moves row r by r lanes, by the bits of r: every TPU rolls all rows alike, only some each row by itself."""
    row = lax.broadcasted_iota(jnp.int32, x.shape, 0)
    for bit in (1, 2, 4, 8, 16, 32, 64):
        x = jnp.where(row & bit != 0, pltpu.roll(x, move(bit, width), 1), x)
    return x
