import jax.numpy as jnp
import numpy as np
import pytest

from t5flan.models.model import positions_of
from tests.models.small_models import small_model


@pytest.mark.parametrize('family', ['t5_1_1', 't5_1_0', 'gemma'])
def test_logits_are_computed_position_by_position(family):
    """The loss passes chunks and flat rows of hidden states."""
    model = small_model(family, dtype='bfloat16')
    x_BTD = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 32)), jnp.bfloat16)
    logits_BTV = model.logits(x_BTD)
    assert logits_BTV.shape == (2, 3, 64) and logits_BTV.dtype == jnp.float32
    np.testing.assert_allclose(model.logits(x_BTD[:, 1:2]), logits_BTV[:, 1:2], atol=1e-5)
    np.testing.assert_allclose(model.logits(x_BTD.reshape(6, 32)), logits_BTV.reshape(6, 64), atol=1e-5)


def test_positions_count_from_zero_in_every_row():
    np.testing.assert_array_equal(positions_of(np.zeros((2, 3), np.int32)), [[0, 1, 2], [0, 1, 2]])
