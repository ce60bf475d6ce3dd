import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5flan import sharding
from t5flan.kernels.kept import kept

LAYERS, ROWS, DIM = 5, 24, 8


def loss(kernels_LDD, x_RD, keep):
    """Scanned layers whose results are kept for the backward pass."""
    policy = jax.checkpoint_policies.save_only_these_names('y')
    layer = jax.checkpoint(lambda x, kernel: (jnp.tanh(keep(x @ kernel, 'y')), None), policy=policy, prevent_cse=False)
    return jax.lax.scan(layer, x_RD, kernels_LDD)[0].astype(jnp.float32).sum()


def operands(dtype):
    keys = jax.random.split(jax.random.key(0))
    return jax.random.normal(keys[0], (LAYERS, DIM, DIM), dtype), jax.random.normal(keys[1], (ROWS, DIM), dtype)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'float16'])
def test_values_and_gradients_stay_the_same(dtype):
    values = operands(dtype)
    found = jax.jit(jax.value_and_grad(functools.partial(loss, keep=kept)))(*values)
    expected = jax.jit(jax.value_and_grad(functools.partial(loss, keep=lambda y, _: y)))(*values)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.float32(one), np.float32(other), rtol=2e-2 if dtype != 'float32' else 1e-6)


def test_16_bit_results_of_all_layers_are_kept_as_they_are():
    program = jax.jit(jax.grad(functools.partial(loss, keep=kept))).lower(*operands('bfloat16')).compile().as_text()
    assert f'u16[{LAYERS},{ROWS},{DIM}]' in program


def test_other_devices_keep_the_array_itself(monkeypatch):
    monkeypatch.setattr(sharding, 'platform', lambda: 'tpu')
    assert 'bitcast' not in str(jax.make_jaxpr(lambda y: kept(y, 'y'))(jnp.zeros(3, jnp.bfloat16)))
    named = lambda *shape: str(jax.make_jaxpr(lambda y: kept(y, 'y'))(jnp.zeros(shape, jnp.bfloat16)))
    assert 'bf16[2,3,256] = name' in named(2, 3, 4, 64)  # a last axis of 64 would be padded to 128
    assert 'bf16[2,3,4,128] = name' in named(2, 3, 4, 128) and 'bf16[2,3,64] = name' in named(2, 3, 64)
