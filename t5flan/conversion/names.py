"""One table of parameter names per format, next to t5flan's own (T5X's, with layers stacked on axis 0).

A row is (t5flan's name, theirs); `{i}` is the layer. The layout of one layer's array differs too:

    t5flan          query [D, N, H]   out [N, H, D]   mlp/wi [D, F]   rel_embedding [N, R]   logits_dense [D, V]
    T5X             the same, with heads and kv joined: [D, N H], [N H, D]; its scalable form stacks layers on axis 1
    Hugging Face    torch's linear maps are [outputs, inputs]: [N H, D], [D, N H], [F, D], logits [V, D]; bias [R, N]
"""

import dataclasses
import functools
import math
import types
from collections.abc import Iterator, Mapping, Sequence

from t5flan.models.build import abstract_model
from t5flan.models.config import ModelConfig
from t5flan.models.parameters import named_axes, named_parameters

Table = Sequence[tuple[str, str]]


def _kernels(module: str, theirs: str, names: Mapping[str, str]) -> Table:
    """The rows of a module's kernels; `names` maps our name of a kernel to theirs."""
    return [(f'{module}/{ours}/kernel', f'{theirs}.{name}.weight') for ours, name in names.items()]


def _biases(module: str, theirs: str, names: Mapping[str, str]) -> Table:
    """The rows of the biases of the same projections."""
    return [(f'{module}/{ours}/bias', f'{theirs}.{name}.bias') for ours, name in names.items()]


def _head_norms(attention: str, theirs: str) -> Table:
    """The rows of the norms of queries and keys."""
    names = {'query': 'q', 'key': 'k'}
    return [(f'{attention}/{ours}_norm/scale', f'{theirs}.{name}_norm.weight') for ours, name in names.items()]


_T5_ATTENTION = {'query': 'q', 'key': 'k', 'value': 'v', 'out': 'o'}
_T5_MLP = {name: name for name in ('wi', 'wi_0', 'wi_1', 'wo')}
HF_T5: Table = (
    ('token_embedder/embedding', 'shared.weight'),
    ('decoder/logits_dense/kernel', 'lm_head.weight'),
    ('encoder/encoder_norm/scale', 'encoder.final_layer_norm.weight'),
    ('encoder/relpos_bias/rel_embedding', 'encoder.block.{i}.layer.0.SelfAttention.relative_attention_bias.weight'),
    ('encoder/layers/pre_attention_layer_norm/scale', 'encoder.block.{i}.layer.0.layer_norm.weight'),
    *_kernels('encoder/layers/attention', 'encoder.block.{i}.layer.0.SelfAttention', _T5_ATTENTION),
    ('encoder/layers/pre_mlp_layer_norm/scale', 'encoder.block.{i}.layer.1.layer_norm.weight'),
    *_kernels('encoder/layers/mlp', 'encoder.block.{i}.layer.1.DenseReluDense', _T5_MLP),
    ('decoder/decoder_norm/scale', 'decoder.final_layer_norm.weight'),
    ('decoder/relpos_bias/rel_embedding', 'decoder.block.{i}.layer.0.SelfAttention.relative_attention_bias.weight'),
    ('decoder/layers/pre_self_attention_layer_norm/scale', 'decoder.block.{i}.layer.0.layer_norm.weight'),
    *_kernels('decoder/layers/self_attention', 'decoder.block.{i}.layer.0.SelfAttention', _T5_ATTENTION),
    ('decoder/layers/pre_cross_attention_layer_norm/scale', 'decoder.block.{i}.layer.1.layer_norm.weight'),
    *_kernels('decoder/layers/encoder_decoder_attention', 'decoder.block.{i}.layer.1.EncDecAttention', _T5_ATTENTION),
    ('decoder/layers/pre_mlp_layer_norm/scale', 'decoder.block.{i}.layer.2.layer_norm.weight'),
    *_kernels('decoder/layers/mlp', 'decoder.block.{i}.layer.2.DenseReluDense', _T5_MLP),
)
HF_LONGT5: Table = tuple(  # with local attention
    (ours, theirs.replace('.SelfAttention.', '.LocalSelfAttention.') if ours.startswith('encoder') else theirs)
    for ours, theirs in HF_T5
)

_LLAMA_ATTENTION = {'query': 'q_proj', 'key': 'k_proj', 'value': 'v_proj', 'out': 'o_proj'}
_LLAMA_MLP = {'wi_0': 'gate_proj', 'wi_1': 'up_proj', 'wo': 'down_proj'}
_DECODER: Table = (
    ('token_embedder/embedding', 'model.embed_tokens.weight'),
    ('decoder/logits_dense/kernel', 'lm_head.weight'),
    ('decoder/decoder_norm/scale', 'model.norm.weight'),
    ('decoder/layers/pre_self_attention_layer_norm/scale', 'model.layers.{i}.input_layernorm.weight'),
    *_kernels('decoder/layers/self_attention', 'model.layers.{i}.self_attn', _LLAMA_ATTENTION),
    *_biases('decoder/layers/self_attention', 'model.layers.{i}.self_attn', _LLAMA_ATTENTION),
    *_head_norms('decoder/layers/self_attention', 'model.layers.{i}.self_attn'),
    *_kernels('decoder/layers/mlp', 'model.layers.{i}.mlp', _LLAMA_MLP),
)
HF_LLAMA: Table = (  # and Gemma's, Mistral's, Qwen's, SmolLM3's
    *_DECODER,
    ('decoder/layers/pre_mlp_layer_norm/scale', 'model.layers.{i}.post_attention_layernorm.weight'),
)
HF_GEMMA_2: Table = (  # and Gemma 3's
    *_DECODER,
    ('decoder/layers/post_self_attention_layer_norm/scale', 'model.layers.{i}.post_attention_layernorm.weight'),
    ('decoder/layers/pre_mlp_layer_norm/scale', 'model.layers.{i}.pre_feedforward_layernorm.weight'),
    ('decoder/layers/post_mlp_layer_norm/scale', 'model.layers.{i}.post_feedforward_layernorm.weight'),
)


def _t5gemma_stack(stack: str, attention: str) -> Table:
    """The rows of an encoder or decoder; `attention` is our name of its self-attention."""
    ours, theirs = f'{stack}/layers', f'model.{stack}.layers.{{i}}'
    norms = {attention: 'self_attn', 'mlp': 'feedforward'}
    return (
        (f'{stack}/{stack}_norm/scale', f'model.{stack}.norm.weight'),
        *_kernels(f'{ours}/{attention}', f'{theirs}.self_attn', _LLAMA_ATTENTION),
        *_biases(f'{ours}/{attention}', f'{theirs}.self_attn', _LLAMA_ATTENTION),
        *_kernels(f'{ours}/mlp', f'{theirs}.mlp', _LLAMA_MLP),
        *(
            (f'{ours}/{when}_{part}_layer_norm/scale', f'{theirs}.{when}_{name}_layernorm.weight')
            for when in ('pre', 'post')
            for part, name in norms.items()
        ),
    )


_ACROSS = 'decoder/layers/encoder_decoder_attention', 'model.decoder.layers.{i}.cross_attn'
HF_T5GEMMA: Table = (
    ('token_embedder/embedding', 'model.decoder.embed_tokens.weight'),
    ('encoder/token_embedder/embedding', 'model.encoder.embed_tokens.weight'),
    ('decoder/logits_dense/kernel', 'lm_head.out_proj.weight'),
    *_t5gemma_stack('encoder', 'attention'),
    *_t5gemma_stack('decoder', 'self_attention'),
    *_kernels(*_ACROSS, _LLAMA_ATTENTION),
    *_biases(*_ACROSS, _LLAMA_ATTENTION),
    ('decoder/layers/pre_cross_attention_layer_norm/scale', 'model.decoder.layers.{i}.pre_cross_attn_layernorm.weight'),
    (
        'decoder/layers/post_cross_attention_layer_norm/scale',
        'model.decoder.layers.{i}.post_cross_attn_layernorm.weight',
    ),
)

HF_T5GEMMA2: Table = (
    ('token_embedder/embedding', 'model.encoder.embed_tokens.weight'),
    ('token_embedder/unscaled_embedding', 'model.encoder.embed_tokens.eoi_embedding'),
    ('decoder/logits_dense/kernel', 'lm_head.out_proj.weight'),
    *_t5gemma_stack('encoder', 'attention'),
    *_t5gemma_stack('decoder', 'self_attention'),
    *_head_norms('encoder/layers/attention', 'model.encoder.layers.{i}.self_attn'),
    *_head_norms('decoder/layers/self_attention', 'model.decoder.layers.{i}.self_attn'),
)

# Other names of the token embedding in Hugging Face's files, and arrays of old files that no model reads.
HF_T5_COPIES = ('encoder.embed_tokens.weight', 'decoder.embed_tokens.weight')
HF_T5GEMMA2_COPIES = {
    f'model.decoder.embed_tokens.{name}': f'model.encoder.embed_tokens.{name}' for name in ('weight', 'eoi_embedding')
}
HF_T5_UNREAD = ('decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight',)
HF_LLAMA_UNREAD = ('model.layers.{i}.self_attn.rotary_emb.inv_freq',)


@dataclasses.dataclass(frozen=True)
class Shape:
    """A parameter of t5flan, of shape `one`, or [layers, *one] if `layers` is a number."""

    name: str
    one: tuple[int, ...]
    layers: int | None

    @property
    def whole(self) -> tuple[int, ...]:
        """The shape of all layers together."""
        return self.one if self.layers is None else (self.layers, *self.one)

    @property
    def pieces(self) -> Sequence[int | None]:
        """The parts that are read and written at a time: each layer, or None for the whole array."""
        return [None] if self.layers is None else range(self.layers)

    @property
    def matrix(self) -> tuple[int, int] | None:
        """`one` as (inputs, outputs) with heads and kv joined; None for vectors, biases and the token embedding."""
        if len(self.one) < 2 or self.name.endswith('token_embedder/embedding') or self.name.endswith('/bias'):
            return None
        inputs = 2 if self.name.endswith('out/kernel') else 1  # leading axes that the linear map sums over
        return math.prod(self.one[:inputs]), math.prod(self.one[inputs:])

    def name_of(self, layer: int | None) -> str:
        """A piece, for messages."""
        return self.name if layer is None else f'layer {layer} of {self.name}'


@functools.lru_cache(maxsize=8)  # tracing a model is slow, and every reader and writer needs its shapes
def shapes(config: ModelConfig) -> Mapping[str, Shape]:
    """The Shape of every parameter of a model, by t5flan's name."""
    model = abstract_model(config)
    axes = named_axes(model)
    made = {}
    for name, leaf in named_parameters(model).items():
        stacked = axes[name][0] == 'layers'
        made[name] = Shape(name, tuple(leaf.shape[1:] if stacked else leaf.shape), leaf.shape[0] if stacked else None)
    return types.MappingProxyType(made)


def all_pieces(config: ModelConfig) -> Iterator[tuple[Shape, int | None]]:
    """Every piece of every parameter, as (shape, layer)."""
    return ((shape, layer) for shape in shapes(config).values() for layer in shape.pieces)


def hf_name(table: Table, shape: Shape, layer: int | None) -> str:
    """Hugging Face's name of one layer of a parameter; T5's shared relative bias is in layer 0."""
    return dict(table)[shape.name].format(i=layer or 0)


def hf_shape(shape: Shape) -> tuple[int, ...]:
    """The shape of one layer's array in a Hugging Face file."""
    if shape.name.endswith('/bias'):
        return (math.prod(shape.one),)
    return shape.one if shape.matrix is None else shape.matrix[::-1]


def t5x_name(shape: Shape, layer: int | None) -> str:
    """The name in T5X's unscanned networks, which have an array per layer (`layer` None: not in a layer)."""
    if layer is None:
        return shape.name
    if '/layers/' in shape.name:
        return shape.name.replace('/layers/', f'/layers_{layer}/')
    side, rest = shape.name.split('/', 1)  # a relative bias in each layer
    return f'{side}/layers_{layer}/{rest}'


def t5x_scanned_name(shape: Shape) -> str:
    """The name in T5X's scalable network with scanned layers, whose arrays have the layers on axis 1."""
    if shape.layers is None:
        return shape.name
    side, rest = shape.name.replace('/layers/', '/').split('/', 1)
    return f'{side}/{side}/{rest}'


def t5x_unscanned_shape(shape: Shape, joined: bool) -> tuple[int, ...]:
    """The shape of one layer's array in T5X: heads and kv joined as in examples/t5, or not as in scalable_t5."""
    return shape.matrix if joined and shape.matrix is not None else shape.one
