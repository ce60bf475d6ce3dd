"""The attention sub-layer: projections around `attend()`, and a memory of past keys and values for decoding.

B batch, T query length, S key length, M places in the memory, D emb_dim, N heads, K key-value heads, H head_dim.
"""

from typing import NamedTuple

import jax
from flax import nnx

from t5flan.kernels.attention import RelativeBias, attend
from t5flan.models.config import ModelConfig
from t5flan.models.layers import Projection
from t5flan.models.parameters import Scope, fan_in
from t5flan.models.positions import rotate
from t5flan.sharding import constrain

KeysValues = tuple[jax.Array, jax.Array]  # k_BSKH, v_BSKH


class Mask(NamedTuple):
    """Which keys a query sees: those of its segment, none after it if causal, but those of the prefix always.

    Segment 0 is padding and is never seen. With the keys' segments alone, every query sees all keys but padding.
    """

    causal: bool
    q_segment_ids_BT: jax.Array | None = None
    kv_segment_ids_BS: jax.Array | None = None
    prefix_BS: jax.Array | None = None


class Past(NamedTuple):
    """A layer's keys and values so far; the present ones go to place `index` of M."""

    k_BMKH: jax.Array
    v_BMKH: jax.Array
    index: jax.Array  # scalar int32


class Attention(nnx.Module):
    """Multi-head attention without biases; grouped or multi-query by `num_kv_heads`."""

    def __init__(self, config: ModelConfig, scope: Scope, *, bidirectional: bool, across: bool = False):
        """`bidirectional`: relative distances keep their sign (encoder). `across`: keys come from another sequence."""
        self.config = config
        self.rotary = config.position == 'rope' and not across
        self.bidirectional = bidirectional
        embed, kv = {'embed': config.emb_dim}, {'kv_heads': config.kv_heads, 'kv': config.head_dim}
        heads = {'heads': config.num_heads, 'kv': config.head_dim}
        # As in T5: where logits are not scaled by 1/sqrt(H), that factor is in the initialiser of the query.
        variance = 1.0 if config.scale_attention else 1.0 / config.head_dim
        self.query = Projection(config, scope / 'query', embed, heads, fan_in(1, variance=variance))
        self.key = Projection(config, scope / 'key', embed, kv, fan_in(1))
        self.value = Projection(config, scope / 'value', embed, kv, fan_in(1))
        self.out = Projection(config, scope / 'out', heads, embed, fan_in(2))

    def keys_values(self, x_BSD: jax.Array, positions_BS: jax.Array | None = None) -> KeysValues:
        """The keys (rotated, where positions are rotary) and values of a sequence: two of [B, S, K, H]."""
        k_BSKH, v_BSKH = self.key(x_BSD), self.value(x_BSD)
        if self.rotary:
            k_BSKH = rotate(k_BSKH, positions_BS, self.config.rope_base)
        axes = ('batch', 'length', 'act_kv_heads', 'kv')
        return constrain(k_BSKH, axes), constrain(v_BSKH, axes)

    def __call__(
        self,
        x_BTD: jax.Array,
        keys_values: KeysValues,
        mask: Mask,
        *,
        positions_BT: jax.Array | None = None,
        bias_table_NR: jax.Array | None = None,
        q_offset: int | jax.Array = 0,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Reads `keys_values` at the queries of x: [B, T, D] -> [B, T, D].

        Args:
            bias_table_NR: relative bias per head and bucket, or None.
            q_offset: which key the first query stands at; 0 unless keys of the past come first.
        """
        config = self.config
        q_BTNH = self.query(x_BTD)
        if self.rotary:
            q_BTNH = rotate(q_BTNH, positions_BT, config.rope_base)
        q_BTNH = constrain(q_BTNH, ('batch', 'length', 'act_heads', 'kv'))
        bias = None
        if bias_table_NR is not None:
            bias = RelativeBias(self.bidirectional, config.relative_buckets, config.relative_max_distance)
        y_BTNH = attend(
            q_BTNH,
            *keys_values,
            bias_table=bias_table_NR,
            bias=bias,
            q_offset=q_offset,
            **mask._asdict(),
            scale=config.attention_scale,
            soft_cap=config.attention_soft_cap,
            dropout_rate=0.0 if dropout_key is None else config.dropout_rate,
            dropout_key=dropout_key,
            implementation=config.attention,
        )
        return self.out(constrain(y_BTNH, ('batch', 'length', 'act_heads', 'kv')))


def remember(past: Past, present: KeysValues) -> KeysValues:
    """The past's keys and values with the present token's ([B, 1, K, H] each) written at its index: [B, M, K, H]."""

    def write(memory_BMKH: jax.Array, new_B1KH: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(memory_BMKH, new_B1KH.astype(memory_BMKH.dtype), past.index, axis=1)

    return write(past.k_BMKH, present[0]), write(past.v_BMKH, present[1])
