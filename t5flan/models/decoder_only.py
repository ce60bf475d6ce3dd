"""The decoder-only architecture: causal language models and prefix LMs (PaLM, Llama, Gemma).

B batch, T length, P prompt length, D emb_dim, V vocabulary.
"""

import jax
import jax.numpy as jnp

from t5flan.models.attention import Mask
from t5flan.models.cache import Cache, pad_kv
from t5flan.models.model import START_TOKEN, Batch, Model, positions_of


class DecoderOnly(Model):
    """One stack; causal, or bidirectional over the prefix that a batch marks."""

    def hidden(self, batch: Batch, *, dropout_key: jax.Array | None = None) -> jax.Array:
        """Normed hidden states [B, T, D], in the compute dtype. Dropout is on exactly if there is a key.

        Args:
            batch: decoder_input_tokens [B, T], int32; for packed rows also decoder_segment_ids and decoder_positions;
                for a prefix LM decoder_causal_attention, 1 for tokens of the prefix, which all of their segment sees.
        """
        tokens_BT = jnp.asarray(batch['decoder_input_tokens'])
        segment_ids_BT, prefix_BT = batch.get('decoder_segment_ids'), batch.get('decoder_causal_attention')
        seen_BT = None if prefix_BT is None else jnp.asarray(prefix_BT) > 0
        mask, x_BTD = Mask(True, segment_ids_BT, segment_ids_BT, seen_BT), self.embed(tokens_BT)
        positions_BT = jnp.asarray(batch.get('decoder_positions', positions_of(x_BTD[..., 0])))
        return self.decoder(x_BTD, mask=mask, dropout_key=dropout_key, positions_BT=positions_BT)[0]

    def embed(self, tokens_BT: jax.Array, pad_B: jax.Array | None = None) -> jax.Array:
        """What the decoder reads: the embedded tokens [B, T, D]; adapters may put more before them.

        `pad_B` tells how many tokens at the left of each row are padding.
        """
        return self.token_embedder(tokens_BT)

    def with_unread(self, pad_B: jax.Array) -> jax.Array:
        """How many positions at the left of each row are padding, with those that `embed` put there."""
        return pad_B

    def start_cache(
        self,
        prompt_tokens_BP: jax.Array,
        max_decode_len: int,
        *,
        prefix_lm: bool = False,
        start_id: int | jax.Array = START_TOKEN,
        pad_B: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Reads prompts of different lengths in one pass.

        Prompts are padded with 0 at the LEFT and do not contain the start token: it is inserted before each of them
        here, as a row starts with it in training too (targets shifted right). For prompts [0, 0, 7, 8] and
        [4, 5, 6, 7] the model reads, at the positions below,

            tokens     0  0 [0] 7  8     [0] 4  5  6  7      [0] is the start token
            positions  -  -  0  1  2      0  1  2  3  4

        Args:
            prompt_tokens_BP: int32.
            max_decode_len: how many more tokens `decode_step` can read.
            prefix_lm: the prompt and its start token see each other in both directions, as a prefix does in training.
            start_id: the start token, one for all rows or one for each [B].
            pad_B: how many tokens at the left of each prompt are padding, for vocabularies in which 0 is a word;
                default: all zeros at the left.

        Returns:
            Logits [B, V] of the token after each prompt, and the cache.
        """
        prompt_BP = jnp.asarray(prompt_tokens_BP, jnp.int32)
        if pad_B is None:
            pad_B = jnp.sum(jnp.cumsum(prompt_BP != 0, axis=1) == 0, axis=1, dtype=jnp.int32)
        tokens_BT = jnp.pad(prompt_BP, ((0, 0), (1, 0)))
        is_start_BT = positions_of(tokens_BT) == pad_B[:, None]
        tokens_BT = jnp.where(is_start_BT, jnp.broadcast_to(start_id, pad_B.shape)[:, None], tokens_BT)
        x_BTD, pad_B = self.embed(tokens_BT, pad_B), self.with_unread(pad_B)
        positions_BT = positions_of(x_BTD[..., 0]) - pad_B[:, None]
        real_BT, positions_BT = positions_BT >= 0, jnp.maximum(positions_BT, 0)
        mask = Mask(True, kv_segment_ids_BS=real_BT.astype(jnp.int32), prefix_BS=real_BT if prefix_lm else None)
        x_BTD, kv = self.decoder(x_BTD, mask=mask, return_kv=True, positions_BT=positions_BT, pad_B=pad_B)
        assert kv is not None  # because of return_kv
        cache = Cache(jnp.int32(kv[0].shape[2]), self.decoder.with_unread(pad_B), *pad_kv(kv, max_decode_len))
        return self.logits(x_BTD[:, -1:])[:, 0], cache
