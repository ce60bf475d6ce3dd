import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from t5flan import sharding
from t5flan.kernels.product import product

SHAPES = [((3, 5, 6), (6, 4), 1), ((3, 5, 6), (6, 2, 3), 1), ((3, 5, 2, 3), (2, 3, 6), 2), ((7, 6), (6, 4), 1)]
SHAPES += [((5, columns), (columns, 4), 1) for columns in (1, 32, 40, 96)]  # of x^T, one stripe or several


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def with_gradients(x, kernel, dy, inputs, dtype):
    y, pull_back = jax.vjp(functools.partial(product, inputs=inputs, dtype=dtype), x, kernel)
    return (y, *pull_back(jnp.asarray(dy, dtype)))


def exact(x, kernel, dy, inputs):
    """The product and both gradients in float64."""
    size = int(np.prod(kernel.shape[:inputs]))
    x_MI, kernel_IO = np.float64(x).reshape(-1, size), np.float64(kernel).reshape(size, -1)
    dy_MO = np.float64(dy).reshape(len(x_MI), -1)
    return (
        (x_MI @ kernel_IO).reshape(dy.shape),
        (dy_MO @ kernel_IO.T).reshape(x.shape),
        (x_MI.T @ dy_MO).reshape(kernel.shape),
    )


def operands(x_shape, kernel_shape, inputs):
    return random(*x_shape), random(*kernel_shape, seed=1), random(*x_shape[:-inputs], *kernel_shape[inputs:], seed=2)


@pytest.mark.parametrize('x_shape, kernel_shape, inputs', SHAPES)
def test_the_product_and_its_gradients(x_shape, kernel_shape, inputs):
    values = operands(x_shape, kernel_shape, inputs)
    for found, expected in zip(with_gradients(*values, inputs, 'float32'), exact(*values, inputs), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_16_bit_operands_are_summed_in_float32_and_rounded_once():
    x, kernel, dy = (jnp.asarray(value, jnp.bfloat16) for value in operands((4, 64, 48), (48, 32), 1))
    found = with_gradients(x, kernel.astype(jnp.float32), dy, 1, 'bfloat16')
    assert [value.dtype for value in found] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]
    for value, expected in zip(found, exact(x, kernel, dy, 1), strict=True):
        rounding = 2.0**-8 if value.dtype == jnp.bfloat16 else 1e-5  # half a unit in the last place
        np.testing.assert_allclose(np.float64(value), expected, rtol=rounding, atol=1e-4)


def test_16_bit_operands_are_not_widened_before_a_product():
    x, kernel, dy = operands((4, 64, 48), (48, 2, 16), 1)
    products = [
        [value.aval.dtype for value in (*equation.invars, *equation.outvars)]
        for equation in equations(jax.make_jaxpr(with_gradients, static_argnums=(3, 4))(x, kernel, dy, 1, 'bfloat16'))
        if equation.primitive.name == 'dot_general'
    ]
    assert products == [[jnp.bfloat16, jnp.bfloat16, jnp.float32]] * 3


def equations(closed):
    """Every equation of a program, those of inner programs included."""
    for equation in closed.jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            if isinstance(value, core.ClosedJaxpr):
                yield from equations(value)


def test_it_can_be_scanned_rematerialised_and_mapped():
    x, kernels = random(4, 6), random(3, 6, 6, seed=1)
    step = jax.checkpoint(lambda x, kernel: (jnp.tanh(product(x, kernel, 1, 'float32')), None))
    scanned = jax.jit(jax.grad(lambda kernels: jax.lax.scan(step, x, kernels)[0].sum()))
    unrolled = jax.grad(lambda kernels: functools.reduce(lambda x, k: jnp.tanh(x @ k), kernels, x).sum())
    np.testing.assert_allclose(scanned(kernels), unrolled(kernels), rtol=1e-5, atol=1e-6)
    mapped = jax.vmap(lambda kernel: with_gradients(x, kernel, x, 1, 'float32')[2])(kernels)
    np.testing.assert_allclose(mapped, np.broadcast_to(x.T @ x, kernels.shape), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('platform', ['tpu', 'gpu'])
def test_other_devices_run_the_plain_product(monkeypatch, platform):
    monkeypatch.setattr(sharding, 'platform', lambda: platform)
    x, kernel, _ = operands((3, 5, 6), (6, 2, 3), 1)
    plain = jax.make_jaxpr(jax.grad(lambda x, kernel: jnp.tensordot(x, kernel, 1).sum(), (0, 1)))(x, kernel)
    ours = jax.make_jaxpr(jax.grad(lambda x, kernel: product(x, kernel, 1, 'float32').sum(), (0, 1)))(x, kernel)
    names = lambda program: [equation.primitive.name for equation in program.jaxpr.eqns]
    assert names(ours) == names(plain)
