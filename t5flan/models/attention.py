"""The attention sub-layer: projections around `attend()`, and one layer's KV cache for decoding.

B batch, T query length, S key length, M cache slots, D emb_dim, N heads, K key-value heads, H head_dim.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
from flax import nnx

from t5flan.kernels.attention import RelativeBias, attend
from t5flan.models.config import LayerKind, ModelConfig
from t5flan.models.layers import CROSS_PROJECTION, PROJECTION, Norm, Projection
from t5flan.models.parameters import Scope, fan_in
from t5flan.models.positions import before_tokens, rotate
from t5flan.sharding import constrain

KV = tuple[jax.Array, jax.Array]  # keys and values, k_BSKH and v_BSKH


class Mask(NamedTuple):
    """Which keys a query sees: those of its segment, none after it if causal, and those of the prefix always.

    Segment 0 is padding and is never seen. Without the queries' segments, every query sees all keys but padding.
    """

    causal: bool
    q_segment_ids_BT: jax.Array | None = None
    kv_segment_ids_BS: jax.Array | None = None
    prefix_BS: jax.Array | None = None
    far_prefix: bool = False  # a window does not hide the prefix


class Before(Protocol):
    """Keys and values before those of a block's own tokens."""

    @property
    def cache_index(self) -> int | jax.Array:
        """How many slots are before the first of the tokens."""

    def updated(self, new_kv: KV) -> KV:
        """All keys and values, with those of the tokens ([B, T, K, H] each) in their slots."""


class LayerCache(NamedTuple):
    """The KV cache of one layer; the next token goes to slot `cache_index` of M."""

    k_BMKH: jax.Array
    v_BMKH: jax.Array
    cache_index: jax.Array  # scalar int32

    def updated(self, new_kv: KV) -> KV:
        """The cached keys and values, two of [B, M, K, H], with those of new tokens ([B, T, K, H]) in their slots."""

        def write(cached_BMKH: jax.Array, new_BTKH: jax.Array) -> jax.Array:
            new_BTKH = new_BTKH.astype(cached_BMKH.dtype)
            return jax.lax.dynamic_update_slice_in_dim(cached_BMKH, new_BTKH, self.cache_index, axis=1)

        return write(self.k_BMKH, new_kv[0]), write(self.v_BMKH, new_kv[1])


class FirstKV(NamedTuple):
    """Keys and values before the first token of each row: of P virtual tokens, or of the encoder's output."""

    k_BPKH: jax.Array
    v_BPKH: jax.Array
    pad_B: jax.Array | None = None  # how many tokens at the left of a row are padding

    @property
    def cache_index(self) -> int:
        """The slot of the first token."""
        return self.k_BPKH.shape[1]

    def updated(self, new_kv: KV) -> KV:
        """Those of the virtual tokens and of the others, two of [B, P + T, K, H]."""
        k_BMKH, v_BMKH = (before_tokens(*kv, self.pad_B) for kv in zip(self[:2], new_kv, strict=True))
        return k_BMKH, v_BMKH


class Attention(nnx.Module):
    """Multi-head attention; grouped-query or multi-query by `num_kv_heads`.

    Attributes:
        reader: in the place of `attend()`: (config, queries, keys and values, bias table, window) -> what the queries
            read. A decoding step that stores its cache in another way has one.
    """

    reader: Callable[[ModelConfig, jax.Array, KV, jax.Array | None, int | None], jax.Array] | None = None

    def __init__(self, config: ModelConfig, scope: Scope, *, bidirectional: bool, across: bool = False):
        """`bidirectional`: relative distances keep their sign (encoder). `across`: keys come from the encoder."""
        self.config = config
        self.rotary = config.position == 'rope' and not across
        self.bidirectional = bidirectional
        embed, kv = {'embed': config.emb_dim}, {'kv_heads': config.kv_heads, 'kv': config.head_dim}
        source = {'embed': config.encoder_config.emb_dim} if across else embed
        heads = {'heads': config.num_heads, 'kv': config.head_dim}
        # As in T5: if logits are not scaled by 1/sqrt(H), that factor is folded into the initializer of the query.
        variance = 1.0 if config.scale_attention else 1.0 / config.head_dim
        bias = config.attention_bias
        self.query = Projection(config, scope / 'query', embed, heads, fan_in(1, variance=variance), bias=bias)
        kept_as = CROSS_PROJECTION if across else PROJECTION
        self.key = Projection(config, scope / 'key', source, kv, fan_in(1), bias=bias, kept_as=kept_as)
        self.value = Projection(config, scope / 'value', source, kv, fan_in(1), bias=bias, kept_as=kept_as)
        self.out = Projection(config, scope / 'out', heads, embed, fan_in(2), bias=config.attention_out_bias)
        if config.qk_norm:
            self.query_norm = Norm(config, scope / 'query_norm', of_heads=True)
            self.key_norm = Norm(config, scope / 'key_norm', of_heads=True)

    def project_kv(
        self,
        x_BSD: jax.Array,
        positions_BS: jax.Array | None = None,
        kind: LayerKind | None = None,
        *,
        rotated: bool = True,
    ) -> KV:
        """The keys (normed and rotated, if the model does that) and values of a sequence: two of [B, S, K, H].

        With `rotated` False keys have no positions, as those of the encoder's output in merged attention.
        """
        k_BSKH, v_BSKH = self.key(x_BSD), self.value(x_BSD)
        if self.config.qk_norm:
            k_BSKH = self.key_norm(k_BSKH)
        if rotated:
            k_BSKH = self._rotate(k_BSKH, positions_BS, kind)
        axes = ('batch', 'length', 'act_kv_heads', 'kv')
        return constrain(k_BSKH, axes), constrain(v_BSKH, axes)

    def _rotate(self, x_BTNH: jax.Array, positions_BT: jax.Array | None, kind: LayerKind | None) -> jax.Array:
        kind = kind or self.config.layer_kinds[0]
        if not (self.rotary and kind.rotary):
            return x_BTNH
        if positions_BT is None:
            raise ValueError("Attention got no positions; they are required for position='rope'")
        return rotate(x_BTNH, positions_BT, kind.rope_base, kind.rope_scaling)

    def __call__(
        self,
        x_BTD: jax.Array,
        kv: KV,
        mask: Mask,
        *,
        kind: LayerKind | None = None,
        positions_BT: jax.Array | None = None,
        bias_table_NR: jax.Array | None = None,
        q_offset: int | jax.Array = 0,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Attends from the queries of x to keys and values: [B, T, D] -> [B, T, D].

        Args:
            kv: from `project_kv`, or from `updated` of what is before.
            kind: that of the layer; None: of the first one, and without a window.
            positions_BT: of the queries; required if positions are rotary.
            bias_table_NR: relative bias per head and bucket, or None.
            q_offset: the key index of the first query; 0 unless there is a cache.
        """
        config = self.config
        q_BTNH = self.query(x_BTD)
        if config.qk_norm:
            q_BTNH = self.query_norm(q_BTNH)
        q_BTNH = constrain(self._rotate(q_BTNH, positions_BT, kind), ('batch', 'length', 'act_heads', 'kv'))
        if self.reader is not None:
            y_BTNH = self.reader(config, q_BTNH, kv, bias_table_NR, None if kind is None else kind.window)
        else:
            bias = None
            if bias_table_NR is not None:
                bias = RelativeBias(self.bidirectional, config.relative_buckets, config.relative_max_distance)
            y_BTNH = attend(
                q_BTNH,
                *kv,
                bias_table=bias_table_NR,
                bias=bias,
                q_offset=q_offset,
                **mask._asdict(),
                scale=config.attention_scale,
                soft_cap=config.attention_soft_cap,
                window=None if kind is None else kind.seen(self.bidirectional),
                dropout_rate=0.0 if dropout_key is None else config.dropout_rate,
                dropout_key=dropout_key,
                implementation=config.attention,
            )
        more_BTNH = self.more_values(q_BTNH)
        if more_BTNH is not None:
            y_BTNH = y_BTNH + more_BTNH
        return self.out(constrain(y_BTNH, ('batch', 'length', 'act_heads', 'kv')))

    def more_values(self, q_BTNH: jax.Array) -> jax.Array | None:
        """Added to what the queries read, [B, T, N, H]; None unless an adapter has something to read."""
        return None
