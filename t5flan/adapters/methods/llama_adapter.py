"""LLaMA-Adapter (https://arxiv.org/abs/2303.16199): gated prompts in the self-attention of the top layers.

    y = attention(q, keys, values) + gate * softmax(q k / scale) v        k, v: projections of the layer's P vectors

The gate begins at zero, so that the adapted model begins as the base. The vectors have no positions, and every token
reads all of them; as in PEFT, there is one gate in a layer.

B batch, T length, P vectors, D emb_dim, N heads, K key-value heads, H head_dim, L layers, A adapted layers.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t5flan.adapters.choice import Extension, copy_attributes, extended
from t5flan.adapters.config import Adapter
from t5flan.config.checks import require_count
from t5flan.errors import UserError
from t5flan.kernels.attention import attend
from t5flan.models.attention import KV, Attention
from t5flan.models.config import ModelConfig
from t5flan.models.encoder_decoder import EncoderDecoder
from t5flan.models.model import Model
from t5flan.models.parameters import Scope
from t5flan.models.stack import Decoder, Encoder


@dataclasses.dataclass(frozen=True)
class LlamaAdapter(Adapter):
    """LLaMA-Adapter (https://arxiv.org/abs/2303.16199): gated prompts in the self-attention of the top layers.

    Those are layers of the decoder, and in an encoder-decoder also of the encoder.

    Attributes:
        tokens: how many vectors a layer has.
        layers: how many layers of each stack have them, counted from the top; None = all.
    """

    tokens: int = 10
    layers: int | None = None

    def __post_init__(self) -> None:
        require_count('LlamaAdapter.tokens', self.tokens)
        if self.layers is not None:
            require_count('LlamaAdapter.layers', self.layers)

    def adapt(self, model: Model, scope: Scope) -> Model:
        """The model with gated prompts.

        Raises:
            UserError: there are fewer layers.
        """
        model = jax.tree.map(lambda x: x, model)  # new modules, the same arrays
        if isinstance(model, EncoderDecoder):
            model.encoder = GatedEncoder(model.encoder, scope / 'encoder', self)
        model.decoder = GatedDecoder(model.decoder, scope / 'decoder', self)
        return model

    @staticmethod
    def by_row(model: Model, adapted: Mapping[int, Model]) -> Model:
        """The model with the gated prompts of several adapters."""
        model = jax.tree.map(lambda x: x, model)  # new modules, the same arrays
        for stack, name in (('encoder', 'attention'), ('decoder', 'self_attention')):
            if hasattr(model, stack):
                blocks = {number: getattr(one, stack).stacked_layers() for number, one in adapted.items()}
                block = getattr(model, stack).layers
                gated = {number: getattr(other, name).gated for number, other in blocks.items()}
                setattr(block, name, extended(getattr(block, name), RowGated).with_all(gated))
        return model


class GatedVectors(nnx.Module):
    """Keys and values of P vectors of a layer, and their gate."""

    def __init__(self, k_PKH: jax.Array, v_PKH: jax.Array, gate: jax.Array):
        self.k_PKH, self.v_PKH, self.gate = nnx.Param(k_PKH), nnx.Param(v_PKH), nnx.Param(gate)

    def read(self, config: ModelConfig, q_BTNH: jax.Array) -> jax.Array:
        """What the queries read of the vectors, times the gate: [B, T, N, H]."""
        k_BPKH, v_BPKH = (
            jnp.broadcast_to(x[...][None], (q_BTNH.shape[0], *x[...].shape)) for x in (self.k_PKH, self.v_PKH)
        )
        scaling: dict[str, Any] = dict(scale=config.attention_scale, soft_cap=config.attention_soft_cap)
        y_BTNH = attend(q_BTNH, k_BPKH, v_BPKH, **scaling, implementation='xla')
        return self.gate[...].astype(y_BTNH.dtype) * y_BTNH


class GatedAttention(Attention):
    """Self-attention whose queries also read P keys and values, times a gate."""

    def __init__(self, base: Attention, gated: GatedVectors):
        copy_attributes(base, self)
        self.gated = gated

    def more_values(self, q_BTNH: jax.Array) -> jax.Array:
        """What the queries read of the vectors, [B, T, N, H]."""
        return self.gated.read(self.config, q_BTNH)


def _keys_and_values(attention: Attention, prompt_PD: jax.Array) -> KV:
    """The projections of a layer's vectors, two of [P, K, H]; keys are normed if the model does that."""
    k_PKH, v_PKH = attention.key(prompt_PD), attention.value(prompt_PD)
    return attention.key_norm(k_PKH) if attention.config.qk_norm else k_PKH, v_PKH


class RowGated(Extension):
    """Self-attention with the vectors of several adapters, of which each row has those of one or none."""

    config: ModelConfig

    def with_all(self, gated: Mapping[int, GatedVectors]) -> 'RowGated':
        """The module itself, with these: number of the adapter -> its vectors, stacked over layers."""
        self.gated_numbers = tuple(gated)
        for number, vectors in gated.items():
            setattr(self, f'gated_{number}', vectors)
        self.hold_choice(vectors.gate.shape)
        return self

    def more_values(self, q_BTNH: jax.Array) -> jax.Array:
        """What the queries of each row read of its vectors, [B, T, N, H]."""
        more_BTNH, chosen_B = jnp.zeros_like(q_BTNH), self.chosen(q_BTNH.shape[0])
        for number in self.gated_numbers:
            read_BTNH = getattr(self, f'gated_{number}').read(self.config, q_BTNH)
            more_BTNH = jnp.where(chosen_B[:, None, None, None] == number, read_BTNH, more_BTNH)
        return more_BTNH


class _GatedStack(nnx.Module):
    """What both stacks share: vectors and gates of the top layers."""

    layers: Any

    def _create(self, stack: str, scope: Scope, settings: LlamaAdapter, layers: int, emb_dim: int) -> None:
        adapted = layers if settings.layers is None else settings.layers
        if adapted > layers:
            problem = f'LlamaAdapter.layers={adapted}, but the {stack} has {layers} layers, expected {layers} or less'
            raise UserError(f'{problem}. Set LlamaAdapter.layers in your .gin.')
        self.attention_name = 'attention' if stack == 'encoder' else 'self_attention'
        shape, normal = (adapted, settings.tokens, emb_dim), jax.nn.initializers.normal(1.0)
        self.adaption_prompt = scope.parameter('adaption_prompt', shape, ('layers', 'prompt', 'embed'), normal)
        self.adaption_gate = scope.parameter('adaption_gate', shape[:1], ('layers',), jax.nn.initializers.zeros)

    def stacked_layers(self) -> Any:
        """The layers with gated attention. Vectors and gates of the layers below the adapted ones are zero."""
        block = jax.tree.map(lambda x: x, self.layers)
        attention = getattr(block, self.attention_name)
        below = attention.query.kernel.shape[0] - self.adaption_gate.shape[0]
        prompt_LPD = jnp.pad(self.adaption_prompt[...], ((below, 0), (0, 0), (0, 0)))
        gate_L = jnp.pad(self.adaption_gate[...], (below, 0))
        k_LPKH, v_LPKH = jax.vmap(_keys_and_values)(attention, prompt_LPD)
        setattr(block, self.attention_name, GatedAttention(attention, GatedVectors(k_LPKH, v_LPKH, gate_L)))
        return block


class GatedEncoder(_GatedStack, Encoder):
    """An encoder whose top layers have gated prompts."""

    def __init__(self, base: Encoder, scope: Scope, settings: LlamaAdapter):
        copy_attributes(base, self)
        self._create('encoder', scope, settings, base.config.num_encoder_layers, base.config.emb_dim)


class GatedDecoder(_GatedStack, Decoder):
    """A decoder whose top layers have gated prompts."""

    def __init__(self, base: Decoder, scope: Scope, settings: LlamaAdapter):
        copy_attributes(base, self)
        self._create('decoder', scope, settings, base.config.num_decoder_layers, base.config.emb_dim)
