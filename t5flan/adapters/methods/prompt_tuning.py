"""Prompt tuning (https://arxiv.org/abs/2104.08691): trained vectors stand before the encoder's embedded input.

B batch, S source length, P vectors, D emb_dim, V vocabulary.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from t5flan.adapters.config import Adapter
from t5flan.adapters.projection import encoder_decoder
from t5flan.config.checks import is_count, require, require_count
from t5flan.errors import UserError
from t5flan.models.encoder_decoder import EncoderDecoder
from t5flan.models.model import Model
from t5flan.models.parameters import Scope


@dataclasses.dataclass(frozen=True)
class PromptTuning(Adapter):
    """Prompt tuning (https://arxiv.org/abs/2104.08691): trained vectors before the encoder's input.

    They begin as embeddings of random tokens. Rows are not packed, and the model is an encoder-decoder.

    Attributes:
        tokens: how many vectors are read.
        rows: how many are stored; PEFT stores twice as many as a model reads. None = as many as `tokens`.
    """

    packed: ClassVar[bool] = False

    tokens: int = 20
    rows: int | None = None

    def __post_init__(self) -> None:
        require_count('PromptTuning.tokens', self.tokens)
        enough = self.rows is None or is_count(self.rows, self.tokens)
        require(enough, 'PromptTuning.rows', self.rows, f'an integer of {self.tokens} (PromptTuning.tokens) or more')

    def adapt(self, model: Model, scope: Scope) -> Model:
        """The model with a prompt.

        Raises:
            UserError: the model is not an encoder-decoder.
        """
        return PromptedEncoderDecoder(encoder_decoder(model, self), scope, self)


class PromptedEncoderDecoder(EncoderDecoder):
    """An encoder-decoder whose encoder reads P vectors and then its tokens; both are attended to."""

    def __init__(self, base: EncoderDecoder, scope: Scope, settings: PromptTuning):
        self.config, self.tokens = base.config, settings.tokens
        self.token_embedder, self.encoder, self.decoder = base.token_embedder, base.encoder, base.decoder
        embedding_VD = base.token_embedder.embedding[...]

        def some_embeddings(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
            return embedding_VD[jax.random.randint(key, shape[:1], 0, embedding_VD.shape[0])].astype(dtype)

        shape = (settings.rows or settings.tokens, base.config.emb_dim)
        self.prompt = scope.parameter('prompt', shape, ('prompt', 'embed'), some_embeddings)

    def embed_source(self, tokens_BS: jax.Array) -> jax.Array:
        """The prompt and the embedded tokens, [B, P + S, D]. The prompt is not scaled as embeddings may be."""
        x_BSD = super().embed_source(tokens_BS)
        prompt_PD = self.prompt[...][: self.tokens].astype(x_BSD.dtype)
        prompt_BPD = jnp.broadcast_to(prompt_PD[None], (x_BSD.shape[0], *prompt_PD.shape))
        return jnp.concatenate([prompt_BPD, x_BSD], axis=1)

    def source_segments(self, tokens_BS: jax.Array, segment_ids_BS: jax.Array | None) -> jax.Array:
        """The segment of each position, int32 [B, P + S]: 1, or 0 for padding.

        Raises:
            UserError: rows are packed.
        """
        if segment_ids_BS is not None:
            raise UserError('PromptTuning got packed rows, expected one example in a row. Set DataConfig.pack=False.')
        segment_ids_BS = super().source_segments(tokens_BS, None)
        return jnp.pad(segment_ids_BS, ((0, 0), (self.tokens, 0)), constant_values=1)
