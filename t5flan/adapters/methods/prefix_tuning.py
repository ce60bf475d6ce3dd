"""Prefix tuning (https://arxiv.org/abs/2101.00190): trained keys and values before those of the decoder's tokens.

B batch, T length, P prefix length, L layers, K key-value heads, H head_dim. The prefix counts in relative positions:
the first token has position P, as in PEFT.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from t5flan.adapters.config import Adapter
from t5flan.adapters.projection import encoder_decoder
from t5flan.config.checks import require, require_count
from t5flan.models.attention import KV, LayerCache
from t5flan.models.model import Model
from t5flan.models.parameters import Scope
from t5flan.models.stack import Decoder


@dataclasses.dataclass(frozen=True)
class PrefixTuning(Adapter):
    """Prefix tuning (https://arxiv.org/abs/2101.00190): trained keys and values in each layer of the decoder.

    Its self-attention reads them before its own. Rows are not packed, and the model is an encoder-decoder.

    Attributes:
        tokens: how many keys and values a layer reads.
        shared: two layers read the same keys and values, as in PEFT for T5: layer i has those of layer 2 i modulo the
            number of layers.
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
            UserError: the model is not an encoder-decoder.
        """
        model = jax.tree.map(lambda x: x, encoder_decoder(model, self))  # new modules, the same arrays
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

    def _slots(self) -> np.ndarray:
        """The slot of each layer's keys; its values are in the next one. int [L]."""
        layers = np.arange(self.config.num_decoder_layers)
        return (4 * layers) % (2 * len(layers)) if self.shared else 2 * layers

    def first_kv(self, rows: int) -> KV:
        """The keys and values of the prefix for every row, two of [L, B, P, K, H] in the compute dtype."""
        slots, prefix = self._slots(), self.prefix[...].astype(self.config.dtype)
        spread = lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], rows, *x.shape[1:]))
        return spread(prefix[slots]), spread(prefix[slots + 1])

    def first_cache(self, layer: jax.Array, rows: int, length: int) -> LayerCache:
        """One layer's prefix, and room for `length` tokens after it."""
        kv = (x[layer] for x in self.first_kv(rows))
        k_BMKH, v_BMKH = (jnp.pad(x, ((0, 0), (0, length), (0, 0), (0, 0))) for x in kv)
        return LayerCache(k_BMKH, v_BMKH, jnp.int32(self.prefix.shape[1]))
