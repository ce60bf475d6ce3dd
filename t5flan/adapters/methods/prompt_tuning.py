"""Prompt tuning (https://arxiv.org/abs/2104.08691): trained vectors stand before the embedded input.

That is the input of the encoder, or of a decoder-only model. The vectors count in positions: the first token has
position P, as in PEFT.

B batch, S source length, T length, P vectors, D emb_dim, V vocabulary.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from t5flan.adapters.choice import Extension, VirtualTokens, copy_attributes, extended
from t5flan.adapters.config import Adapter
from t5flan.config.checks import is_count, require, require_count
from t5flan.errors import UserError
from t5flan.models.attention import Mask
from t5flan.models.decoder_only import DecoderOnly
from t5flan.models.encoder_decoder import EncoderDecoder
from t5flan.models.model import Batch, Model, positions_of
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

    @staticmethod
    def by_row(model: Model, adapted: Mapping[int, Model]) -> Model:
        """The model with the prompts of several adapters, also of P-tuning."""
        assert isinstance(model, EncoderDecoder | DecoderOnly)
        kind = RowPromptedEncoderDecoder if isinstance(model, EncoderDecoder) else RowPromptedDecoderOnly
        prompts = {}
        for number, one in adapted.items():
            assert isinstance(one, PromptedEncoderDecoder | PromptedDecoderOnly)
            prompts[number] = _vectors(one.prompt)[: one.tokens]
        combined: Model = extended(model, kind).with_all(prompts)
        return combined


class PromptedEncoderDecoder(EncoderDecoder):
    """An encoder-decoder whose encoder reads P vectors and then its tokens; both are attended to."""

    def __init__(self, base: EncoderDecoder, tokens: int, prompt: Any):
        """`prompt` is a parameter, or a module that computes the vectors; the first `tokens` of them are read."""
        copy_attributes(base, self)
        self.tokens, self.prompt = tokens, prompt

    def embed_source(self, tokens_BS: jax.Array) -> jax.Array:
        """The prompt and the embedded tokens, [B, P + S, D]. The prompt is not scaled as embeddings may be."""
        x_BSD = super().embed_source(tokens_BS)
        return before_tokens(_for_rows(self.prompt, self.tokens, x_BSD), x_BSD)

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
        copy_attributes(base, self)
        self.tokens, self.prompt = tokens, prompt

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
        return before_tokens(_for_rows(self.prompt, self.tokens, x_BTD), x_BTD, pad_B)


class _RowPrompts(Extension):
    """What both architectures share: the prompts of several adapters, of which each row reads one or none."""

    def with_all(self, prompts: Mapping[int, jax.Array]) -> Any:
        """The model itself, with these: number of the adapter -> its vectors, [P, D]."""
        self.prompts = VirtualTokens(prompts)
        self.hold_choice()
        return self

    def before(self, x_BTD: jax.Array, pad_B: jax.Array | None = None) -> jax.Array:
        """The prompt of each row, and then x: [B, P + T, D]."""
        vectors_BPD = self.prompts.of_rows(self.chosen(x_BTD.shape[0]))
        return before_tokens(vectors_BPD.astype(x_BTD.dtype), x_BTD, pad_B)


class RowPromptedEncoderDecoder(_RowPrompts, EncoderDecoder):
    """An encoder-decoder whose encoder reads the prompt that each row has, and then its tokens."""

    def embed_source(self, tokens_BS: jax.Array) -> jax.Array:
        """The prompt and the embedded tokens, [B, P + S, D]."""
        return self.before(super().embed_source(tokens_BS))

    def source_positions(self, x_BSD: jax.Array) -> jax.Array:
        """Positions that begin at the first vector, or token, that a row reads."""
        unread_B = self.prompts.unread(self.chosen(x_BSD.shape[0]))
        return jnp.maximum(super().source_positions(x_BSD) - unread_B[:, None], 0)

    def source_segments(self, tokens_BS: jax.Array, segment_ids_BS: jax.Array | None) -> jax.Array:
        """As of `PromptedEncoderDecoder`; vectors that a row does not read are padding."""
        segment_ids_BS = super().source_segments(tokens_BS, segment_ids_BS)
        return before_tokens(self.prompts.read(self.chosen(tokens_BS.shape[0])), segment_ids_BS)


class RowPromptedDecoderOnly(_RowPrompts, DecoderOnly):
    """A decoder-only model that reads the prompt that each row has, and then its tokens."""

    def hidden(self, batch: Batch, *, dropout_key: jax.Array | None = None) -> jax.Array:
        """As of `PromptedDecoderOnly`."""
        tokens_BT = jnp.asarray(batch['decoder_input_tokens'])
        segment_ids_BT, prefix_BT = batch.get('decoder_segment_ids'), batch.get('decoder_causal_attention')
        x_BTD, pad_B = self.embed(tokens_BT), self.with_unread(jnp.zeros(len(tokens_BT), jnp.int32))
        place_BT = positions_of(x_BTD[..., 0]) - pad_B[:, None]
        ids_BT, seen_BT = (place_BT >= 0).astype(jnp.int32), None
        first = x_BTD.shape[1] - tokens_BT.shape[1]
        if segment_ids_BT is not None:
            ids_BT = ids_BT.at[:, first:].set(jnp.asarray(segment_ids_BT))
        if prefix_BT is not None:
            seen_BT = jnp.pad(jnp.asarray(prefix_BT) > 0, ((0, 0), (first, 0)), constant_values=True) & (ids_BT > 0)
        mask, positions_BT = Mask(True, ids_BT, ids_BT, seen_BT), jnp.maximum(place_BT, 0)
        where: dict[str, Any] = dict(positions_BT=positions_BT, pad_B=pad_B, dropout_key=dropout_key)
        return unless_packed(self.decoder(x_BTD, mask=mask, **where)[0][:, first:], segment_ids_BT)

    def embed(self, tokens_BT: jax.Array, pad_B: jax.Array | None = None) -> jax.Array:
        """The prompt and the embedded tokens, [B, P + T, D]."""
        return self.before(super().embed(tokens_BT, pad_B), pad_B)

    def with_unread(self, pad_B: jax.Array) -> jax.Array:
        """The padding of each row and the vectors that it does not read."""
        return super().with_unread(pad_B) + self.prompts.unread(self.chosen(len(pad_B)))


def _vectors(prompt: Any) -> jax.Array:
    """All vectors of a prompt, float32 [P, D]."""
    return prompt[...] if isinstance(prompt, nnx.Param) else prompt()


def _for_rows(prompt: Any, tokens: int, x_BTD: jax.Array) -> jax.Array:
    """The prompt for the rows of x, [B, P, D] in its dtype."""
    prompt_PD = _vectors(prompt)[:tokens].astype(x_BTD.dtype)
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
