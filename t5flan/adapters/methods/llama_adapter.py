"""LLaMA-Adapter (https://arxiv.org/abs/2303.16199): gated prompts in the self-attention of the top layers.

    y = attention(q, keys, values) + gate * softmax(q k / scale) v        k, v: projections of the layer's P vectors

The gate begins at zero, so that the adapted model begins as the base. The vectors have no positions, and every token
reads all of them; as in PEFT, there is one gate in a layer.

B batch, T length, P vectors, D emb_dim, N heads, K key-value heads, H head_dim, L layers, A adapted layers.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from t5flan.adapters.config import Adapter
from t5flan.config.checks import require_count
from t5flan.errors import UserError
from t5flan.kernels.attention import attend
from t5flan.models.attention import Attention
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


class GatedAttention(Attention):
    """Self-attention whose queries also read P keys and values, times a gate."""

    def __init__(self, base: Attention, k_PKH: jax.Array, v_PKH: jax.Array, gate: jax.Array):
        self.config, self.rotary, self.bidirectional = base.config, base.rotary, base.bidirectional
        self.query, self.key, self.value, self.out = base.query, base.key, base.value, base.out
        self.k_PKH, self.v_PKH, self.gate = nnx.Param(k_PKH), nnx.Param(v_PKH), nnx.Param(gate)

    def more_values(self, q_BTNH: jax.Array) -> jax.Array:
        """What the queries read of the vectors, [B, T, N, H]."""
        k_BPKH, v_BPKH = (
            jnp.broadcast_to(x[...][None], (q_BTNH.shape[0], *x[...].shape)) for x in (self.k_PKH, self.v_PKH)
        )
        scaling: dict[str, Any] = dict(scale=self.config.attention_scale, soft_cap=self.config.attention_soft_cap)
        y_BTNH = attend(q_BTNH, k_BPKH, v_BPKH, **scaling, implementation='xla')
        return self.gate[...].astype(y_BTNH.dtype) * y_BTNH


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
        k_LPKH, v_LPKH = jax.vmap(lambda attention, x: (attention.key(x), attention.value(x)))(attention, prompt_LPD)
        setattr(block, self.attention_name, GatedAttention(attention, k_LPKH, v_LPKH, gate_L))
        return block


class GatedEncoder(_GatedStack, Encoder):
    """An encoder whose top layers have gated prompts."""

    def __init__(self, base: Encoder, scope: Scope, settings: LlamaAdapter):
        self.config, self.layers, self.token_embedder = base.config, base.layers, base.token_embedder
        self.relpos_bias, self.encoder_norm = base.relpos_bias, base.encoder_norm
        self._create('encoder', scope, settings, base.config.num_encoder_layers, base.config.emb_dim)


class GatedDecoder(_GatedStack, Decoder):
    """A decoder whose top layers have gated prompts."""

    def __init__(self, base: Decoder, scope: Scope, settings: LlamaAdapter):
        self.config, self.layers = base.config, base.layers
        self.relpos_bias, self.decoder_norm = base.relpos_bias, base.decoder_norm
        if not base.config.tie_embeddings:
            self.logits_dense = base.logits_dense
        self._create('decoder', scope, settings, base.config.num_decoder_layers, base.config.emb_dim)
