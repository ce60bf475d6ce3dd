"""The unrolled decoding step gives the numbers of the scan it replaces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5flan.decoding.unrolled import unroll_cache, unroll_layers, unrolled_step
from tests.models.small_models import ENCODER_DECODERS, small_model

PROMPTS_BP = np.array([[0, 0, 7, 8], [4, 5, 6, 7]], np.int32)
TOKENS_BT = np.array([[9, 3, 12], [11, 30, 2]], np.int32)


@pytest.mark.parametrize(
    'family, dtype',
    [
        ('umt5', 'float32'),
        ('t5_1_0', 'bfloat16'),
        ('gemma', 'float32'),
        pytest.param('palm', 'bfloat16', marks=pytest.mark.slow),
        pytest.param('t5_1_1', 'bfloat16', marks=pytest.mark.slow),
        ('rotary', 'float32'),
        ('windowed', 'float32'),
        ('merged', 'float32'),
        ('modern', 'float32'),
        pytest.param('modern', 'bfloat16', marks=pytest.mark.slow),
    ],
)
def test_unrolled_equals_scan(family, dtype):
    model = small_model(family, dtype=dtype)
    prompts_BP = PROMPTS_BP[:, ::-1] if family in ENCODER_DECODERS else PROMPTS_BP

    def both(model, prompts_BP, tokens_BT):
        _, cache = model.start_cache(prompts_BP, 3)
        scans, steps = [], []
        layers, caches = unroll_layers(model), unroll_cache(model.config, cache, 3)
        for t in range(3):
            logits_BV, cache = model.decode_step(cache, tokens_BT[:, t : t + 1])
            scans.append(logits_BV)
            logits_BV, caches = unrolled_step(model, layers, caches, tokens_BT[:, t : t + 1])
            steps.append(logits_BV)
        return jnp.stack(scans), jnp.stack(steps), cache, caches

    scans, steps, cache, caches = jax.jit(both)(model, prompts_BP, TOKENS_BT)
    # Relative to the largest logit: Gemma's logits are about ten times as large as the others'.
    np.testing.assert_allclose(steps, scans, atol=(3e-6 if dtype == 'float32' else 0.01) * np.abs(scans).max())
    assert caches.index == cache.index and len(caches.layers) == 2
    for layer, (k_BKHM, v_BKMH) in enumerate(caches.layers):
        keys, values = k_BKHM.transpose(0, 3, 1, 2), v_BKMH.swapaxes(1, 2)
        for one, other in ((keys, cache.k_LBMKH[layer]), (values, cache.v_LBMKH[layer])):
            np.testing.assert_allclose(
                one.astype(float), other.astype(float), atol=1e-5 if dtype == 'float32' else 0.05
            )
