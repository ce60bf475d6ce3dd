"""Prefix tuning (https://arxiv.org/abs/2101.00190): trained keys and values before those of the decoder's tokens.

B batch, T length, P prefix length, L layers, K key-value heads, H head_dim. The prefix counts in positions: the first
token has position P, as in PEFT. Its keys are not rotated.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from t5flan.adapters.choice import Extension, VirtualTokens, copy_attributes, extended
from t5flan.adapters.config import Adapter
from t5flan.adapters.methods.p_tuning import Dense
from t5flan.adapters.methods.prompt_tuning import unless_packed
from t5flan.config.checks import require, require_count
from t5flan.errors import UserError
from t5flan.models.attention import KV, FirstKV, Mask
from t5flan.models.model import Model
from t5flan.models.parameters import Scope
from t5flan.models.positions import before_tokens
from t5flan.models.stack import Decoder


@dataclasses.dataclass(frozen=True)
class PrefixTuning(Adapter):
    """Prefix tuning (https://arxiv.org/abs/2101.00190): trained keys and values in each layer of the decoder.

    Its self-attention reads them before its own. Rows are not packed.

    Attributes:
        tokens: how many keys and values a layer reads.
        shared: two layers of an encoder-decoder read the same keys and values, as in PEFT for T5: layer i has those of
            layer 2 i modulo the number of layers.
        projection_size: inner size of an MLP that computes the prefix from trained embeddings, as the paper does and
            PEFT with `prefix_projection`; None trains the keys and values themselves.
    """

    packed: ClassVar[bool] = False

    tokens: int = 20
    shared: bool = False
    projection_size: int | None = None

    def __post_init__(self) -> None:
        require_count('PrefixTuning.tokens', self.tokens)
        require(isinstance(self.shared, bool), 'PrefixTuning.shared', self.shared, 'True or False')
        if self.projection_size is not None:
            require_count('PrefixTuning.projection_size', self.projection_size)

    def adapt(self, model: Model, scope: Scope) -> Model:
        """The model with a prefix.

        Raises:
            UserError: the model is decoder-only, and `shared` is set; or it has merged attention.
        """
        if self.shared and model.config.architecture == 'decoder_only':
            problem = 'PrefixTuning.shared=True, but the model is decoder_only, whose layers have prefixes of their own'
            raise UserError(f'{problem}. Set PrefixTuning.shared=False.')
        if model.config.merged_attention:
            problem = (
                'PrefixTuning got a model with merged attention, whose decoder reads the encoder before its tokens'
            )
            raise UserError(f'{problem}. Use another adapter, such as @PromptTuning() or @Lora().')
        model = jax.tree.map(lambda x: x, model)  # new modules, the same arrays
        model.decoder = PrefixedDecoder(model.decoder, scope / 'decoder', self)
        return model

    @staticmethod
    def by_row(model: Model, adapted: Mapping[int, Model]) -> Model:
        """The model with the prefixes of several adapters."""
        model = jax.tree.map(lambda x: x, model)  # new modules, the same arrays
        prefixes = {number: jax.tree.map(lambda x: x[:, 0], one.decoder.first_kv(1)) for number, one in adapted.items()}
        model.decoder = extended(model.decoder, RowPrefixedDecoder).with_all(prefixes)
        return model


class _PrefixDecoder(Decoder):
    """A decoder whose self-attention reads P keys and values before those of the tokens, in each layer."""

    def read(self, rows: int) -> jax.Array:
        """1 where a row reads a place of the prefix, int32 [B, P]."""
        raise NotImplementedError

    def first_kv(self, rows: int) -> KV:
        """The keys and values of the prefix for every row, two of [L, B, P, K, H] in the compute dtype."""
        raise NotImplementedError

    def segment_ids(self, mask: Mask, x_BTD: jax.Array) -> jax.Array | None:
        """The segment ids of the keys of x; None if all keys of the row and its prefix are read."""
        return mask.kv_segment_ids_BS

    def __call__(
        self, x_BTD: jax.Array, *, mask: Mask, positions_BT: jax.Array, pad_B: jax.Array | None = None, **options: Any
    ) -> tuple[jax.Array, KV | None]:
        """As of `Decoder`; the keys and values are those of the prefix and of x, two of [L, B, P + T, K, H].

        Packed rows of a decoder-only model become NaN: their later examples would not see the prefix.

        Raises:
            UserError: rows of an encoder-decoder are packed.
        """
        segment_ids_BT = mask.q_segment_ids_BT
        if segment_ids_BT is not None and self.config.architecture == 'encoder_decoder':
            raise UserError('PrefixTuning got packed rows, expected one example in a row. Set DataConfig.pack=False.')
        rows, read_BP = x_BTD.shape[0], self.read(x_BTD.shape[0])

        def with_prefix(x_BT: jax.Array | None) -> jax.Array | None:
            return None if x_BT is None else before_tokens(read_BP.astype(x_BT.dtype), x_BT, pad_B)

        kv_ids_BM, seen_BM = with_prefix(self.segment_ids(mask, x_BTD)), with_prefix(mask.prefix_BS)
        mask = mask._replace(kv_segment_ids_BS=kv_ids_BM, prefix_BS=seen_BM)
        positions_BT = positions_BT + jnp.sum(read_BP, axis=1, dtype=jnp.int32)[:, None]
        x_BTD, kv = super().__call__(x_BTD, mask=mask, positions_BT=positions_BT, pad_B=pad_B, **options)
        x_BTD = unless_packed(x_BTD, segment_ids_BT)
        if kv is None:
            return x_BTD, None
        together = jax.vmap(lambda first, new: before_tokens(first, new, pad_B))
        k_LBMKH, v_LBMKH = (together(first, new) for first, new in zip(self.first_kv(rows), kv, strict=True))
        return x_BTD, (k_LBMKH, v_LBMKH)

    def first_cache(self, layer: jax.Array, rows: int, pad_B: jax.Array | None) -> FirstKV:
        """One layer's prefix."""
        k_LBPKH, v_LBPKH = self.first_kv(rows)
        return FirstKV(k_LBPKH[layer], v_LBPKH[layer], pad_B)


class PrefixedDecoder(_PrefixDecoder):
    """A decoder with a prefix that is trained."""

    prefix: Any  # a parameter, or a `PrefixNetwork`

    def __init__(self, base: Decoder, scope: Scope, settings: PrefixTuning):
        copy_attributes(base, self)
        self.shared, self.tokens, config = settings.shared, settings.tokens, base.config
        shape = 2 * config.num_decoder_layers, settings.tokens, config.kv_heads, config.head_dim
        if settings.projection_size is not None:
            self.prefix = PrefixNetwork(config.emb_dim, settings.projection_size, shape, scope / 'prefix')
            return
        init = jax.nn.initializers.normal(1.0)  # as large as keys and values of normed states are at first
        self.prefix = scope.parameter('prefix', shape, ('layers', 'prompt', 'kv_heads', 'kv'), init)

    def __call__(self, x_BTD: jax.Array, **options: Any) -> tuple[jax.Array, KV | None]:
        """As of `Decoder`; a network computes the prefix once for all layers."""
        if isinstance(self.prefix, PrefixNetwork):
            decoder = jax.tree.map(lambda x: x, self)
            decoder.prefix = nnx.Param(self.prefix())
            return decoder(x_BTD, **options)
        return super().__call__(x_BTD, **options)

    def read(self, rows: int) -> jax.Array:
        """1: every row reads all of the prefix."""
        return jnp.ones((rows, self.tokens), jnp.int32)

    def _slots(self) -> np.ndarray:
        """The slot of each layer's keys; its values are in the next one. int [L]."""
        layers = np.arange(self.config.num_decoder_layers)
        return (4 * layers) % (2 * len(layers)) if self.shared else 2 * layers

    def first_kv(self, rows: int) -> KV:
        """The keys and values of the prefix for every row, two of [L, B, P, K, H] in the compute dtype."""
        prefix = self.prefix() if isinstance(self.prefix, PrefixNetwork) else self.prefix[...]
        slots, prefix = self._slots(), prefix.astype(self.config.dtype)
        spread = lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], rows, *x.shape[1:]))
        return spread(prefix[slots]), spread(prefix[slots + 1])


class PrefixNetwork(nnx.Module):
    """Trained embeddings and the MLP that makes keys and values of them, PEFT's PrefixEncoder: () -> [2 L, P, K, H]."""

    def __init__(self, emb_dim: int, hidden: int, shape: tuple[int, int, int, int], scope: Scope):
        self.shape = slots, tokens, kv_heads, head_dim = shape
        normal = jax.nn.initializers.normal(1.0)
        self.embedding = scope.parameter('embedding', (tokens, emb_dim), ('prompt', 'embed'), normal)
        self.dense_0 = Dense(emb_dim, hidden, scope / 'dense_0')
        self.dense_1 = Dense(hidden, slots * kv_heads * head_dim, scope / 'dense_1')

    def __call__(self) -> jax.Array:
        """The keys and values of each layer in turn, float32 [2 L, P, K, H]."""
        slots, tokens, kv_heads, head_dim = self.shape
        x_PO = self.dense_1(jnp.tanh(self.dense_0(self.embedding[...])))
        return jnp.moveaxis(x_PO.reshape(tokens, slots, kv_heads, head_dim), 1, 0)


class RowPrefixedDecoder(Extension, _PrefixDecoder):
    """A decoder with the prefixes of several adapters, of which each row reads one or none."""

    def with_all(self, prefixes: Mapping[int, KV]) -> 'RowPrefixedDecoder':
        """The module itself, with these: number of the adapter -> keys and values, two of [L, P, K, H]."""
        places_first = lambda x_LPKH: jnp.moveaxis(x_LPKH, 0, 1)
        self.prefix_k = VirtualTokens({number: places_first(k_LPKH) for number, (k_LPKH, _) in prefixes.items()})
        self.prefix_v = VirtualTokens({number: places_first(v_LPKH) for number, (_, v_LPKH) in prefixes.items()})
        self.hold_choice()
        return self

    def read(self, rows: int) -> jax.Array:
        """1 where a row reads a place."""
        return self.prefix_k.read(self.chosen(rows))

    def segment_ids(self, mask: Mask, x_BTD: jax.Array) -> jax.Array:
        """The segment ids of the keys of x, by default one segment."""
        ids_BS = mask.kv_segment_ids_BS
        return jnp.ones(x_BTD.shape[:2], jnp.int32) if ids_BS is None else jnp.asarray(ids_BS)

    def first_kv(self, rows: int) -> KV:
        """The keys and values of the prefix of each row, two of [L, B, P, K, H] in the compute dtype."""
        chosen_B = self.chosen(rows)
        of_rows = lambda table: jnp.moveaxis(table.of_rows(chosen_B), 2, 0).astype(self.config.dtype)
        return of_rows(self.prefix_k), of_rows(self.prefix_v)

    def with_unread(self, pad_B: jax.Array) -> jax.Array:
        """The padding of each row and the places of the prefix that it does not read."""
        return super().with_unread(pad_B) + self.prefix_k.unread(self.chosen(len(pad_B)))
