"""Prefix tuning (https://arxiv.org/abs/2101.00190): trained keys and values before those of the decoder's tokens.

B batch, T length, P prefix length, L layers, K key-value heads, H head_dim. The prefix counts in relative positions:
the first token has position P, as in PEFT.
"""

import jax
import jax.numpy as jnp
import numpy as np

from t5flan.adapters.config import PrefixTuning
from t5flan.adapters.projection import encoder_decoder
from t5flan.models.attention import KV, LayerCache
from t5flan.models.model import Model
from t5flan.models.parameters import Scope
from t5flan.models.stack import Decoder


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


def adapt(model: Model, settings: PrefixTuning, scope: Scope) -> Model:
    """The model with a prefix; its base arrays are the given ones.

    Raises:
        UserError: the model is not an encoder-decoder.
    """
    model = jax.tree.map(lambda x: x, encoder_decoder(model, settings))
    model.decoder = PrefixedDecoder(model.decoder, scope / 'decoder', settings)
    return model
