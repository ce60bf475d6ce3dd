"""T5: an encoder reads the input, a decoder writes the target and attends to it (arXiv:1910.10683).

B batch, S source length, T target length, D emb_dim, V vocabulary.
"""

import jax
import jax.numpy as jnp

from t5flan.models.attention import Mask
from t5flan.models.cache import Cache, empty_places
from t5flan.models.config import ModelConfig
from t5flan.models.model import START_TOKEN, Batch, Model, positions_of
from t5flan.models.parameters import Scope
from t5flan.models.stack import Encoder


class EncoderDecoder(Model):
    """T5 1.0 and 1.1, Flan-T5, mT5, UMT5, ByT5, UL2."""

    def __init__(self, config: ModelConfig, scope: Scope):
        super().__init__(config, scope)
        self.encoder = Encoder(config, scope / 'encoder')

    def encode(
        self,
        encoder_input_tokens_BS: jax.Array,
        encoder_segment_ids_BS: jax.Array | None = None,
        encoder_positions_BS: jax.Array | None = None,
        *,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """Tokens -> what the decoder reads [B, S, D]. Without segment ids, token 0 is padding."""
        tokens_BS = jnp.asarray(encoder_input_tokens_BS)
        positions_BS = positions_of(tokens_BS) if encoder_positions_BS is None else jnp.asarray(encoder_positions_BS)
        mask = Mask(
            causal=False,
            q_segment_ids_BT=encoder_segment_ids_BS,
            kv_segment_ids_BS=_source_segments(tokens_BS, encoder_segment_ids_BS),
        )
        return self.encoder(
            self.token_embedder(tokens_BS), mask=mask, positions_BS=positions_BS, dropout_key=dropout_key
        )

    def hidden(self, batch: Batch, *, dropout_key: jax.Array | None = None) -> jax.Array:
        """Normed hidden states [B, T, D] of the decoder, in the compute dtype. Dropout is on exactly with a key.

        Args:
            batch: encoder_input_tokens [B, S] and decoder_input_tokens [B, T], int32; of packed rows also
                encoder_segment_ids, encoder_positions, decoder_segment_ids and decoder_positions.
        """
        encoder_key, decoder_key = (None, None) if dropout_key is None else jax.random.split(dropout_key)
        source_BS, tokens_BT = jnp.asarray(batch['encoder_input_tokens']), jnp.asarray(batch['decoder_input_tokens'])
        encoded_BSD = self.encode(
            source_BS, batch.get('encoder_segment_ids'), batch.get('encoder_positions'), dropout_key=encoder_key
        )
        segment_ids_BT = batch.get('decoder_segment_ids')  # unpacked: None, since padding comes after every token
        mask = Mask(causal=True, q_segment_ids_BT=segment_ids_BT, kv_segment_ids_BS=segment_ids_BT)
        cross_mask = Mask(
            causal=False,
            q_segment_ids_BT=segment_ids_BT,
            kv_segment_ids_BS=_source_segments(source_BS, batch.get('encoder_segment_ids')),
        )
        x_BTD, _ = self.decoder(
            self.token_embedder(tokens_BT),
            mask=mask,
            encoded_BSD=encoded_BSD,
            positions_BT=jnp.asarray(batch.get('decoder_positions', positions_of(tokens_BT))),
            cross_mask=cross_mask,
            dropout_key=decoder_key,
        )
        return x_BTD

    def start_cache(
        self, encoder_input_tokens_BS: jax.Array, max_decode_len: int, *, start_id: int | jax.Array = START_TOKEN
    ) -> tuple[jax.Array, Cache]:
        """Encodes and feeds the start token `start_id`; gives logits [B, V] of the first new token and a cache.

        `max_decode_len` is how many more tokens `decode_step` can be fed.
        """
        source_BS = jnp.asarray(encoder_input_tokens_BS)
        encoded_BSD, rows, layers = self.encode(source_BS), source_BS.shape[0], self.config.num_decoder_layers
        cross_k, cross_v = jax.vmap(lambda attention: attention.keys_values(encoded_BSD))(
            self.decoder.layers.encoder_decoder_attention
        )
        nothing = jnp.zeros((layers, rows, 0, self.config.kv_heads, self.config.head_dim), self.config.dtype)
        cache = Cache(
            jnp.int32(0),
            jnp.zeros(rows, jnp.int32),
            *empty_places((nothing, nothing), 1 + max_decode_len),
            cross_k,
            cross_v,
            _source_segments(source_BS, None),
        )
        return self.decode_step(cache, jnp.broadcast_to(jnp.asarray(start_id, jnp.int32), (rows,))[:, None])


def _source_segments(tokens_BS: jax.Array, segment_ids_BS: jax.Array | None) -> jax.Array:
    return (tokens_BS > 0).astype(jnp.int32) if segment_ids_BS is None else jnp.asarray(segment_ids_BS)
