import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5flan.models.layers import MLP, Norm, Projection, TokenEmbedder, dropout, fold
from t5flan.models.parameters import Scope
from tests.models.small_models import small_config

SCOPE = Scope(jax.random.key(0))
CONFIG = small_config('t5_1_1')


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_dropout_is_off_without_a_key():
    x_BTD = random(2, 3, 4)
    assert dropout(x_BTD, 0.5, None) is x_BTD
    assert fold(None, 'attention') is None


def test_dropout_preserves_the_mean_and_drops_along_the_length():
    y_BTD = np.asarray(dropout(np.ones((64, 3, 256), np.float32), 0.25, jax.random.key(0)))
    np.testing.assert_allclose(np.unique(y_BTD), [0, 4 / 3])
    np.testing.assert_allclose(y_BTD.mean(), 1, atol=0.01)
    assert (y_BTD == y_BTD[:, :1]).all() and not (y_BTD == y_BTD[:1]).all()
    y_BTD = dropout(np.ones((4, 3, 64), np.float32), 0.25, jax.random.key(0), along_length=False)
    assert not (y_BTD == y_BTD[:, :1]).all()


def test_folded_keys_differ_by_name_and_number():
    key = jax.random.key(0)
    keys = [fold(key, of) for of in ('mlp', 'attention', 0, 1)]
    assert len({tuple(jax.random.key_data(k).tolist()) for k in keys}) == 4


@pytest.mark.parametrize(
    'inputs, outputs, spec',
    [({'embed': 6}, {'heads': 2, 'kv': 3}, 'btd,dnh->btnh'), ({'heads': 2, 'kv': 3}, {'embed': 6}, 'btnh,nhd->btd')],
)
def test_a_projection_sums_over_its_input_axes(inputs, outputs, spec):
    projection = Projection(CONFIG, SCOPE, inputs, outputs)
    x = random(4, 5, *inputs.values())
    np.testing.assert_allclose(projection(x), np.einsum(spec, x, projection.kernel[...]), atol=1e-5)
    assert projection.kernel.get_metadata('axes') == (*inputs, *outputs)


def test_parameters_stay_float32_and_the_product_is_in_the_compute_dtype():
    projection = Projection(dataclasses.replace(CONFIG, dtype='bfloat16'), SCOPE, {'embed': 6}, {'mlp': 4})
    assert projection.kernel[...].dtype == jnp.float32 and projection(random(2, 3, 6)).dtype == jnp.bfloat16


def test_a_16_bit_projection_sums_in_float32():
    projection = Projection(dataclasses.replace(CONFIG, dtype='bfloat16'), SCOPE, {'embed': 256}, {'mlp': 4})
    x_BTD = random(2, 3, 256)
    rounded = [np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in (x_BTD, projection.kernel[...])]
    np.testing.assert_array_equal(projection(x_BTD), jnp.asarray(np.float32(rounded[0] @ rounded[1]), jnp.bfloat16))


@pytest.mark.parametrize('norm', ['rms', 'layer'])
@pytest.mark.parametrize('plus_one', [False, True])
def test_norms(norm, plus_one):
    config = dataclasses.replace(CONFIG, norm=norm, norm_scale_plus_one=plus_one)
    layer, x_BTD = Norm(config, SCOPE), 3 * random(2, 5, 32) + 1
    fresh = np.asarray(layer(x_BTD))
    np.testing.assert_allclose(
        np.sqrt((fresh**2).mean(-1)), 1, rtol=1e-3
    )  # a new norm scales by 1 in both parametrizations
    if norm == 'layer':
        np.testing.assert_allclose(fresh.mean(-1), 0, atol=1e-5)

    scale_D = random(32)
    layer.scale[...] = jnp.asarray(scale_D)
    np.testing.assert_allclose(layer(x_BTD), fresh * (scale_D + plus_one), rtol=1e-5)


def test_the_norm_is_computed_in_float32():
    config = dataclasses.replace(CONFIG, dtype='bfloat16')
    x_BTD = jnp.asarray(random(1, 2, 32), jnp.bfloat16)
    y_BTD = Norm(config, SCOPE)(x_BTD)
    x = np.asarray(x_BTD, np.float32)
    exact = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    assert y_BTD.dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        np.asarray(y_BTD, np.float32), np.asarray(jnp.asarray(exact, jnp.bfloat16), np.float32)
    )


def test_a_16_bit_mlp_rounds_its_activations_once():
    config = dataclasses.replace(CONFIG, dtype='bfloat16')
    mlp, x_BTD = MLP(config, SCOPE), random(2, 5, 32)
    gate, linear = (np.asarray(getattr(mlp, name)(x_BTD), np.float64) for name in ('wi_0', 'wi_1'))
    gelu = 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    np.testing.assert_array_equal(mlp(x_BTD), mlp.wo(jnp.asarray(gelu * linear, jnp.bfloat16)))


def test_mlp_with_one_and_two_projections():
    x_BTD = random(2, 5, 32)
    relu = MLP(dataclasses.replace(CONFIG, mlp_activations=('relu',)), SCOPE)
    np.testing.assert_allclose(relu(x_BTD), np.maximum(x_BTD @ relu.wi.kernel[...], 0) @ relu.wo.kernel[...], atol=1e-5)
    gated = MLP(CONFIG, SCOPE)
    x = np.asarray(x_BTD @ gated.wi_0.kernel[...])
    gelu = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(
        gated(x_BTD), (gelu * (x_BTD @ gated.wi_1.kernel[...])) @ gated.wo.kernel[...], atol=1e-5
    )


def test_embedding_gathers_rows_and_its_gradient_scatters_to_them():
    embedder = TokenEmbedder(CONFIG, SCOPE)
    tokens_BT = np.array([[3, 5, 3]])
    np.testing.assert_array_equal(embedder(tokens_BT), np.asarray(embedder.embedding[...])[tokens_BT])
    gradient = jax.grad(lambda embedder: embedder(tokens_BT).sum())(embedder).embedding[...]
    np.testing.assert_array_equal(gradient[:, 0], np.bincount([3, 5, 3], minlength=64))


@pytest.mark.parametrize('token', [64, 1000])
def test_a_token_outside_the_vocabulary_becomes_nan(token):
    assert np.isnan(TokenEmbedder(CONFIG, SCOPE)(np.array([[token]]))).all()


@pytest.mark.parametrize('scaled', [True, False])
def test_tied_logits_start_at_unit_variance(scaled):
    """Scaled logits of a table of unit variance, or unscaled logits of a small one."""
    config = dataclasses.replace(CONFIG, tie_embeddings=True, scale_tied_logits=scaled)
    embedder, x_BTD = TokenEmbedder(config, SCOPE), random(2, 50, 32)
    factor = 32**-0.5 if scaled else 1
    logits_BTV = embedder.logits(x_BTD)
    np.testing.assert_allclose(logits_BTV, factor * x_BTD @ np.asarray(embedder.embedding[...]).T, atol=1e-5)
    assert logits_BTV.dtype == jnp.float32
    np.testing.assert_allclose(np.std(logits_BTV), 1, rtol=0.1)


def test_scaled_embeddings_have_unit_variance():
    embedder = TokenEmbedder(dataclasses.replace(CONFIG, scale_embedding=True), SCOPE)
    np.testing.assert_allclose(np.std(embedder(np.arange(64)[None])), 1, rtol=0.1)
    np.testing.assert_allclose(embedder(np.arange(64)[None])[0], 32**0.5 * embedder.embedding[...], rtol=1e-6)
