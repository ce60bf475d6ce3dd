import jax
import numpy as np
import pytest

from t5flan.models.parameters import Scope
from t5flan.models.positions import RelativeTable, rotate
from tests.models.small_models import small_config


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_rotation_pairs_features_half_a_head_apart():
    x_BTNH = random(1, 3, 1, 4)
    y_BTNH = rotate(x_BTNH, np.array([[0, 1, 7]]), base=100.0)
    z = (x_BTNH[0, :, 0, :2] + 1j * x_BTNH[0, :, 0, 2:]) * np.exp(1j * np.array([[0], [1], [7]]) * np.array([1.0, 0.1]))
    np.testing.assert_allclose(y_BTNH[0, :, 0], np.concatenate([z.real, z.imag], -1), atol=1e-6)


def test_scores_depend_only_on_the_distance():
    q_BTNH, k_BTNH = random(1, 1, 2, 8), random(2, 1, 2, 8)[1:]

    def score(query_at: int, key_at: int) -> np.ndarray:
        q, k = rotate(q_BTNH, np.array([[query_at]]), 1e4), rotate(k_BTNH, np.array([[key_at]]), 1e4)
        return np.einsum('btnh,btnh->n', q, k)

    np.testing.assert_allclose(score(9, 4), score(105, 100), atol=1e-4)
    assert np.abs(score(9, 4) - score(9, 5)).max() > 0.01


def test_rotation_preserves_norm_and_dtype():
    x_BTNH = random(2, 5, 3, 8)
    y_BTNH = rotate(x_BTNH, np.arange(10).reshape(2, 5), 1e4)
    np.testing.assert_allclose(np.linalg.norm(y_BTNH, axis=-1), np.linalg.norm(x_BTNH, axis=-1), rtol=1e-5)
    assert rotate(x_BTNH.astype('bfloat16'), np.arange(10).reshape(2, 5), 1e4).dtype == 'bfloat16'


@pytest.mark.parametrize(
    'per_layer, scale, shape, axes',
    [
        (False, 1.0, (4, 32), ('heads', 'relpos_buckets')),
        (True, 9.0, (5, 4, 32), ('layers', 'heads', 'relpos_buckets')),
    ],
)
def test_one_relative_table_for_the_stack_or_one_for_each_layer(per_layer, scale, shape, axes):
    config = small_config('t5_1_1', relative_bias_per_layer=per_layer, relative_bias_init=scale)
    table = RelativeTable(config, Scope(jax.random.key(0)), layers=5)
    assert table.rel_embedding.shape == shape and table.rel_embedding.get_metadata('axes') == axes
    bound = (3 * scale / ((4 + 32) / 2)) ** 0.5  # uniform, of variance scale / mean(heads, buckets), as in T5X
    largest = np.abs(np.asarray(table.rel_embedding[...])).max()
    assert 0.9 * bound < largest <= bound
