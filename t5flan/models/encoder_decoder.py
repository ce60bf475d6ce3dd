"""The encoder-decoder architecture, T5 (arXiv:1910.10683): the decoder attends to the encoded input.

B batch, S source length, T target length, D emb_dim, V vocabulary.
"""

import jax
import jax.numpy as jnp

from t5flan.models.attention import Mask
from t5flan.models.cache import Cache, pad_kv
from t5flan.models.config import ModelConfig
from t5flan.models.model import START_TOKEN, Batch, Model, positions_of
from t5flan.models.parameters import Scope
from t5flan.models.stack import Encoder


class EncoderDecoder(Model):
    """T5 1.0 and 1.1, Flan-T5, mT5, UMT5, ByT5, UL2, T5Gemma, T5Gemma 2."""

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
        """Tokens -> normed hidden states [B, S, D], which the decoder attends to.

        Segment ids and positions are those of packed rows; without segment ids, token 0 is padding.
        """
        tokens_BS = jnp.asarray(encoder_input_tokens_BS)
        x_BSD = self.embed_source(tokens_BS)
        positions_BS = encoder_positions_BS
        positions_BS = self.source_positions(x_BSD) if positions_BS is None else jnp.asarray(positions_BS)
        mask = Mask(False, encoder_segment_ids_BS, self.source_segments(tokens_BS, encoder_segment_ids_BS))
        return self.encoder(x_BSD, mask=mask, positions_BS=positions_BS, dropout_key=dropout_key)

    def embed_source(self, tokens_BS: jax.Array) -> jax.Array:
        """What the encoder reads: the embedded tokens [B, S, D]; adapters may put more before them."""
        return (self.encoder.token_embedder or self.token_embedder)(tokens_BS)

    def source_positions(self, x_BSD: jax.Array) -> jax.Array:
        """The position of each embedded token of a row that is not packed, int32 [B, S]."""
        return positions_of(x_BSD[..., 0])

    def source_segments(self, tokens_BS: jax.Array, segment_ids_BS: jax.Array | None) -> jax.Array:
        """The segment of each position of the encoder, int32 [B, S]; 0 is padding."""
        return (tokens_BS > 0).astype(jnp.int32) if segment_ids_BS is None else jnp.asarray(segment_ids_BS)

    def hidden(self, batch: Batch, *, dropout_key: jax.Array | None = None) -> jax.Array:
        """Normed hidden states [B, T, D] of the decoder, in the compute dtype. Dropout is on exactly if there is a key.

        Args:
            batch: encoder_input_tokens [B, S] and decoder_input_tokens [B, T], int32; for packed rows also
                encoder_segment_ids, encoder_positions, decoder_segment_ids and decoder_positions.
        """
        encoder_key, decoder_key = (None, None) if dropout_key is None else jax.random.split(dropout_key)
        source_BS, tokens_BT = jnp.asarray(batch['encoder_input_tokens']), jnp.asarray(batch['decoder_input_tokens'])
        source_ids_BS, source_positions_BS = batch.get('encoder_segment_ids'), batch.get('encoder_positions')
        encoded_BSD = self.encode(source_BS, source_ids_BS, source_positions_BS, dropout_key=encoder_key)
        segment_ids_BT = batch.get('decoder_segment_ids')  # unpacked: None, since padding follows all tokens
        source_ids_BS = self.source_segments(source_BS, source_ids_BS)
        mask = Mask(True, segment_ids_BT, segment_ids_BT)
        cross_mask: Mask | None = Mask(False, segment_ids_BT, source_ids_BS)
        if self.config.merged_attention:
            mask, cross_mask = merged_mask(mask, source_ids_BS, tokens_BT.shape[1]), None
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
        """Encodes the input and reads the start token.

        Args:
            encoder_input_tokens_BS: int32; 0 is padding.
            max_decode_len: how many more tokens `decode_step` can read.
            start_id: the start token, one for all rows or one for each [B].

        Returns:
            Logits [B, V] of the first new token, and the cache.
        """
        source_BS = jnp.asarray(encoder_input_tokens_BS)
        encoded_BSD, rows, layers = self.encode(source_BS), source_BS.shape[0], self.config.num_decoder_layers
        start_B1 = jnp.broadcast_to(jnp.asarray(start_id, jnp.int32), (rows,))[:, None]
        if self.config.merged_attention:
            return self.decode_step(self._merged_cache(source_BS, encoded_BSD, 1 + max_decode_len), start_B1)
        project = jax.vmap(lambda attention: attention.project_kv(encoded_BSD))
        cross_k, cross_v = project(self.decoder.layers.encoder_decoder_attention)
        empty = jnp.zeros((layers, rows, 0, self.config.kv_heads, self.config.head_dim), self.config.dtype)
        first = self.decoder.first_kv(rows) or (empty, empty)
        index, kv = jnp.int32(first[0].shape[2]), pad_kv(first, 1 + max_decode_len)
        pad_B = self.decoder.with_unread(jnp.zeros(rows, jnp.int32))
        cache = Cache(index, pad_B, *kv, cross_k, cross_v, self.source_segments(source_BS, None))
        return self.decode_step(cache, start_B1)

    def _merged_cache(self, source_BS: jax.Array, encoded_BSD: jax.Array, new_slots: int) -> Cache:
        """A cache whose first S slots are the encoder's output, with padding moved to the left."""
        project = jax.vmap(lambda attention: attention.project_kv(encoded_BSD, rotated=False))
        is_token_BS = self.source_segments(source_BS, None) > 0
        # Their keys have no positions, so that only their order among each other is lost.
        order_1BS11 = jnp.argsort(is_token_BS, axis=1, stable=True)[None, :, :, None, None]
        k, v = (jnp.take_along_axis(x, order_1BS11, axis=2) for x in project(self.decoder.layers.self_attention))
        slots, kv = is_token_BS.shape[1], pad_kv((k, v), new_slots)
        return Cache(jnp.int32(slots), slots - jnp.sum(is_token_BS, axis=1, dtype=jnp.int32), *kv, encoded=slots)


def merged_mask(mask: Mask, source_ids_BS: jax.Array, tokens: int) -> Mask:
    """The mask of keys [B, S + T], which are those of the encoder's output and then those of `tokens` T tokens."""
    rows, ids_BT = source_ids_BS.shape[0], mask.kv_segment_ids_BS
    ids_BT = jnp.ones((rows, tokens), jnp.int32) if ids_BT is None else ids_BT
    prefix_BM = jnp.pad(jnp.ones(source_ids_BS.shape, jnp.int32), ((0, 0), (0, tokens)))
    kv_ids_BM = jnp.concatenate([source_ids_BS, ids_BT], axis=1)
    return mask._replace(kv_segment_ids_BS=kv_ids_BM, prefix_BS=prefix_BM, far_prefix=True)
