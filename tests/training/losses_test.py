"""The loss computed in chunks is the textbook's, in value and in gradient, on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5flan import sharding
from t5flan.mesh import MeshConfig
from t5flan.training.config import LossConfig
from t5flan.training.losses import cross_entropy, smoothed_targets

B, T, D, V = 4, 7, 8, 50


def example(seed: int = 0):
    """Hidden states, a kernel, targets and unequal weights, some of which are 0."""
    rng = np.random.default_rng(seed)
    x_BTD = rng.normal(size=(B, T, D)).astype(np.float32)
    kernel_DV = rng.normal(size=(D, V)).astype(np.float32)
    targets_BT = rng.integers(0, V, (B, T)).astype(np.int32)
    weights_BT = rng.choice([0.0, 0.25, 1.0], (B, T)).astype(np.float32)
    return x_BTD, kernel_DV, targets_BT, weights_BT


def logits_of(kernel_DV):
    return lambda x: jnp.einsum('...d,dv->...v', x, kernel_DV)


def textbook(x_BTD, kernel_DV, targets_BT, weights_BT, config):
    """Soft targets against log-softmax in float32, minus their entropy, plus z-loss; by autodiff."""
    logits = logits_of(kernel_DV)(x_BTD)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    wrong = config.label_smoothing / (V - 1)
    soft = jnp.full((B, T, V), wrong) + (1 - config.label_smoothing - wrong) * jax.nn.one_hot(targets_BT, V)
    entropy = -np.sum(np.where(soft > 0, soft * np.log(np.maximum(soft, 1e-30)), 0.0), axis=-1)
    loss = -jnp.sum(soft * jax.nn.log_softmax(logits), axis=-1) - entropy + config.z_loss * log_z**2
    return jnp.sum(weights_BT * loss)


@functools.cache
def expected_of(config):
    """Three times the textbook loss of the example, and its gradients."""
    x_BTD, kernel_DV, targets_BT, weights_BT = example()
    loss = lambda x, kernel: 3.0 * textbook(x, kernel, targets_BT, weights_BT, config)
    return jax.value_and_grad(loss, argnums=(0, 1))(x_BTD, kernel_DV)


@pytest.mark.parametrize('chunk_tokens', [1, 4, 12, 28, 1000, None])
@pytest.mark.parametrize('config', [LossConfig(z_loss=0.0), LossConfig(z_loss=0.01, label_smoothing=0.1)])
def test_chunks_give_the_textbook_loss_and_gradients(config, chunk_tokens):
    x_BTD, kernel_DV, targets_BT, weights_BT = example()
    expected, expected_gradients = expected_of(config)
    config = LossConfig(config.z_loss, config.label_smoothing, chunk_tokens=chunk_tokens)

    def ours(x_BTD, kernel_DV):
        return 3.0 * cross_entropy(logits_of(kernel_DV), x_BTD, targets_BT, weights_BT, config).loss

    loss, gradients = jax.jit(jax.value_and_grad(ours, argnums=(0, 1)))(x_BTD, kernel_DV)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), gradients, expected_gradients)
    # Without differentiation other code runs.
    np.testing.assert_allclose(jax.jit(ours)(x_BTD, kernel_DV), expected, rtol=1e-5)


def test_sums_for_reports():
    x_BTD, kernel_DV, targets_BT, weights_BT = example()
    config = LossConfig(z_loss=0.01, chunk_tokens=8)
    summed = jax.jit(lambda targets: cross_entropy(logits_of(kernel_DV), x_BTD, targets, weights_BT, config))
    sums = summed(targets_BT)
    logits = x_BTD @ kernel_DV
    log_z = np.log(np.exp(logits).sum(-1))
    np.testing.assert_allclose(sums.weight, weights_BT.sum(), rtol=1e-6)
    np.testing.assert_allclose(sums.correct, (weights_BT * (logits.argmax(-1) == targets_BT)).sum(), rtol=1e-6)
    np.testing.assert_allclose(sums.z_loss, (weights_BT * 0.01 * log_z**2).sum(), rtol=1e-5)
    best = summed(logits.argmax(-1).astype(np.int32))
    assert best.correct == best.weight


def test_weights_may_be_integers_and_zero_weights_give_zero_gradient():
    x_BTD, kernel_DV, targets_BT, _ = example()
    zeros = np.zeros((B, T), np.int32)
    loss_of = lambda x: cross_entropy(logits_of(kernel_DV), x, targets_BT, zeros, LossConfig()).loss
    loss, gradient = jax.jit(jax.value_and_grad(loss_of))(x_BTD)
    assert loss == 0 and not np.any(gradient)


def test_large_logits_do_not_overflow():
    x_BTD, kernel_DV, targets_BT, weights_BT = example()
    loss_of = lambda x: cross_entropy(logits_of(1e4 * kernel_DV), x, targets_BT, weights_BT, LossConfig()).loss
    loss, gradient = jax.jit(jax.value_and_grad(loss_of))(x_BTD)
    assert np.isfinite(loss) and np.all(np.isfinite(gradient))


def test_a_perfect_model_has_no_loss_under_label_smoothing():
    right, wrong, _ = smoothed_targets(V, 0.2)
    targets_BT = np.arange(B * T, dtype=np.int32).reshape(B, T)
    logits_BTV = np.log(np.where(np.eye(V, dtype=bool)[targets_BT], right, wrong)).astype(np.float32)
    sums = cross_entropy(lambda x: x, logits_BTV, targets_BT, np.ones((B, T)), LossConfig(0.0, 0.2))
    np.testing.assert_allclose(sums.loss, 0.0, atol=1e-4)


def test_a_bfloat16_model_gets_float32_kernel_gradients():
    x_BTD, kernel_DV, targets_BT, weights_BT = example()

    def loss(x, kernel):
        logits = lambda x: jnp.einsum('...d,dv->...v', x, kernel.astype(x.dtype)).astype(jnp.float32)
        return cross_entropy(logits, x, targets_BT, weights_BT, LossConfig(chunk_tokens=8)).loss

    gradients_of = jax.jit(jax.grad(loss, argnums=(0, 1)))
    gradients, expected = gradients_of(x_BTD.astype(jnp.bfloat16), kernel_DV), gradients_of(x_BTD, kernel_DV)
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32]
    for one, other in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(np.asarray(one, np.float32), other, atol=0.05 * np.abs(other).max())


def test_the_float32_logits_of_a_batch_are_never_in_memory_as_a_whole():
    rows, length, words, config = 8, 64, 4096, LossConfig(chunk_tokens=64)
    x_BTD, kernel_DV = jnp.ones((rows, length, D)), jnp.ones((D, words))
    targets_BT, weights_BT = jnp.zeros((rows, length), jnp.int32), jnp.ones((rows, length))

    def loss(x, kernel):
        return cross_entropy(logits_of(kernel), x, targets_BT, weights_BT, config).loss

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x_BTD, kernel_DV).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < rows * length * words * 4 / 2


@pytest.mark.parametrize('mesh', [MeshConfig(data=4, tensor=2), MeshConfig(data=2, fsdp=2, tensor=2)])
def test_same_numbers_on_a_mesh(mesh):
    x_BTD, kernel_DV, targets_BT, weights_BT = example()

    def loss(x, kernel):
        sums = cross_entropy(logits_of(kernel), x, targets_BT, weights_BT, LossConfig(chunk_tokens=8))
        return sums.loss, sums

    run = lambda: jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    expected = run()(x_BTD, kernel_DV)
    with sharding.use(sharding.create_sharding(mesh)) as placed:
        given = run()(
            jax.device_put(x_BTD, placed.named(('batch', 'length', None))),
            jax.device_put(kernel_DV, placed.named(('embed', 'vocab'))),
        )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), given, expected)
