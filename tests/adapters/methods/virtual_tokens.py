"""What tests of prompts and prefixes share: rows read at once, and read through the cache."""

import jax
import jax.numpy as jnp
import numpy as np

from t5flan.adapters import adapter as adapters
from t5flan.decoding.unrolled import unroll_cache, unroll_layers, unrolled_step
from tests.models.small_models import small_model

NEW_BT = np.random.default_rng(1).integers(3, 64, (4, 3))
PROMPTS = [np.random.default_rng(2).integers(3, 64, length) for length in (2, 5, 0, 1)]


@jax.jit
def logits_of(model, batch):
    return model(batch)


def adapted(family: str, settings, **fields):
    """A small model with an adapter whose parameters are not at their initial values."""
    model = adapters.apply(small_model(family, **fields), settings, jax.random.key(1))
    arrays = adapters.adapter_arrays(model)
    keys = jax.random.split(jax.random.key(5), len(arrays))
    moved = {name: x + 0.3 * jax.random.normal(key, x.shape) for (name, x), key in zip(arrays.items(), keys)}
    return adapters.with_arrays(model, moved)


def whole_rows(prefix_lm: bool) -> dict[str, np.ndarray]:
    """Rows as in training: start token, prompt, new tokens, padding."""
    rows = [np.concatenate([[0], prompt, new]) for prompt, new in zip(PROMPTS, NEW_BT, strict=True)]
    batch = {'decoder_input_tokens': np.stack([np.pad(row, (0, 9 - len(row))) for row in rows])}
    if prefix_lm:
        prefix = np.stack([np.arange(9) <= len(prompt) for prompt in PROMPTS])
        batch['decoder_causal_attention'] = prefix.astype(np.int32)
    return batch


def assert_cached_equals_whole(model, prefix_lm: bool = False) -> None:
    """Left-padded prompts and new tokens, by both decoding steps, against whole rows."""
    whole_BTV = np.asarray(logits_of(model, whole_rows(prefix_lm)))
    prompts_BP = np.stack([np.pad(prompt, (5 - len(prompt), 0)) for prompt in PROMPTS])

    @jax.jit
    def decode(model):
        logits_BV, cache = model.start_cache(prompts_BP, 3, prefix_lm=prefix_lm)
        layers, caches = unroll_layers(model), unroll_cache(model.config, cache, 3)
        scanned, unrolled = [logits_BV], [logits_BV]
        for t in range(3):
            tokens_B1 = jnp.asarray(NEW_BT[:, t : t + 1])
            logits_BV, cache = model.decode_step(cache, tokens_B1)
            scanned.append(logits_BV)
            logits_BV, caches = unrolled_step(model, layers, caches, tokens_B1)
            unrolled.append(logits_BV)
        return jnp.stack(scanned, axis=1), jnp.stack(unrolled, axis=1)

    for found_BTV in decode(model):
        for row, prompt in enumerate(PROMPTS):
            expected = whole_BTV[row, len(prompt) : len(prompt) + 4]
            np.testing.assert_allclose(found_BTV[row], expected, atol=2e-5)
