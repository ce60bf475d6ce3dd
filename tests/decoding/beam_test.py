"""Beam search finds the beams of a slow search in NumPy that runs the whole model for every token."""

import functools

import jax
import numpy as np
import pytest

from t5flan import sharding as sharding_lib
from t5flan.decoding import beam
from t5flan.decoding.config import Decoding
from t5flan.decoding.generate import generate
from t5flan.mesh import MeshConfig
from tests.models.small_models import ENCODER_DECODERS, VOCABULARY, small_model

PROMPTS = [[5, 9, 2], [7], [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 4], [33, 60]]
WIDTH, LIMIT = 3, 7
SEARCHES = [
    Decoding(LIMIT, num_beams=WIDTH),
    Decoding(LIMIT, num_beams=WIDTH, length_penalty=0.6, early_stopping=True),
    Decoding(LIMIT, num_beams=WIDTH, length_penalty=0.3, early_stopping='never'),
    Decoding(LIMIT, num_beams=WIDTH, length_penalty=0.6, beam_scoring='t5x'),
]


@functools.cache
def model_of(family):
    layers = {'num_decoder_layers': 1} | ({'num_encoder_layers': 1} if family in ENCODER_DECODERS else {})
    return small_model(family, **layers)


@jax.jit
def _log_probs(model, batch):
    return jax.nn.log_softmax(model(batch))


def next_log_probs(model, prompt, beams):
    """Log-probabilities [len(beams), V] of the token after each beam."""
    padded = lambda rows, length: np.stack([np.pad(np.int32(row), (0, length - len(row))) for row in rows])
    beams = beams + [beams[0]] * (WIDTH - len(beams))  # one shape, so that little is compiled
    if model.config.architecture == 'encoder_decoder':
        read = [[0, *tokens] for tokens in beams]
        batch = {'encoder_input_tokens': padded([prompt] * WIDTH, 12), 'decoder_input_tokens': padded(read, 24)}
    else:
        read = [[0, *prompt, *tokens] for tokens in beams]
        batch = {
            'decoder_input_tokens': padded(read, 24),
            'decoder_segment_ids': padded([[1] * len(row) for row in read], 24),
        }
    return np.asarray(_log_probs(model, batch), np.float64)[:, len(read[0]) - 1]


def slow_search(model, prompt, eos, decoding):
    """The beams (tokens, score) of one prompt, the best first."""
    alpha, early, is_t5x = decoding.length_penalty, decoding.early_stopping, decoding.beam_scoring == 't5x'
    penalty = lambda length: ((5 + length) / 6 if is_t5x else length) ** alpha
    running, ended = [((), 0.0)], []
    for length in range(1, LIMIT + 1):
        log_probs = next_log_probs(model, prompt, [tokens for tokens, _ in running])
        candidates = sorted(
            ((score + log_probs[i, v], (*tokens, v)) for i, (tokens, score) in enumerate(running) for v in range(64)),
            reverse=True,
        )[: 2 * WIDTH]
        ends = [tokens[-1] == eos or (not is_t5x and length == LIMIT) for _, tokens in candidates]
        may_end = not (early is True and len(ended) == WIDTH)
        for rank, (score, tokens) in enumerate(candidates):
            if ends[rank] and may_end and (is_t5x or rank < WIDTH):
                ended.append((tokens, score / penalty(length)))
        ended = sorted(ended, key=lambda one: -one[1])[:WIDTH]
        running = [(tokens, score) for (score, tokens), end in zip(candidates, ends) if not end][:WIDTH]
        bound = LIMIT + 1 if is_t5x else LIMIT if early == 'never' else length
        full = len(ended) == WIDTH
        if full and (early is True or not running or running[0][1] / penalty(bound) <= ended[-1][1]):
            break
    return ended or running


@functools.cache
def an_end(family):
    """The commonest token inside beams: it becomes the end of sequence."""
    results = generate(model_of(family), PROMPTS, SEARCHES[0], eos_id=VOCABULARY)
    return int(np.bincount(np.concatenate([one.tokens[1:-1] for beams in results for one in beams])).argmax())


def same(beams, others, atol=1e-5):
    for ours, theirs in zip(beams, others, strict=True):
        assert [one.tokens.tolist() for one in ours] == [one.tokens.tolist() for one in theirs]
        np.testing.assert_allclose([one.score for one in ours], [one.score for one in theirs], atol=atol)


@pytest.mark.parametrize('decoding', SEARCHES, ids=['plain', 'early', 'never', 't5x'])
@pytest.mark.parametrize(
    'family', ['t5_1_1', pytest.param('relative', marks=pytest.mark.slow), pytest.param('palm', marks=pytest.mark.slow)]
)
def test_beams_are_those_of_a_slow_search(family, decoding):
    model, eos = model_of(family), an_end(family)
    results = generate(model, PROMPTS, decoding, eos_id=eos)
    for prompt, beams in zip(PROMPTS, results, strict=True):
        expected = slow_search(model, prompt, eos, decoding)
        assert [tuple(one.tokens.tolist()) for one in beams] == [tokens for tokens, _ in expected]
        np.testing.assert_allclose([one.score for one in beams], [score for _, score in expected], atol=1e-5)
        for one in beams:
            assert one.ended == (one.tokens[-1] == eos)
            divisor = len(one.tokens) ** decoding.length_penalty
            if decoding.beam_scoring == 'huggingface':
                np.testing.assert_allclose(one.log_probs.sum() / divisor, one.score, atol=1e-5)
    ended = {one.ended for beams in results for one in beams}
    assert ended == {True, False} or decoding.early_stopping is not True


@pytest.mark.slow
def test_a_row_does_not_depend_on_its_neighbours():
    model, eos, decoding = model_of('t5_1_1'), an_end('t5_1_1'), SEARCHES[1]
    together = generate(model, PROMPTS, decoding, eos_id=eos)
    longer = [list(range(4, 50))]  # more padding for its neighbours
    same(generate(model, longer + PROMPTS[::-1], decoding, eos_id=eos)[:0:-1], together)
    same(generate(model, PROMPTS, decoding.replace(batch_size=1), eos_id=eos), together)


@pytest.mark.slow
@pytest.mark.parametrize(
    'family, mesh',
    [('t5_1_1', MeshConfig(data=2, fsdp=2, tensor=2)), ('relative', MeshConfig(data=2, context=2, tensor=2))],
)
def test_a_mesh_does_not_change_the_result(family, mesh):
    model, eos = model_of(family), an_end(family)
    plain = generate(model, PROMPTS, SEARCHES[0], eos_id=eos)
    with sharding_lib.use(sharding_lib.create_sharding(mesh)):
        same(generate(model, PROMPTS, SEARCHES[0], eos_id=eos), plain)


@pytest.mark.slow
def test_a_scanned_step_gives_the_same_beams(monkeypatch):
    model, eos = model_of('t5_1_1'), an_end('t5_1_1')
    plain = generate(model, PROMPTS, SEARCHES[0], eos_id=eos)
    monkeypatch.setattr('t5flan.decoding.steps.UNROLLED_LAYERS', 0)
    jax.clear_caches()
    same(generate(model, PROMPTS, SEARCHES[0], eos_id=eos), plain)
    jax.clear_caches()


def test_changing_the_numbers_of_a_search_does_not_recompile():
    model = model_of('t5_1_1')
    generate(model, PROMPTS, SEARCHES[0], eos_id=3)
    before = beam.advance._cache_size()
    generate(model, PROMPTS, SEARCHES[0].replace(length_penalty=0.1, max_new_tokens=3), eos_id=5)
    assert beam.advance._cache_size() == before


def test_ids_that_no_vocabulary_has_are_never_chosen():
    results = generate(model_of('t5_1_1'), PROMPTS, SEARCHES[0], eos_id=VOCABULARY, known_ids=20)
    assert max(int(one.tokens.max()) for beams in results for one in beams) < 20


def test_more_beams_than_tokens_leave_places_empty():
    wide = Decoding(max_new_tokens=2, num_beams=5)
    for beams in generate(model_of('t5_1_1'), PROMPTS[:2], wide, eos_id=VOCABULARY, known_ids=2):
        assert len({tuple(one.tokens) for one in beams}) == len(beams) == 4  # two tokens at two places
