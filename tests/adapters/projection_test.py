"""Adapters of projections with biases: merged, and in the unrolled decoding step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5flan.adapters import adapter as adapters
from t5flan.adapters.methods.dora import Dora
from t5flan.adapters.methods.ia3 import Ia3
from t5flan.adapters.methods.lora import Lora
from t5flan.adapters.projection import merge
from t5flan.decoding.unrolled import unroll_cache, unroll_layers, unrolled_step
from t5flan.errors import UserError
from t5flan.models.parameters import named_parameters, replace_parameters
from tests.models.small_models import random_batch, small_model


def adapted(settings):
    """A model with QKV biases and an adapter of random numbers."""
    model, random = adapters.apply(small_model('modern'), settings, jax.random.key(0)), np.random.default_rng(0)
    values = dict(named_parameters(model))
    for name, x in values.items():
        if name.rsplit('/')[-1] in ('lora_a', 'lora_b', 'ia3'):
            values[name] = jnp.asarray(1.0 + 0.3 * random.normal(size=x.shape), jnp.float32)
    return replace_parameters(model, values)


@pytest.mark.parametrize('settings', [Lora(2), Ia3()], ids=['lora', 'ia3'])
def test_projections_with_biases(settings):
    model, batch = adapted(settings), random_batch('modern')
    logits_BTV = jax.jit(lambda model: model(batch))(model)
    np.testing.assert_allclose(jax.jit(lambda model: model(batch))(merge(model)), logits_BTV, atol=2e-4)

    def both(model, prompts_BP, tokens_B1):
        _, cache = model.start_cache(prompts_BP, 1)
        layers, unrolled = unroll_layers(model), unroll_cache(model.config, cache, 1)
        return model.decode_step(cache, tokens_B1)[0], unrolled_step(model, layers, unrolled, tokens_B1)[0]

    scan, step = jax.jit(both)(model, np.array([[0, 7, 8], [4, 5, 6]]), np.array([[9], [3]]))
    np.testing.assert_allclose(step, scan, atol=2e-5)


def test_dora_refuses_projections_with_biases():
    with pytest.raises(UserError, match='@Dora.. cannot adapt projections with biases .*Set Dora.targets') as error:
        adapted(Dora(2))
    assert '\n' not in str(error.value)
