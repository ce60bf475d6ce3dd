"""Decoding with a cache against running the whole model anew for every token."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5flan import sharding as sharding_lib
from t5flan.decoding import generate as generate_lib
from t5flan.decoding.generate import first_largest, generate
from t5flan.decoding.sampling import Sampling
from t5flan.errors import UserError
from t5flan.mesh import MeshConfig
from tests.models.small_models import ENCODER_DECODERS, VOCABULARY, small_model

CASES = [('t5_1_1', False), ('relative', False), ('relative', True), ('palm', False)]
PROMPTS = [[5, 9, 2], [7], [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 4], [33, 60]]
NO_END = VOCABULARY  # an id no model writes


@pytest.fixture(scope='module')
def models():
    """One layer each: straight code of two takes twice the time to compile, and unrolled_test.py has two."""
    cache = {}

    def model(family):
        if family not in cache:
            layers = {'num_decoder_layers': 1} | ({'num_encoder_layers': 1} if family in ENCODER_DECODERS else {})
            cache[family] = small_model(family, **layers)
        return cache[family]

    return model


@jax.jit
def _run(model, batch):
    return jax.nn.log_softmax(model(batch))


def _slowly(model, prompt, count, prefix_lm):
    """Greedy tokens and their log-probabilities by running the whole model once a token."""
    padded = lambda ids, length: np.pad(np.array(ids, np.int32), (0, length - len(ids)))[None]
    tokens, log_probs = [], []
    for _ in range(count):
        if model.config.architecture == 'encoder_decoder':
            read = [0, *tokens]
            batch = {'encoder_input_tokens': padded(prompt, 12), 'decoder_input_tokens': padded(read, 24)}
        else:
            read = [0, *prompt, *tokens]
            batch = {'decoder_input_tokens': padded(read, 24), 'decoder_segment_ids': padded([1] * len(read), 24)}
            if prefix_lm:
                batch['decoder_causal_attention'] = padded([1] * (1 + len(prompt)), 24)
        log_probs_V = np.asarray(_run(model, batch))[0, len(read) - 1]
        tokens.append(int(log_probs_V.argmax()))
        log_probs.append(log_probs_V.max())
    return tokens, log_probs


@pytest.mark.parametrize('family, prefix_lm', CASES)
def test_greedy_is_argmax_of_the_whole_model(models, family, prefix_lm):
    model = models(family)
    results = generate(model, PROMPTS, eos_id=NO_END, max_new_tokens=8, prefix_lm=prefix_lm)
    for prompt, (result,) in zip(PROMPTS, results, strict=True):
        tokens, log_probs = _slowly(model, prompt, 8, prefix_lm)
        assert result.tokens.tolist() == tokens and not result.ended
        np.testing.assert_allclose(result.log_probs, log_probs, atol=2e-5)


@pytest.mark.parametrize('family', ['t5_1_1', 'palm'])
def test_rows_end_at_the_end_of_sequence(models, family):
    model = models(family)
    free = [row.tokens for (row,) in generate(model, PROMPTS, eos_id=NO_END, max_new_tokens=8)]
    eos = int(free[0][3])  # what some row writes becomes its end
    for whole, (result,) in zip(free, generate(model, PROMPTS, eos_id=eos, max_new_tokens=8), strict=True):
        places = np.flatnonzero(whole == eos)
        end = int(places[0]) + 1 if len(places) else 8
        assert result.tokens.tolist() == whole[:end].tolist() and len(result.log_probs) == end
        assert result.ended == bool(len(places))
    ((stopped,),) = generate(model, PROMPTS[:1], eos_id=NO_END, max_new_tokens=3)
    assert stopped.tokens.tolist() == free[0][:3].tolist()


@pytest.mark.parametrize(
    'family, sampling',
    [('relative', Sampling()), pytest.param('t5_1_1', Sampling(1.0, 20, 0.95), marks=pytest.mark.slow)],
)
def test_a_row_depends_on_no_neighbour(models, family, sampling):
    model = models(family)
    settings = {'eos_id': 3, 'max_new_tokens': 10, 'sampling': sampling, 'seed': 5}
    together = generate(model, PROMPTS, **settings)
    longer = [list(range(4, 50))]  # stretches the padding of its neighbours
    crowded = generate(model, longer + PROMPTS, rows=[9, 0, 1, 2, 3], batch_size=8, **settings)[1:]
    alone = [generate(model, [prompt], rows=[i], **settings)[0] for i, prompt in enumerate(PROMPTS)]
    for others in (crowded, alone):
        for (one,), (other,) in zip(together, others, strict=True):
            assert one.tokens.tolist() == other.tokens.tolist()
            np.testing.assert_allclose(one.log_probs, other.log_probs, atol=2e-5)


def test_samples_differ_and_the_first_is_that_of_one(models):
    model = models('t5_1_1')
    settings = {'eos_id': NO_END, 'max_new_tokens': 6, 'sampling': Sampling(1.5), 'seed': 2}
    three = generate(model, PROMPTS, num_samples=3, **settings)
    assert all(len({tuple(sample.tokens) for sample in samples}) == 3 for samples in three)
    for samples, (single,) in zip(three, generate(model, PROMPTS, **settings), strict=True):
        assert samples[0].tokens.tolist() == single.tokens.tolist()
    again = generate(model, PROMPTS, **{**settings, 'seed': 3})
    assert any(a[0].tokens.tolist() != b[0].tokens.tolist() for a, b in zip(three, again))


def test_sampling_settings_compile_nothing_anew(models):
    model = models('t5_1_1')
    run = lambda **sampling: generate(model, PROMPTS, eos_id=3, max_new_tokens=4, sampling=Sampling(**sampling))
    run(temperature=1.0)
    before = generate_lib.generate_batch._cache_size()
    run(temperature=0.5, top_k=3, top_p=0.5)
    generate(model, PROMPTS[:3], eos_id=5, max_new_tokens=7, sampling=Sampling(2.0), seed=8)
    assert generate_lib.generate_batch._cache_size() == before


@pytest.mark.parametrize(
    'family, mesh',
    [
        ('t5_1_1', MeshConfig(data=2, fsdp=2, tensor=2)),
        ('t5_1_1', MeshConfig(data=2, context=4)),
        ('relative', MeshConfig(data=2, context=2, tensor=2)),
    ],
    ids=['mixed', 'context', 'context of a decoder'],
)
def test_the_mesh_changes_nothing(family, mesh, models):
    model = models(family)
    plain = generate(model, PROMPTS, eos_id=3, max_new_tokens=7)
    with sharding_lib.use(sharding_lib.create_sharding(mesh)):
        sharded = generate(model, PROMPTS, eos_id=3, max_new_tokens=7)
    for (a,), (b,) in zip(sharded, plain, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist()
        np.testing.assert_allclose(a.log_probs, b.log_probs, atol=2e-5)


def test_batches_keep_the_order_and_report_progress(models):
    model = models('palm')
    prompts = [[i + 3] * (1 + i % 5) for i in range(9)]
    done = []
    results = generate(model, prompts, eos_id=NO_END, max_new_tokens=2, batch_size=4, progress=done.append)
    assert done == [4, 8, 9]
    for prompt, (result,) in zip(prompts, results):
        ((alone,),) = generate(model, [prompt], eos_id=NO_END, max_new_tokens=2)
        assert alone.tokens.tolist() == result.tokens.tolist()
    assert generate(model, [], eos_id=1, max_new_tokens=2) == []


def test_wrong_settings_are_named(models):
    model = models('t5_1_1')
    for wrong in ({'max_new_tokens': 0}, {'batch_size': 0}, {'num_samples': -1}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            generate(model, PROMPTS, **{'eos_id': 1, 'max_new_tokens': 2, **wrong})
    with pytest.raises(UserError, match='prompt 1 holds token ids from 0 to 64'):
        generate(model, [[3], [0, VOCABULARY]], eos_id=1, max_new_tokens=2)


def test_first_largest_is_argmax():
    logits_BV = np.round(np.random.default_rng(0).normal(size=(50, 8)), 1).astype(np.float32)
    np.testing.assert_array_equal(first_largest(jnp.asarray(logits_BV)), logits_BV.argmax(-1))
    assert int(first_largest(jnp.full((1, 4), jnp.nan))[0]) == 3


def test_worked_examples():
    assert doctest.testmod(generate_lib).failed == 0
