"""What a model costs: parameters, FLOPs of a token, and memory of a chip, from shapes alone.

B batch, T target length, S source length, D emb_dim, N heads, K kv heads, H head_dim, F mlp_dim, V vocabulary
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from t5flan.data.preprocessing.features import row_capacity
from t5flan.mesh import MeshConfig
from t5flan.models.build import abstract_model
from t5flan.models.config import ModelConfig
from t5flan.models.parameters import logical_axes, named_axes, named_parameters, path_name
from t5flan.sharding import Sharding, abstract_sharding, check_divides, tree_shardings
from t5flan.training.config import OptimizerConfig
from t5flan.training.optimizer import make_optimizer, state_axes
from t5flan.training.throughput import model_flops

GIB = 2**30
_LOGITS_BYTES = 256 * 2**20  # of a chunk of the loss
_FLOAT32 = 4


@dataclasses.dataclass(frozen=True)
class Batch:
    """The global batch of a step: rows, and tokens of a row, (encoder, decoder) or (decoder,)."""

    rows: int
    lengths: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """Tokens of a step without padding: inputs and targets."""
        return self.rows * sum(self.lengths)

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The shapes of the model features, for `model_flops`."""
        names = ('encoder_input_tokens', 'decoder_target_tokens')[-len(self.lengths) :]
        return {name: (self.rows, length) for name, length in zip(names, self.lengths, strict=True)}


def batch_of(config: ModelConfig, rows: int, feature_lengths: Mapping[str, int]) -> Batch:
    """The batch of a model, whose decoder reads inputs and targets in one row if it has no encoder."""
    format = 'encoder_decoder' if config.architecture == 'encoder_decoder' else 'causal_lm'
    return Batch(rows, row_capacity(format, feature_lengths))


def flops_per_token(config: ModelConfig, batch: Batch) -> float:
    """Model FLOPs of training for each token of the batch, inputs and targets (`training/throughput.py`)."""
    return model_flops(config, batch.shapes) / batch.tokens


def count_parameters(config: ModelConfig) -> int:
    """The number of parameters, from a formula: `abstract_model` takes a second, and a plan looks at forty models."""
    D, encoder, is_t5 = config.emb_dim, config.encoder_config, config.architecture == 'encoder_decoder'
    tables = 0
    if config.position == 'relative_bias':
        layers = config.num_decoder_layers if config.relative_bias_per_layer else 1
        tables = layers * config.relative_buckets * config.num_heads
    decoder = (
        config.num_decoder_layers * _layer_parameters(config, config.has_cross_attention) + D + tables
    )  # D: its last norm
    embedding = config.vocab_size * D * (1 if config.tie_embeddings else 2)
    if not is_t5:
        return decoder + embedding
    if config.position == 'relative_bias':
        layers = config.num_encoder_layers if config.relative_bias_per_layer else 1
        tables = layers * encoder.relative_buckets * encoder.num_heads
    embedding += 0 if config.share_embeddings else config.vocab_size * encoder.emb_dim
    layers = config.num_encoder_layers * _layer_parameters(encoder, False)
    return decoder + embedding + layers + encoder.emb_dim + tables


def _layer_parameters(config: ModelConfig, crosses: bool) -> int:
    """The parameters of a layer, with cross-attention if it `crosses`."""
    D, N, K, H, F = config.emb_dim, config.num_heads, config.kv_heads, config.head_dim, config.mlp_dim
    biases = (N + 2 * K) * H * config.attention_bias + D * config.attention_out_bias
    attention = 2 * D * N * H + 2 * D * K * H + biases + 2 * H * config.qk_norm
    norms = (3 if crosses else 1 if config.parallel_block else 2) * (1 + config.post_norms)
    across = attention + 2 * (config.encoder_config.emb_dim - D) * K * H if crosses else 0
    return attention + across + (len(config.mlp_activations) + 1) * D * F + norms * D


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device: exact for parameters, gradients and optimizer, an estimate for activations.

    Attributes:
        parameters: float32.
        gradients: float32, beside the parameters while they are updated.
        optimizer: the moments of OptimizerConfig.
        activations: what the backward pass keeps under ModelConfig.remat, one layer's own, and a chunk of logits.
        teacher: the parameters of LossConfig.teacher, float32.
    """

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    teacher: float = 0.0

    @property
    def total(self) -> float:
        """The sum."""
        return self.parameters + self.gradients + self.optimizer + self.activations + self.teacher

    def gib(self) -> dict[str, float]:
        """All of them in GiB, as JSON."""
        return {name: value / GIB for name, value in {**dataclasses.asdict(self), 'total': self.total}.items()}


def memory_of(
    config: ModelConfig,
    batch: Batch,
    optimizer: OptimizerConfig,
    mesh: MeshConfig,
    devices: int,
    teacher: ModelConfig | None = None,
) -> Memory:
    """The memory of each of `devices` devices in a training step, with the teacher of a distillation if there is one.

    Raises:
        UserError: the mesh does not divide the devices, the batch or the model, or a setting of the optimizer is wrong.
    """
    sharding = abstract_sharding(mesh, devices)
    check_divides(sharding, 'batch', batch.rows)
    model = abstract_model(config)
    axes = logical_axes(model)
    tree_shardings(sharding, model, axes)  # checks that the mesh divides the parameters
    made = make_optimizer(optimizer, axes, total_steps=10**9)
    state = jax.eval_shape(made.init, model)
    names = named_axes(model)
    parameters = named_parameters(model)
    held = _model_bytes(sharding, model)
    gradients = sum(_bytes(sharding, x, names[path]) for path, x in parameters.items() if path in made.trained)
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    of_state = {path_name(path): found for path, found in _named_tuples(state_axes(state, axes))}
    moments = sum(_bytes(sharding, x, of_state[path_name(path)]) for path, x in leaves)
    activations = activation_bytes(config, batch, optimizer.microbatches, sharding)
    taught = 0.0 if teacher is None else _model_bytes(sharding, abstract_model(teacher))
    return Memory(held, gradients, moments, activations, taught)


def _model_bytes(sharding: Sharding, model: Any) -> float:
    """Bytes of the parameters on one device."""
    names = named_axes(model)
    return sum(_bytes(sharding, x, names[path]) for path, x in named_parameters(model).items())


def _named_tuples(tree: Any) -> list[tuple[Any, tuple[str, ...]]]:
    is_axes = lambda x: type(x) is tuple and all(isinstance(name, str) for name in x)
    return jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_axes)[0]


def _bytes(sharding: Sharding, x: Any, axes: Sequence[str]) -> float:
    """Bytes of an array on one device."""
    parts = 1
    for entry in sharding.spec(axes, x.shape):
        for axis in (entry,) if isinstance(entry, str) else entry or ():
            parts *= sharding.mesh.shape[axis]
    return math.prod(x.shape) * x.dtype.itemsize / parts


def activation_bytes(config: ModelConfig, batch: Batch, microbatches: int, sharding: Sharding) -> float:
    """Bytes that a device keeps for the backward pass; attention keeps no [T, T] array, as in `kernels/`."""
    rows = math.ceil(batch.rows / microbatches / sharding.size('batch'))
    heads = sharding.size('act_heads')
    width = jnp.dtype(config.dtype).itemsize

    def stack(config: ModelConfig, layers: int, length: int, crosses: bool) -> float:
        D, N, K, H = config.emb_dim, config.num_heads, config.kv_heads, config.head_dim
        mlp = len(config.mlp_activations) * config.mlp_dim / sharding.size('act_mlp')
        queries = 2 * N * H / heads + D  # query, output; out
        attention = queries + 2 * K * H / (heads if K % heads == 0 else 1)
        projections = attention + mlp + D + (attention if crosses else 0.0)
        minimal = attention + (queries if crosses else 0.0)  # on accelerators (`models/stack.py`)
        tokens = rows * length / sharding.size('length')
        own = projections + 2 * D + config.mlp_dim / sharding.size('act_mlp')  # norms, product of activations
        kept = {'none': own + D, 'minimal': minimal + D, 'full': D}[config.remat]
        return tokens * width * (layers * kept + own)

    crosses = config.has_cross_attention
    total = stack(config, config.num_decoder_layers, batch.lengths[-1], crosses)
    if config.num_encoder_layers:
        total += stack(config.encoder_config, config.num_encoder_layers, batch.lengths[0], False)
    logits = rows * batch.lengths[-1] * config.vocab_size * _FLOAT32 / sharding.size('act_vocab')
    return total + 2 * min(logits, _LOGITS_BYTES)  # logits and their gradient
