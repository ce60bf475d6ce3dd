import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.small_models import small_model


@jax.jit
def logits_of(model, batch):
    return model(batch)


def test_a_token_sees_earlier_tokens_and_the_prefix():
    """By gradient: the third hidden state depends on exactly these tokens. All tokens are different words."""
    gradient_of = jax.jit(jax.grad(lambda model, batch: model.hidden(batch)[0, 2].sum()))
    for prefix, sees in [(0, {10, 11, 12}), (4, {10, 11, 12, 13})]:
        batch = {
            'decoder_input_tokens': np.array([[10, 11, 12, 13, 14, 15]]),
            'decoder_causal_attention': (np.arange(6) < prefix)[None].astype(np.int32),
        }
        gradient = gradient_of(small_model('palm'), batch)
        assert set(np.flatnonzero(np.abs(gradient.token_embedder.embedding[...]).max(axis=1))) == sees


@pytest.mark.parametrize(
    'family, prefix_lm', [('relative', False), ('relative', True), ('palm', True), ('modern', True)]
)
def test_packed_rows_match_separate_examples(family, prefix_lm):
    model = small_model(family)
    random = np.random.default_rng(0)
    lengths, prefixes = [5, 3, 6], [2, 1, 4]
    examples = [random.integers(3, 64, length) for length in lengths]
    alone = {'decoder_input_tokens': np.stack([np.pad(example, (0, 10 - len(example))) for example in examples])}
    packed = {
        'decoder_input_tokens': np.concatenate([*examples[:2], [0, 0]])[None],
        'decoder_segment_ids': np.array([[1] * 5 + [2] * 3 + [0] * 2]),
        'decoder_positions': np.array([[0, 1, 2, 3, 4, 0, 1, 2, 0, 0]]),
    }
    if prefix_lm:
        in_prefix = np.arange(10)[None] < np.array(prefixes)[:, None]
        alone['decoder_causal_attention'] = in_prefix.astype(np.int32)
        packed['decoder_causal_attention'] = np.array([[1, 1, 0, 0, 0, 1, 0, 0, 0, 0]])
    packed_BTV, alone_BTV = logits_of(model, packed), logits_of(model, alone)
    np.testing.assert_allclose(packed_BTV[0, :5], alone_BTV[0, :5], atol=2e-5)
    np.testing.assert_allclose(packed_BTV[0, 5:8], alone_BTV[1, :3], atol=2e-5)


@pytest.mark.parametrize(
    'family, prefix_lm',
    [('relative', False), ('relative', True), ('palm', True), ('gemma', False), ('modern', False), ('modern', True)],
)
def test_decoding_after_prompts_of_any_length_matches_the_full_sequence(family, prefix_lm):
    """Left-padded prompts and new tokens, against rows as in training: start token, prompt, new tokens, padding."""
    model = small_model(family, scan_layers=family != 'gemma')
    random = np.random.default_rng(0)
    new_BT = random.integers(3, 64, (4, 3))
    prompts = [random.integers(3, 64, length) for length in (2, 5, 0, 1)]
    prompts[1][2] = 0  # a 0 inside a prompt is a token
    prompt_BP = np.stack([np.pad(prompt, (5 - len(prompt), 0)) for prompt in prompts])
    rows = [np.concatenate([[0], prompt, new]) for prompt, new in zip(prompts, new_BT, strict=True)]
    batch = {'decoder_input_tokens': np.stack([np.pad(row, (0, 9 - len(row))) for row in rows])}
    if prefix_lm:
        batch['decoder_causal_attention'] = np.stack([np.arange(9) <= len(prompt) for prompt in prompts]).astype(
            np.int32
        )
    whole_BTV = logits_of(model, batch)

    logits_BV, cache = jax.jit(lambda model, x: model.start_cache(x, 3, prefix_lm=prefix_lm))(model, prompt_BP)
    step = jax.jit(lambda model, cache, tokens: model.decode_step(cache, tokens))
    for t in range(4):
        for row, prompt in enumerate(prompts):
            np.testing.assert_allclose(logits_BV[row], whole_BTV[row, len(prompt) + t], atol=2e-5)
        if t < 3:
            logits_BV, cache = step(model, cache, new_BT[:, t : t + 1])
    np.testing.assert_array_equal(cache.pad_B, [3, 0, 5, 4])


def test_the_cache_is_in_the_compute_dtype_and_holds_key_value_heads():
    model = small_model('palm', dtype='bfloat16')
    logits_BV, cache = jax.eval_shape(lambda model, x: model.start_cache(x, 3), model, np.zeros((4, 5), np.int32))
    assert cache.k_LBMKH.shape == cache.v_LBMKH.shape == (2, 4, 9, 1, 8) and cache.k_LBMKH.dtype == jnp.bfloat16
    assert logits_BV.shape == (4, 64) and logits_BV.dtype == jnp.float32


def test_logits_are_capped():
    model = small_model('gemma')
    model = jax.tree.map(lambda x: 30 * x, model)
    logits_BTV = logits_of(model, {'decoder_input_tokens': np.arange(1, 9)[None]})
    assert 9.9 < np.abs(logits_BTV).max() <= 10
