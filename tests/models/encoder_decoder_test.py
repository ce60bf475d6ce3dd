import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.small_models import random_batch, small_config, small_model

FEATURES = ('encoder_input_tokens', 'decoder_input_tokens')


@jax.jit
def logits_of(model, batch):
    return model(batch)


def test_the_decoder_is_causal_and_sees_the_whole_input():
    """By gradient: a hidden state depends on exactly the tokens it may see. All tokens are different words."""
    model = small_model('t5_1_1')
    batch = {
        'encoder_input_tokens': np.array([[10, 11, 12, 13, 0]]),
        'decoder_input_tokens': np.array([[20, 21, 22, 23]]),
    }

    def at(position: int):
        return jax.grad(lambda model: model.hidden(batch)[0, position].sum())(model).token_embedder.embedding[...]

    depends_VD = jax.jit(at, static_argnums=0)(1)
    words = set(np.flatnonzero(np.abs(depends_VD).max(axis=1)))
    assert words == {10, 11, 12, 13, 20, 21}


@pytest.mark.parametrize('family', ['t5_1_1', 'rotary', 'windowed', 'two_sizes', 'merged', 't5gemma2', 'longt5'])
def test_packed_rows_match_separate_examples(family):
    """Two examples in a row do not see each other; padding sees nothing and is not seen."""
    model = small_model(family)
    random = np.random.default_rng(0)
    examples = [
        (random.integers(3, 64, source), random.integers(3, 64, target)) for source, target in [(4, 3), (6, 2), (2, 4)]
    ]
    packed = {
        name: np.zeros((2, 12 if name.startswith('encoder') else 8), np.int32)
        for side in ('encoder', 'decoder')
        for name in (f'{side}_input_tokens', f'{side}_segment_ids', f'{side}_positions')
    }
    for row, segment, starts, example in [(0, 1, (0, 0), 0), (0, 2, (4, 3), 1), (1, 1, (0, 0), 2)]:
        for side, start, tokens in zip(('encoder', 'decoder'), starts, examples[example], strict=True):
            place = row, slice(start, start + len(tokens))
            packed[f'{side}_input_tokens'][place] = tokens
            packed[f'{side}_segment_ids'][place] = segment
            packed[f'{side}_positions'][place] = np.arange(len(tokens))
    alone = {name: np.zeros((3, 12 if name.startswith('encoder') else 8), np.int32) for name in FEATURES}
    for row, example in enumerate(examples):
        for name, tokens in zip(FEATURES, example, strict=True):
            alone[name][row, : len(tokens)] = tokens

    packed_BTV, alone_BTV = logits_of(model, packed), logits_of(model, alone)
    np.testing.assert_allclose(packed_BTV[0, :3], alone_BTV[0, :3], atol=2e-5)
    np.testing.assert_allclose(packed_BTV[0, 3:5], alone_BTV[1, :2], atol=2e-5)
    np.testing.assert_allclose(packed_BTV[1, :4], alone_BTV[2, :4], atol=2e-5)


@pytest.mark.parametrize(
    'family, fields',
    [('t5_1_1', {}), ('rotary', {}), ('umt5', {'scan_layers': False}), ('merged', {}), ('t5gemma2', {})],
)
def test_decoding_step_by_step_matches_the_full_sequence(family, fields):
    model = small_model(family, **fields)
    batch = {name: random_batch(family, target=6)[name] for name in FEATURES}
    whole_BTV = logits_of(model, batch)
    logits_BV, cache = jax.jit(lambda model, x: model.start_cache(x, 5))(model, batch['encoder_input_tokens'])
    step = jax.jit(lambda model, cache, tokens: model.decode_step(cache, tokens))
    np.testing.assert_allclose(logits_BV, whole_BTV[:, 0], atol=2e-5)
    for t in range(1, 6):
        logits_BV, cache = step(model, cache, batch['decoder_input_tokens'][:, t : t + 1])
        np.testing.assert_allclose(logits_BV, whole_BTV[:, t], atol=2e-5)
    assert cache.index - cache.encoded == 6 and logits_BV.dtype == jnp.float32


def test_rows_of_one_prompt_share_the_encoders_output():
    model, batch = small_model('t5_1_1'), random_batch('t5_1_1')
    _, cache = jax.jit(lambda model, x: model.start_cache(x, 2))(model, batch['encoder_input_tokens'])
    step = jax.jit(lambda model, cache, tokens: model.decode_step(cache, tokens))
    tokens_B1 = batch['decoder_input_tokens'][:, 1:2]
    beams = cache.repeated(2)
    assert beams.k_LBMKH.shape[1] == 6 and beams.cross_k_LBSKH.shape[1] == 3
    twice_B1 = np.stack([tokens_B1, tokens_B1[::-1]], axis=1).reshape(-1, 1)
    logits_BV, beams = step(model, beams, twice_B1)
    np.testing.assert_allclose(logits_BV[::2], step(model, cache, tokens_B1)[0], atol=2e-5)
    np.testing.assert_allclose(logits_BV[1::2], step(model, cache, tokens_B1[::-1])[0], atol=2e-5)
    swapped, _ = step(model, beams.reordered(np.array([[1, 0]] * 3), 2), twice_B1)
    again, _ = step(model, beams, twice_B1.reshape(3, 2)[:, ::-1].reshape(-1, 1))
    np.testing.assert_allclose(swapped[::2], again[1::2], atol=2e-5)


def test_bfloat16_stays_close_to_float32():
    exact, model, batch = small_model('t5_1_1'), small_model('t5_1_1', dtype='bfloat16'), random_batch('t5_1_1')
    hidden, logits = jax.jit(lambda model, batch: (model.hidden(batch), model(batch)))(model, batch)
    assert hidden.dtype == jnp.bfloat16 and logits.dtype == jnp.float32
    difference = np.abs(logits - logits_of(exact, batch))
    assert 0 < difference.mean() < 0.05  # a bfloat16 has a relative precision of 1/256; logits here have unit variance
    _, cache = jax.eval_shape(lambda model, x: model.start_cache(x, 2), model, batch['encoder_input_tokens'])
    assert cache.k_LBMKH.dtype == cache.cross_v_LBSKH.dtype == jnp.bfloat16
    assert cache.k_LBMKH.shape == (2, 3, 3, 4, 8) and cache.cross_k_LBSKH.shape == (2, 3, 9, 4, 8)


def test_dropout_is_on_exactly_with_a_key():
    tokens_BS = random_batch('t5_1_1')['encoder_input_tokens']
    encode = jax.jit(lambda model, key: model.encode(tokens_BS, dropout_key=key))
    model = small_model('t5_1_1', dropout_rate=0.3)
    exact, dropped = encode(model, None), encode(model, jax.random.key(0))
    np.testing.assert_array_equal(exact, encode(small_model('t5_1_1'), jax.random.key(0)))
    assert np.abs(exact - dropped).mean() > 0.1
    # After the final norm, features are dropped for each token, not along the length as everywhere else.
    assert not (np.asarray(dropped)[0] == 0).all(axis=0).any() and (np.asarray(dropped) == 0).mean() == pytest.approx(
        0.3, abs=0.05
    )


def test_tied_logits_have_no_kernel():
    assert hasattr(small_model('t5_1_1').decoder, 'logits_dense')
    assert not hasattr(small_model('t5_1_0').decoder, 'logits_dense')
    assert small_config('t5_1_0').tie_embeddings


@pytest.mark.parametrize('family, back, ahead', [('longt5', 2, 2), ('t5gemma2', 1, 3)])
def test_an_encoders_window_hides_tokens_before_and_after(family, back, ahead):
    """By gradient, of one layer: a state depends on exactly the tokens in its window. Each is another word."""
    model = small_model(family, num_encoder_layers=1)
    tokens_BS = np.arange(20, 32)[None]

    def at(model):
        return model.encode(tokens_BS)[0, 5].sum()

    depends_VD = jax.jit(jax.grad(at))(model).token_embedder.embedding[...]
    words = np.flatnonzero(np.abs(depends_VD).max(axis=1))
    assert words.tolist() == list(range(25 - back, 25 + ahead + 1))


def test_a_token_may_have_an_embedding_of_its_own_that_is_not_scaled():
    model = small_model('t5gemma2')
    x_BTD = model.token_embedder(np.array([[8, 9, 9]]))
    np.testing.assert_array_equal(x_BTD[0, 1:], np.stack([model.token_embedder.unscaled_embedding[...]] * 2))
    np.testing.assert_allclose(x_BTD[0, 0], model.token_embedder.embedding[8] * 32**0.5, rtol=1e-6)
