"""Prompt tuning (https://arxiv.org/abs/2104.08691): trained vectors stand before the embedded input.

That is the input of the encoder, or of a decoder-only model. The vectors count in positions: the first token has
position P, as in PEFT.

B batch, S source length, T length, P vectors, D emb_dim, V vocabulary.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from t5flan.adapters.config import Adapter
from t5flan.config.checks import is_count, require, require_count
from t5flan.errors import UserError
from t5flan.models.decoder_only import DecoderOnly
from t5flan.models.encoder_decoder import EncoderDecoder
from t5flan.models.model import Batch, Model
from t5flan.models.parameters import Scope
from t5flan.models.positions import before_tokens


@dataclasses.dataclass(frozen=True)
class PromptTuning(Adapter):
    """Prompt tuning (https://arxiv.org/abs/2104.08691): trained vectors before the input.

    That is the input of the encoder, or of a decoder-only model. The vectors begin as embeddings of random tokens. Rows
    are not packed.

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
        """The model with a prompt."""
        embedder = model.encoder.token_embedder if isinstance(model, EncoderDecoder) else None
        embedding_VD = (embedder or model.token_embedder).embedding[...]

        def some_embeddings(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
            return embedding_VD[jax.random.randint(key, shape[:1], 0, embedding_VD.shape[0])].astype(dtype)

        shape = (self.rows or self.tokens, model.config.encoder_config.emb_dim)
        return with_prompt(model, self.tokens, scope.parameter('prompt', shape, ('prompt', 'embed'), some_embeddings))


class PromptedEncoderDecoder(EncoderDecoder):
    """An encoder-decoder whose encoder reads P vectors and then its tokens; both are attended to."""

    def __init__(self, base: EncoderDecoder, tokens: int, prompt: Any):
        """`prompt` is a parameter, or a module that computes the vectors; the first `tokens` of them are read."""
        self.config, self.tokens, self.prompt = base.config, tokens, prompt
        self.token_embedder, self.encoder, self.decoder = base.token_embedder, base.encoder, base.decoder

    def embed_source(self, tokens_BS: jax.Array) -> jax.Array:
        """The prompt and the embedded tokens, [B, P + S, D]. The prompt is not scaled as embeddings may be."""
        x_BSD = super().embed_source(tokens_BS)
        return before_tokens(_vectors(self.prompt, self.tokens, x_BSD), x_BSD)

    def source_segments(self, tokens_BS: jax.Array, segment_ids_BS: jax.Array | None) -> jax.Array:
        """The segment of each position, int32 [B, P + S]: 1, or 0 for padding.

        Raises:
            UserError: rows are packed.
        """
        if segment_ids_BS is not None:
            raise UserError('a prompt got packed rows, expected one example in a row. Set DataConfig.pack=False.')
        segment_ids_BS = super().source_segments(tokens_BS, None)
        return jnp.pad(segment_ids_BS, ((0, 0), (self.tokens, 0)), constant_values=1)


class PromptedDecoderOnly(DecoderOnly):
    """A decoder-only model that reads P vectors and then its tokens. They belong to the prefix of a prefix LM."""

    def __init__(self, base: DecoderOnly, tokens: int, prompt: Any):
        """As of `PromptedEncoderDecoder`."""
        self.config, self.tokens, self.prompt = base.config, tokens, prompt
        self.token_embedder, self.decoder = base.token_embedder, base.decoder

    def hidden(self, batch: Batch, *, dropout_key: jax.Array | None = None) -> jax.Array:
        """Normed hidden states [B, T, D] of the tokens, in the compute dtype; see `DecoderOnly`.

        Packed rows, whose later examples would not see the prompt, become NaN.
        """
        features, segment_ids_BT = dict(batch), batch.get('decoder_segment_ids')
        features.pop('decoder_positions', None)  # those of rows that are not packed are 0, 1, 2, ...
        for name in ('decoder_segment_ids', 'decoder_causal_attention'):
            if name in features:
                x_BT = jnp.asarray(features[name])
                features[name] = jnp.pad(x_BT, ((0, 0), (self.tokens, 0)), constant_values=1)
        x_BTD = super().hidden(features, dropout_key=dropout_key)[:, self.tokens :]
        return unless_packed(x_BTD, segment_ids_BT)

    def embed(self, tokens_BT: jax.Array, pad_B: jax.Array | None = None) -> jax.Array:
        """The prompt and the embedded tokens, [B, P + T, D]. The prompt is not scaled as embeddings may be."""
        x_BTD = super().embed(tokens_BT)
        return before_tokens(_vectors(self.prompt, self.tokens, x_BTD), x_BTD, pad_B)


def _vectors(prompt: Any, tokens: int, x_BTD: jax.Array) -> jax.Array:
    """The prompt for the rows of x, [B, P, D] in its dtype."""
    prompt_PD = prompt[...] if isinstance(prompt, nnx.Param) else prompt()
    prompt_PD = prompt_PD[:tokens].astype(x_BTD.dtype)
    return jnp.broadcast_to(prompt_PD[None], (x_BTD.shape[0], *prompt_PD.shape))


def unless_packed(x_BTD: jax.Array, segment_ids_BT: jax.Array | None) -> jax.Array:
    """The states of rows with one example; those of rows with more become NaN, so that they cannot go unnoticed."""
    if segment_ids_BT is None:
        return x_BTD
    is_packed_B = jnp.max(jnp.asarray(segment_ids_BT), axis=1) > 1
    return jnp.where(is_packed_B[:, None, None], jnp.nan, x_BTD)


def with_prompt(model: Model, tokens: int, prompt: Any) -> Model:
    """The model with `tokens` vectors of `prompt` before its input; its base arrays are the given ones."""
    if isinstance(model, EncoderDecoder):
        return PromptedEncoderDecoder(model, tokens, prompt)
    assert isinstance(model, DecoderOnly)
    return PromptedDecoderOnly(model, tokens, prompt)
