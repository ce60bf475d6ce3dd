"""The KV cache of decoding: keys and values of every layer, a plain pytree that each step takes and returns.

L layers, B batch, M cache slots (prompt and new tokens), S source length, K key-value heads, H head_dim.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from t5flan.models.attention import KV, LayerCache, Mask
from t5flan.sharding import constrain


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values so far, in the compute dtype, stacked over layers so that a step scans them.

    Slots 0 .. index-1 are filled. In row b the first pad_B[b] of them are padding, and the token in slot i has position
    i - pad_B[b]. With merged attention the first `encoded` slots are the encoder's output, its padding at the left, and
    the token in slot i has position i - encoded.
    """

    index: jax.Array  # scalar int32: the slot of the next token
    pad_B: jax.Array  # int32: how many slots at the left are padding
    k_LBMKH: jax.Array
    v_LBMKH: jax.Array
    cross_k_LBSKH: jax.Array | None = None  # of the encoder's output, computed once
    cross_v_LBSKH: jax.Array | None = None
    cross_segment_ids_BS: jax.Array | None = None  # 0 where the encoder's input is padding
    encoded: int = dataclasses.field(default=0, metadata={'static': True})

    def layer(self, layer: int | jax.Array) -> LayerCache:
        """The cache of one layer."""
        return LayerCache(_of_layer(self.k_LBMKH, layer), _of_layer(self.v_LBMKH, layer), self.index)

    def cross_kv(self, layer: int | jax.Array) -> KV | None:
        """One layer's keys and values of the encoder's output, or None in a decoder-only model."""
        if self.cross_k_LBSKH is None or self.cross_v_LBSKH is None:
            return None
        return _of_layer(self.cross_k_LBSKH, layer), _of_layer(self.cross_v_LBSKH, layer)

    def cross_mask(self) -> Mask | None:
        """Hides the padding of the encoder's output; None in a decoder-only model."""
        if self.cross_segment_ids_BS is None:
            return None
        return Mask(causal=False, kv_segment_ids_BS=self.cross_segment_ids_BS)

    def segment_ids_BM(self) -> jax.Array:
        """1, or 0 where a slot is padding; the causal mask hides slots that are not yet filled."""
        return (jnp.arange(self.k_LBMKH.shape[2])[None, :] >= self.pad_B[:, None]).astype(jnp.int32)

    def mask(self) -> Mask:
        """What the next token sees of the slots."""
        segment_ids_BM = self.segment_ids_BM()
        if not self.encoded:
            return Mask(True, None, segment_ids_BM)
        prefix_M = jnp.arange(segment_ids_BM.shape[1]) < self.encoded
        return Mask(True, None, segment_ids_BM, jnp.broadcast_to(prefix_M[None, :], segment_ids_BM.shape), True)

    def positions_B1(self) -> jax.Array:
        """The position of the next token in each row."""
        first_B = jnp.full_like(self.pad_B, self.encoded) if self.encoded else self.pad_B
        return (self.index - first_B)[:, None]

    def updated(self, layer: int | jax.Array, new_kv: KV) -> 'Cache':
        """The cache with a new token's keys and values ([B, 1, K, H]) of one layer in slot `index`."""

        def write(cached_LBMKH: jax.Array, new_B1KH: jax.Array) -> jax.Array:
            new_1B1KH = new_B1KH[None].astype(cached_LBMKH.dtype)
            return jax.lax.dynamic_update_slice(cached_LBMKH, new_1B1KH, (layer, 0, self.index, 0, 0))

        k_LBMKH, v_LBMKH = write(self.k_LBMKH, new_kv[0]), write(self.v_LBMKH, new_kv[1])
        return dataclasses.replace(self, k_LBMKH=k_LBMKH, v_LBMKH=v_LBMKH)

    def advanced(self) -> 'Cache':
        """The cache after every layer was updated: `index` points to the next slot."""
        return dataclasses.replace(self, index=self.index + 1)

    def repeated(self, count: int) -> 'Cache':
        """The cache with `count` rows for each row, which share the keys and values of the encoder's output."""
        repeat = functools.partial(jnp.repeat, repeats=count)
        k_LBMKH, v_LBMKH = repeat(self.k_LBMKH, axis=1), repeat(self.v_LBMKH, axis=1)
        return dataclasses.replace(self, pad_B=repeat(self.pad_B, axis=0), k_LBMKH=k_LBMKH, v_LBMKH=v_LBMKH)

    def taken(self, rows_R: jax.Array, prompts_Q: jax.Array) -> 'Cache':
        """The cache of only the rows `rows_R`, those of the prompts `prompts_Q`."""
        of_prompts = lambda x, axis: None if x is None else jnp.take(x, prompts_Q, axis=axis)
        return dataclasses.replace(
            self,
            pad_B=self.pad_B[rows_R],
            k_LBMKH=self.k_LBMKH[:, rows_R],
            v_LBMKH=self.v_LBMKH[:, rows_R],
            cross_k_LBSKH=of_prompts(self.cross_k_LBSKH, 1),
            cross_v_LBSKH=of_prompts(self.cross_v_LBSKH, 1),
            cross_segment_ids_BS=of_prompts(self.cross_segment_ids_BS, 0),
        )

    def reordered(self, parents_BW: jax.Array, new_slots: int) -> 'Cache':
        """The cache of rows [B * W] in which row w of each W becomes a copy of row parents_BW[b, w] (beams).

        Only the last `new_slots` slots may differ between the rows of a prompt.
        """
        k_LBMKH, v_LBMKH = (
            reorder_rows(x, parents_BW, new_slots, rows=1, slots=2) for x in (self.k_LBMKH, self.v_LBMKH)
        )
        return dataclasses.replace(self, k_LBMKH=k_LBMKH, v_LBMKH=v_LBMKH)


def reorder_rows(x: jax.Array, parents_BW: jax.Array, new_slots: int, *, rows: int, slots: int) -> jax.Array:
    """Row w of each W of rows [B * W] becomes a copy of row parents_BW[b, w].

    Args:
        x: a cache.
        new_slots: only so many slots at the end may differ between the W rows of a prompt.
        rows, slots: the axes of rows and slots.
    """
    # The default mode of `take` also compares every index with the bounds.
    take = jax.vmap(functools.partial(jnp.take, axis=rows, mode='clip'), in_axes=(rows, 0), out_axes=rows)

    def reorder(x: jax.Array) -> jax.Array:
        return take(x.reshape(*x.shape[:rows], *parents_BW.shape, *x.shape[rows + 1 :]), parents_BW).reshape(x.shape)

    first = x.shape[slots] - new_slots
    if first < new_slots:  # writing a part copies it once more
        return reorder(x)
    part = reorder(jax.lax.slice_in_dim(x, first, None, axis=slots))
    return jax.lax.dynamic_update_slice_in_dim(x, part, first, slots)


def pad_kv(prompt_kv: KV, new_slots: int) -> KV:
    """Keys and values of a prompt ([L, B, P, K, H] each), padded with `new_slots` empty slots."""

    def pad(x_LBPKH: jax.Array) -> jax.Array:
        x_LBMKH = jnp.pad(x_LBPKH, ((0, 0), (0, 0), (0, new_slots), (0, 0), (0, 0)))
        return constrain(x_LBMKH, ('layers', 'batch', 'length', 'act_kv_heads', 'kv'))

    return pad(prompt_kv[0]), pad(prompt_kv[1])


def _of_layer(x_LBMKH: jax.Array, layer: int | jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x_LBMKH, layer, keepdims=False)
