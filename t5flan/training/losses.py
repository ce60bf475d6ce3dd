"""Cross-entropy with loss weights, z-loss and label smoothing, a chunk of tokens at a time.

    B batch, T target length, D emb_dim, V vocabulary, n chunks, C positions of every row a chunk

The float32 logits of a batch, [B, T, V], would be the largest array of a small model's step (8 x 114 tokens over 32k
words: 112 MiB, several times over), so they are never in memory as a whole. The sequence is cut along its length: a
chunk has all rows, so a batch that is split over devices is not moved. The gradient of a chunk is computed in the
forward pass, from logits that are computed once; rematerialisation would compute them twice. Where the mesh splits the
length (`MeshConfig.context`), a chunk takes the same number of positions from every part, so all devices work on it.

The numbers are T5X's (google-research/t5x, t5x/losses.py): z_loss * log(Z)^2 is added per token, and the entropy of the
smoothed labels is subtracted, so a perfect model has loss 0.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5flan import sharding
from t5flan.training.config import LossConfig

# Bytes of float32 logits per device and chunk: on a CPU about the size of its cache. Elsewhere chunks are large,
# because devices that share the batch sum the kernel's gradient once per chunk.
_CHUNK_BYTES_CPU = 20 * 2**20
_CHUNK_BYTES = 256 * 2**20

Logits = Callable[..., jax.Array]  # hidden states [..., D] (and parameters) -> float32 logits [..., V]
_Parameters = tuple[jax.Array, ...]
_Chunks = tuple[jax.Array, jax.Array, jax.Array]  # hidden states, targets and weights, of one chunk or stacked
_Gradients = tuple[Any, jax.Array]  # of the parameters and of the hidden states


class LossSums(NamedTuple):
    """Sums over tokens, each float32 []. Sums of microbatches can be added.

    Attributes:
        loss: weighted sum of cross-entropy and z-loss, which is minimised.
        z_loss: the part of `loss` that is z-loss.
        smoothing: the part of `loss` that label smoothing adds; 0 without it.
        correct: sum of the weights of the tokens whose most likely word is the target.
        weight: sum of all loss weights: the number of tokens, where weights are 0 and 1.
    """

    loss: jax.Array
    z_loss: jax.Array
    smoothing: jax.Array
    correct: jax.Array
    weight: jax.Array


def cross_entropy(
    logits_of: Logits, x_BTD: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array, config: LossConfig
) -> LossSums:
    """Sums the loss, its z-loss, correct predictions and weights over a batch.

    Gradients flow from `.loss` to `x_BTD` and to the parameters that `logits_of` closes over (a logits kernel, or the
    tied token embedding). The other sums are for reports and have no gradient.

    Args:
        logits_of: maps final hidden states [..., D] to float32 logits [..., V], each position alone (`model.logits`).
        x_BTD: final hidden states, any float dtype.
        targets_BT: target words, int.
        weights_BT: loss weights; 0 where there is nothing to predict.
        config: z_loss, label_smoothing, chunk_tokens.
    """
    chunks = _chunks_of(logits_of, x_BTD, config)
    x_nBCD = chunks(x_BTD)
    logits_of, parameters = jax.closure_convert(logits_of, x_nBCD[0])
    targets_nBC, weights_nBC = chunks(targets_BT), chunks(weights_BT.astype(jnp.float32))
    return _chunked_sums(logits_of, config, tuple(parameters), (x_nBCD, targets_nBC, weights_nBC))


def divergence(
    logits_of: Logits,
    x_BTD: jax.Array,
    teacher_logits_of: Logits,
    teacher_x_BTE: jax.Array,
    weights_BT: jax.Array,
    config: LossConfig,
) -> jax.Array:
    """The weighted sum over tokens of KL(teacher || student) at LossConfig.temperature, float32 [].

    Gradients flow to `x_BTD` and to what `logits_of` closes over. The backward pass computes logits again.

    Args:
        logits_of, x_BTD: the student's, as of `cross_entropy`.
        teacher_logits_of, teacher_x_BTE: the teacher's, for the same words.
        weights_BT: loss weights.
        config: temperature, chunk_tokens.
    """
    chunks = _chunks_of(logits_of, x_BTD, config)

    @jax.checkpoint
    def chunk_sum(x_BCD: jax.Array, teacher_x_BCE: jax.Array, weights_BC: jax.Array) -> jax.Array:
        log_q_BCV = jax.nn.log_softmax(logits_of(x_BCD) / config.temperature)
        log_p_BCV = jax.nn.log_softmax(jax.lax.stop_gradient(teacher_logits_of(teacher_x_BCE)) / config.temperature)
        return jnp.sum(weights_BC * jnp.sum(jnp.exp(log_p_BCV) * (log_p_BCV - log_q_BCV), axis=-1))

    def body(total: jax.Array, chunk: tuple[jax.Array, jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        return total + chunk_sum(*chunk), None

    stacked = chunks(x_BTD), chunks(jax.lax.stop_gradient(teacher_x_BTE)), chunks(weights_BT.astype(jnp.float32))
    return jax.lax.scan(body, jnp.zeros((), jnp.float32), stacked)[0]


def _chunks_of(logits_of: Logits, x_BTD: jax.Array, config: LossConfig) -> Callable[[jax.Array], jax.Array]:
    """A function that cuts arrays [B, T, ...] into chunks [n, B, C, ...]."""
    parts = _length_parts(x_BTD.shape[1])
    positions = _chunk_positions(logits_of, x_BTD, config, parts)

    def chunks(x: jax.Array) -> jax.Array:
        """[B, T, ...] -> [n, B, C, ...]: a chunk is some positions of each part of all rows; padding has weight 0."""
        rows, length, *rest = x.shape
        x = x.reshape(rows, parts, length // parts, *rest)
        x = jnp.pad(x, [(0, 0), (0, 0), (0, -x.shape[2] % positions)] + [(0, 0)] * len(rest))
        x = jnp.moveaxis(x.reshape(rows, parts, -1, positions, *rest), 2, 0)
        x = x.reshape(-1, rows, parts * positions, *rest)
        return sharding.constrain(x, (None, *sharding.batch_axes(x.ndim - 1)))

    return chunks


def _length_parts(length: int) -> int:
    """The number of parts into which the mesh splits rows of a length; 1 where it does not divide."""
    mesh = sharding.current()
    parts = 1 if mesh is None else mesh.size('length')
    return 1 if length % parts else parts


def _chunk_positions(logits_of: Logits, x_BTD: jax.Array, config: LossConfig, parts: int) -> int:
    """Positions of each part of every row in a chunk, chosen so that all chunks are about the same size."""
    B, T = x_BTD.shape[0], x_BTD.shape[1] // parts
    if config.chunk_tokens is not None:
        positions = config.chunk_tokens // (B * parts)
    else:
        V = jax.eval_shape(logits_of, x_BTD).shape[-1]
        mesh = sharding.current()
        rows, words = (B, V) if mesh is None else (B / mesh.size('batch'), V / mesh.size('act_vocab'))
        budget = _CHUNK_BYTES_CPU if sharding.platform() == 'cpu' else _CHUNK_BYTES
        positions = int(budget / (4 * rows * words))
    positions = min(max(positions, 1), T)
    return math.ceil(T / math.ceil(T / positions))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunked_sums(logits_of: Logits, config: LossConfig, parameters: _Parameters, chunks: _Chunks) -> LossSums:
    def body(sums: LossSums, chunk: _Chunks) -> tuple[LossSums, None]:
        logits_BCV = logits_of(chunk[0], *parameters)
        return _add(sums, _sums_and_gradient(logits_BCV, *chunk[1:], config)[0]), None

    return jax.lax.scan(body, _zero_sums(), chunks)[0]


def _chunked_sums_forward(
    logits_of: Logits, config: LossConfig, parameters: _Parameters, chunks: _Chunks
) -> tuple[LossSums, _Gradients]:
    def body(carry: tuple[LossSums, Any], chunk: _Chunks) -> tuple[tuple[LossSums, Any], jax.Array]:
        sums, gradients = carry
        x_BCD, targets_BC, weights_BC = chunk
        logits_BCV, pull_back = jax.vjp(lambda x, p: logits_of(x, *p), x_BCD, parameters)
        more, gradient_BCV = _sums_and_gradient(logits_BCV, targets_BC, weights_BC, config)
        gradient_BCD, further = pull_back(gradient_BCV)
        return (_add(sums, more), _add(gradients, further)), gradient_BCD

    start = (_zero_sums(), jax.tree.map(jnp.zeros_like, parameters))
    (sums, gradients), gradient_nBCD = jax.lax.scan(body, start, chunks)
    return sums, (gradients, gradient_nBCD)


def _chunked_sums_backward(
    logits_of: Logits, config: LossConfig, residuals: _Gradients, cotangent: LossSums
) -> tuple[Any, tuple[jax.Array, None, None]]:
    gradients, gradient_nBCD = jax.tree.map(lambda g: (cotangent.loss * g).astype(g.dtype), residuals)
    return gradients, (gradient_nBCD, None, None)


_chunked_sums.defvjp(_chunked_sums_forward, _chunked_sums_backward)


def _zero_sums() -> LossSums:
    return LossSums(*(jnp.zeros((), jnp.float32) for _ in LossSums._fields))


def _add(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


def _sums_and_gradient(
    logits: jax.Array, targets: jax.Array, weights: jax.Array, config: LossConfig
) -> tuple[LossSums, jax.Array]:
    """Sums over float32 logits [..., V], and the gradient of `.loss` with respect to them, [..., V]."""
    right, wrong, entropy = smoothed_targets(logits.shape[-1], config.label_smoothing)
    is_target = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1) == targets[..., None]
    largest = jnp.max(logits, axis=-1)
    exponentials = jnp.exp(logits - largest[..., None])
    normalizer = jnp.sum(exponentials, axis=-1)
    log_z = jnp.log(normalizer) + largest
    target_logit = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    expected_logit = right * target_logit
    if wrong:
        expected_logit += wrong * (jnp.sum(logits, axis=-1) - target_logit)
    z_loss = config.z_loss * jnp.square(log_z)
    smoothing = jnp.sum(weights * (target_logit - expected_logit - entropy)) if wrong else jnp.zeros((), jnp.float32)
    sums = LossSums(
        loss=jnp.sum(weights * (log_z - expected_logit - entropy + z_loss)),
        z_loss=jnp.sum(weights * z_loss),
        smoothing=smoothing,
        correct=jnp.sum(jnp.where(target_logit >= largest, weights, 0.0)),
        weight=jnp.sum(weights),
    )
    scale = weights * (1.0 + 2.0 * config.z_loss * log_z) / normalizer
    gradient = scale[..., None] * exponentials - weights[..., None] * jnp.where(is_target, right, wrong)
    return sums, gradient


def smoothed_targets(vocab_size: int, label_smoothing: float) -> tuple[float, float, float]:
    """The probabilities of the target and of each other word, and the entropy of that distribution (as in T5X).

    >>> smoothed_targets(11, 0.1)[:2]
    (0.9, 0.01)
    """
    right = 1.0 - label_smoothing
    wrong = label_smoothing / max(vocab_size - 1, 1)
    entropy = -(right * math.log(right) + (vocab_size - 1) * wrong * math.log(wrong + 1e-20))
    return right, wrong, entropy
