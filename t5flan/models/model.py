"""What both architectures share: token embedding, logits, and the decoding step.

B batch, T length, D emb_dim, V vocabulary.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t5flan.models.cache import Cache
from t5flan.models.config import ModelConfig
from t5flan.models.layers import TokenEmbedder
from t5flan.models.parameters import Scope
from t5flan.models.stack import Decoder
from t5flan.sharding import constrain

Batch = Mapping[str, jax.Array]  # model feature -> [B, length], T5X's names

START_TOKEN = 0  # the first token a decoder reads, unless its vocabulary defines another; as in T5, the padding token


class Model(nnx.Module):
    """Base class of the architectures: a pytree of float32 parameters with a frozen configuration. Methods are pure."""

    def __init__(self, config: ModelConfig, scope: Scope):
        self.config = config
        self.token_embedder = TokenEmbedder(config, scope / 'token_embedder')
        self.decoder = Decoder(config, scope / 'decoder')

    def hidden(self, batch: Batch, *, dropout_key: jax.Array | None = None) -> jax.Array:
        """Normed hidden states [B, T, D] of the decoder, in the compute dtype; see the architectures."""
        raise NotImplementedError

    def start_cache(self, *args: Any, **kwargs: Any) -> tuple[jax.Array, Cache]:
        """Logits [B, V] of the first new token of each row, and the cache; see the architectures."""
        raise NotImplementedError

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """Hidden states [B, T, D] or [B, D] -> float32 logits [B, T, V] or [B, V]."""
        project = self.token_embedder.logits if self.config.tie_embeddings else self.decoder.logits_dense
        logits_BTV, soft_cap = project(x_BTD), self.config.logits_soft_cap
        if soft_cap is not None:
            logits_BTV = soft_cap * jnp.tanh(logits_BTV / soft_cap)
        return constrain(logits_BTV, (*('batch', 'length')[: x_BTD.ndim - 1], 'act_vocab'))

    def __call__(self, batch: Batch, *, dropout_key: jax.Array | None = None) -> jax.Array:
        """A batch of model features -> all logits [B, T, V], float32. Training uses `hidden`, and logits in chunks."""
        return self.logits(self.hidden(batch, dropout_key=dropout_key))

    def decode_step(self, cache: Cache, tokens_B1: jax.Array) -> tuple[jax.Array, Cache]:
        """Reads one more token in each row -> float32 logits [B, V] of the next token, and the updated cache."""
        x_B1D, cache = self.decoder.step(self.token_embedder(tokens_B1), cache)
        return self.logits(x_B1D)[:, 0], cache


def positions_of(tokens_BT: jax.Array) -> jax.Array:
    """0, 1, 2, ... in every row: int32 [B, T]."""
    return jnp.broadcast_to(jnp.arange(tokens_BT.shape[1], dtype=jnp.int32)[None, :], tokens_BT.shape)
