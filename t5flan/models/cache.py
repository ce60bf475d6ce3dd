"""What decoding remembers: keys and values of every layer, as a plain pytree that goes in and comes out of each step.

L layers, B batch, M places (prompt and new tokens), S source length, K key-value heads, H head_dim.
"""

import dataclasses

import jax
import jax.numpy as jnp

from t5flan.models.attention import KeysValues, Mask, Past
from t5flan.sharding import constrain


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """Keys and values so far, in the compute dtype, stacked over layers so that a step scans them.

    Places 0 .. index-1 are filled; in row b the first pad_B[b] of them are padding, and the position of place i is
    i - pad_B[b].
    """

    index: jax.Array  # scalar int32: the place the next token goes to
    pad_B: jax.Array  # int32: how many places at the left are padding
    k_LBMKH: jax.Array
    v_LBMKH: jax.Array
    cross_k_LBSKH: jax.Array | None = None  # of the encoder's output, computed once
    cross_v_LBSKH: jax.Array | None = None
    cross_segment_ids_BS: jax.Array | None = None  # 0 where the encoder's input is padding

    def past(self, layer: int | jax.Array) -> Past:
        """One layer's keys and values."""
        return Past(_layer(self.k_LBMKH, layer), _layer(self.v_LBMKH, layer), self.index)

    def cross(self, layer: int | jax.Array) -> KeysValues | None:
        """One layer's keys and values of the encoder's output, or None in a decoder-only model."""
        if self.cross_k_LBSKH is None:
            return None
        return _layer(self.cross_k_LBSKH, layer), _layer(self.cross_v_LBSKH, layer)

    def cross_mask(self) -> Mask | None:
        """Everything of the encoder's output but its padding is seen."""
        if self.cross_segment_ids_BS is None:
            return None
        return Mask(causal=False, kv_segment_ids_BS=self.cross_segment_ids_BS)

    def segment_ids_BM(self) -> jax.Array:
        """1, and 0 where a place is padding; places not yet filled are hidden by causality."""
        return (jnp.arange(self.k_LBMKH.shape[2])[None, :] >= self.pad_B[:, None]).astype(jnp.int32)

    def positions_B1(self) -> jax.Array:
        """The position of the next token in each row."""
        return (self.index - self.pad_B)[:, None]

    def written(self, layer: int | jax.Array, present: KeysValues) -> 'Cache':
        """With one token's keys and values ([B, 1, K, H]) at `index` of one layer."""

        def write(memory_LBMKH: jax.Array, new_B1KH: jax.Array) -> jax.Array:
            return jax.lax.dynamic_update_slice(
                memory_LBMKH, new_B1KH[None].astype(memory_LBMKH.dtype), (layer, 0, self.index, 0, 0)
            )

        return dataclasses.replace(
            self, k_LBMKH=write(self.k_LBMKH, present[0]), v_LBMKH=write(self.v_LBMKH, present[1])
        )

    def advanced(self) -> 'Cache':
        """After a token was written in every layer."""
        return dataclasses.replace(self, index=self.index + 1)

    def take(self, rows_B: jax.Array) -> 'Cache':
        """Rows of the batch, in another order or repeated (beams, several samples of one prompt)."""
        return dataclasses.replace(
            self,
            **{
                field.name: jnp.take(value, rows_B, axis=1 if 'LB' in field.name else 0)
                for field in dataclasses.fields(self)
                if field.name != 'index' and (value := getattr(self, field.name)) is not None
            },
        )


def empty_places(present: KeysValues, new_places: int) -> KeysValues:
    """Keys and values of a prompt ([L, B, P, K, H] each) with room for `new_places` more."""

    def pad(x_LBPKH: jax.Array) -> jax.Array:
        x_LBMKH = jnp.pad(x_LBPKH, ((0, 0), (0, 0), (0, new_places), (0, 0), (0, 0)))
        return constrain(x_LBMKH, ('layers', 'batch', 'length', 'act_kv_heads', 'kv'))

    return pad(present[0]), pad(present[1])


def _layer(x_LBMKH: jax.Array, layer: int | jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x_LBMKH, layer, keepdims=False)
