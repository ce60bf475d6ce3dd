"""Prefix tuning (https://arxiv.org/abs/2101.00190): trained keys and values before those of the decoder's tokens.

B batch, T length, P prefix length, L layers, K key-value heads, H head_dim. The prefix counts in positions: the first
token has position P, as in PEFT. Its keys are not rotated.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from t5flan.adapters.config import Adapter
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
    """

    packed: ClassVar[bool] = False

    tokens: int = 20
    shared: bool = False

    def __post_init__(self) -> None:
        require_count('PrefixTuning.tokens', self.tokens)
        require(isinstance(self.shared, bool), 'PrefixTuning.shared', self.shared, 'True or False')

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


class PrefixedDecoder(Decoder):
    """A decoder whose self-attention reads P keys and values before those of the tokens, in each layer."""

    def __init__(self, base: Decoder, scope: Scope, settings: PrefixTuning):
        self.config, self.shared = base.config, settings.shared
        self.layers, self.relpos_bias, self.decoder_norm = base.layers, base.relpos_bias, base.decoder_norm
        if not base.config.tie_embeddings:
            self.logits_dense = base.logits_dense
        config = base.config
        init = jax.nn.initializers.normal(1.0)  # as large as keys and values of normed states are at first
        self.prefix = scope.parameter(
            'prefix',
            (2 * config.num_decoder_layers, settings.tokens, config.kv_heads, config.head_dim),
            ('layers', 'prompt', 'kv_heads', 'kv'),
            init,
        )

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
        tokens, rows = self.prefix.shape[1], x_BTD.shape[0]

        def with_prefix(x_BT: jax.Array | None) -> jax.Array | None:
            return None if x_BT is None else before_tokens(jnp.ones((rows, tokens), x_BT.dtype), x_BT, pad_B)

        kv_ids_BM, seen_BM = with_prefix(mask.kv_segment_ids_BS), with_prefix(mask.prefix_BS)
        mask = mask._replace(kv_segment_ids_BS=kv_ids_BM, prefix_BS=seen_BM)
        x_BTD, kv = super().__call__(x_BTD, mask=mask, positions_BT=positions_BT + tokens, pad_B=pad_B, **options)
        x_BTD = unless_packed(x_BTD, segment_ids_BT)
        if kv is None:
            return x_BTD, None
        together = jax.vmap(lambda first, new: before_tokens(first, new, pad_B))
        k_LBMKH, v_LBMKH = (together(first, new) for first, new in zip(self.first_kv(rows), kv, strict=True))
        return x_BTD, (k_LBMKH, v_LBMKH)

    def _slots(self) -> np.ndarray:
        """The slot of each layer's keys; its values are in the next one. int [L]."""
        layers = np.arange(self.config.num_decoder_layers)
        return (4 * layers) % (2 * len(layers)) if self.shared else 2 * layers

    def first_kv(self, rows: int) -> KV:
        """The keys and values of the prefix for every row, two of [L, B, P, K, H] in the compute dtype."""
        slots, prefix = self._slots(), self.prefix[...].astype(self.config.dtype)
        spread = lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], rows, *x.shape[1:]))
        return spread(prefix[slots]), spread(prefix[slots + 1])

    def first_cache(self, layer: jax.Array, rows: int, pad_B: jax.Array | None) -> FirstKV:
        """One layer's prefix."""
        k_LBPKH, v_LBPKH = self.first_kv(rows)
        return FirstKV(k_LBPKH[layer], v_LBPKH[layer], pad_B)
