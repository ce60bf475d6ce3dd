"""Decoding with a cache gives the tokens that running the whole model for every token gives."""

import doctest

import jax
import numpy as np
import pytest

from t5flan import sharding as sharding_lib
from t5flan.decoding import generate as generate_lib
from t5flan.decoding import sampled
from t5flan.decoding.config import Decoding
from t5flan.decoding.generate import _batches, generate
from t5flan.decoding.likelihood import likelihoods
from t5flan.errors import UserError
from t5flan.mesh import MeshConfig
from tests.models.small_models import ENCODER_DECODERS, VOCABULARY, small_config, small_model

CASES = [('relative', False), ('relative', True)]
SLOW_CASES = [pytest.param(family, False, marks=pytest.mark.slow) for family in ('t5_1_1', 'palm')]
PROMPTS = [[5, 9, 2], [7], [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 4], [33, 60]]
NO_END = VOCABULARY  # an id that no model generates


@pytest.fixture(scope='module')
def models():
    """One layer each: two take twice the time to compile, and unrolled_test.py has two."""
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
    """Greedy tokens and their log-probabilities, running the whole model for every token."""
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


@pytest.mark.parametrize('family, prefix_lm', [*CASES, *SLOW_CASES])
def test_greedy_is_argmax_of_the_whole_model(models, family, prefix_lm):
    model = models(family)
    results = generate(model, PROMPTS, Decoding(max_new_tokens=8), eos_id=NO_END, prefix_lm=prefix_lm)
    for prompt, (result,) in zip(PROMPTS, results, strict=True):
        tokens, log_probs = _slowly(model, prompt, 8, prefix_lm)
        assert result.tokens.tolist() == tokens and not result.ended
        np.testing.assert_allclose(result.log_probs, log_probs, atol=2e-5)


@pytest.mark.parametrize('family', ['t5_1_1', 'palm'])
def test_rows_end_at_the_end_of_sequence(models, family):
    model = models(family)
    eight = Decoding(max_new_tokens=8)
    free = [row.tokens for (row,) in generate(model, PROMPTS, eight, eos_id=NO_END)]
    eos = int(free[0][3])  # one row generates this token: it becomes the end
    for whole, (result,) in zip(free, generate(model, PROMPTS, eight, eos_id=eos), strict=True):
        places = np.flatnonzero(whole == eos)
        end = int(places[0]) + 1 if len(places) else 8
        assert result.tokens.tolist() == whole[:end].tolist() and len(result.log_probs) == end
        assert result.ended == bool(len(places))
    ((stopped,),) = generate(model, PROMPTS[:1], Decoding(max_new_tokens=3), eos_id=NO_END)
    assert stopped.tokens.tolist() == free[0][:3].tolist()


@pytest.mark.parametrize(
    'family, decoding',
    [
        ('relative', Decoding(max_new_tokens=10, seed=5)),
        pytest.param('t5_1_1', Decoding(10, 1.0, 20, 0.95, seed=5), marks=pytest.mark.slow),
    ],
)
def test_a_row_does_not_depend_on_its_neighbours(models, family, decoding):
    model = models(family)
    together = generate(model, PROMPTS, decoding, eos_id=3)
    longer = [list(range(4, 50))]  # more padding for its neighbours
    crowded = generate(model, longer + PROMPTS, decoding.replace(batch_size=8), eos_id=3, rows=[9, 0, 1, 2, 3])[1:]
    alone = [generate(model, [prompt], decoding, eos_id=3, rows=[i])[0] for i, prompt in enumerate(PROMPTS)]
    for others in (crowded, alone):
        for (one,), (other,) in zip(together, others, strict=True):
            assert one.tokens.tolist() == other.tokens.tolist()
            np.testing.assert_allclose(one.log_probs, other.log_probs, atol=2e-5)


def test_samples_differ_and_the_first_is_that_of_a_single_one(models):
    model, decoding = models('t5_1_1'), Decoding(max_new_tokens=6, temperature=1.5, num_samples=3, seed=2)
    three = generate(model, PROMPTS, decoding, eos_id=NO_END)
    assert all(len({tuple(sample.tokens) for sample in samples}) == 3 for samples in three)
    one_each = generate(model, PROMPTS, decoding.replace(num_samples=1), eos_id=NO_END)
    for samples, (single,) in zip(three, one_each, strict=True):
        assert samples[0].tokens.tolist() == single.tokens.tolist()
    again = generate(model, PROMPTS, decoding.replace(num_samples=1, seed=3), eos_id=NO_END)
    assert any(a[0].tokens.tolist() != b[0].tokens.tolist() for a, b in zip(three, again))


def test_changing_the_sampling_settings_does_not_recompile(models):
    model, decoding = models('t5_1_1'), Decoding(max_new_tokens=4, temperature=1.0)
    generate(model, PROMPTS, decoding, eos_id=3)
    before = sampled.advance._cache_size()
    generate(model, PROMPTS, decoding.replace(temperature=0.5, top_k=3, top_p=0.5), eos_id=3)
    generate(model, PROMPTS[:3], Decoding(max_new_tokens=7, temperature=2.0, seed=8), eos_id=5)
    assert sampled.advance._cache_size() == before


@pytest.mark.parametrize(
    'family, mesh',
    [
        ('t5_1_1', MeshConfig(data=2, fsdp=2, tensor=2)),
        ('t5_1_1', MeshConfig(data=2, context=4)),
        ('relative', MeshConfig(data=2, context=2, tensor=2)),
    ],
    ids=['mixed', 'context', 'context of a decoder'],
)
def test_a_mesh_does_not_change_the_result(family, mesh, models):
    model = models(family)
    plain = generate(model, PROMPTS, Decoding(max_new_tokens=7), eos_id=3)
    with sharding_lib.use(sharding_lib.create_sharding(mesh)):
        sharded = generate(model, PROMPTS, Decoding(max_new_tokens=7), eos_id=3)
    for (a,), (b,) in zip(sharded, plain, strict=True):
        assert a.tokens.tolist() == b.tokens.tolist()
        np.testing.assert_allclose(a.log_probs, b.log_probs, atol=2e-5)


@pytest.mark.parametrize('decoding', [Decoding(6), Decoding(6, num_beams=2)], ids=['greedy', 'beams'])
def test_a_decoder_reads_the_id_0_as_a_word(models, decoding):
    """At the beginning of a prompt too, where padding is."""
    model, prompts = models('palm'), [[0, 0, 9], [9], [5, 0], [0]]
    together = generate(model, prompts, decoding, eos_id=NO_END)
    for prompt, (first, *_) in zip(prompts, together, strict=True):
        (likelihood,) = likelihoods(model, [[0, *prompt]], [first.tokens.tolist()])
        assert first.log_probs.sum() == pytest.approx(likelihood.log_prob, abs=2e-4)
        assert decoding.num_beams > 1 or likelihood.is_greedy
    assert together[0][0].log_probs.tolist() != together[1][0].log_probs.tolist()


def test_batches_keep_the_order_and_report_progress(models):
    model = models('palm')
    prompts = [[i + 3] * (1 + i % 5) for i in range(9)]
    done, decoding = [], Decoding(max_new_tokens=2, batch_size=4)
    results = generate(model, prompts, decoding, eos_id=NO_END, progress=done.append)
    assert done == [4, 8, 9]
    for prompt, (result,) in zip(prompts, results):
        ((alone,),) = generate(model, [prompt], decoding.replace(batch_size=32), eos_id=NO_END)
        assert alone.tokens.tolist() == result.tokens.tolist()
    assert generate(model, [], decoding, eos_id=NO_END) == []


@pytest.mark.parametrize(
    'family, settings, new_slots',
    [
        ('gemma', {}, [64, 320, 64, 128, 160]),  # caches of 576, 576, 192, 192 and 192 slots
        ('gemma', {'num_samples': 2, 'temperature': 1.0}, [64] * 5),  # the samples of a prompt share its slots
        ('t5_1_1', {}, [64] * 5),
    ],
)
def test_the_batches_of_a_call_have_few_shapes(family, settings, new_slots):
    prompts = [[3] * length for length in (40, 230, 120, 60, 200, 250, 390, 30, 20)]
    decoding = Decoding(max_new_tokens=40, batch_size=2, **settings)
    batches = list(_batches(small_config(family), prompts, range(9), [0] * 9, None, decoding))
    assert [batch.prompts.tokens_BP.shape for batch in batches] == [(2, 512), (2, 256), (2, 128), (2, 64), (2, 32)]
    assert [batch.new_slots for batch in batches] == new_slots
    assert (batches[-1].prompts.rows_B[1:] == -1).all()


def test_wrong_prompts_are_reported(models):
    model, decoding = models('t5_1_1'), Decoding(max_new_tokens=2)
    with pytest.raises(UserError, match='prompt 1 has token ids from 0 to 64; the model has 1 to 63'):
        generate(model, [[3], [0, VOCABULARY]], decoding, eos_id=NO_END)
    with pytest.raises(UserError, match='max_new_tokens=None'):
        generate(model, PROMPTS, Decoding(), eos_id=1)
    with pytest.raises(UserError, match='start_id=None needs a decoder-only model'):
        generate(model, PROMPTS, decoding, eos_id=1, start_id=None)
    with pytest.raises(UserError, match='prompt 1 is empty: start_id=None'):
        generate(models('palm'), [[3], []], decoding, eos_id=1, start_id=None)
    with pytest.raises(UserError, match='prompt 0 has token ids from -1 to 3; the model has 0 to 63'):
        generate(models('palm'), [[3, -1]], decoding, eos_id=1)


def test_worked_examples():
    assert doctest.testmod(generate_lib).failed == 0


@pytest.mark.parametrize('temperature', [0.0, 1.0])
def test_ids_that_no_vocabulary_has_are_never_chosen(models, temperature):
    model = models('t5_1_1')
    prompts = [[3 + i, 5, 7] for i in range(8)]
    decoding = Decoding(max_new_tokens=6, temperature=temperature, batch_size=8)
    whole = generate(model, prompts, decoding, eos_id=NO_END)
    largest = max(int(one.tokens.max()) for (one,) in whole)
    limited = generate(model, prompts, decoding, eos_id=NO_END, known_ids=largest)
    assert max(int(one.tokens.max()) for (one,) in limited) < largest
    every = generate(model, prompts, decoding, eos_id=NO_END, known_ids=model.config.vocab_size)
    assert [one.tokens.tolist() for (one,) in every] == [one.tokens.tolist() for (one,) in whole]
