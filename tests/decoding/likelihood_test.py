"""Continuations that share the cache of their context have the likelihoods that the whole model gives each alone."""

import doctest

import jax
import numpy as np
import pytest

from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.data.vocabulary.vocabulary import Conventions
from t5flan.decoding import likelihood as likelihood_lib
from t5flan.decoding.likelihood import Likelihood, likelihoods, rolling_windows
from t5flan.errors import UserError
from t5flan.language_model import LanguageModel
from t5flan.mesh import MeshConfig
from t5flan.sharding import create_sharding
from tests.saved_model import byte_model

FORMATS = {'encoder_decoder': 't5_1_1', 'prefix_lm': 'gemma', 'causal_lm': 'relative'}
MAYBE_SLOW = ['encoder_decoder', pytest.param('prefix_lm', marks=pytest.mark.slow), 'causal_lm']
# Two questions of several options, one of a single token among them; a context twice; an option twice; id 0 as a word.
INPUTS = [[5, 9, 2]] * 3 + [[7, 0, 8, 30, 31, 32, 33, 34, 35, 36, 37]] * 2 + [[0, 9]] + [[5, 9, 2]] * 2
TARGETS = [[40], [41, 42, 43], list(range(50, 70)), [40, 41], [42], [44, 0], [41, 42, 43], [45, 46]]


@pytest.fixture(scope='module')
def made():
    vocabulary = ByteVocabulary()
    return {format: LanguageModel(byte_model(family), vocabulary, format) for format, family in FORMATS.items()}


def by_whole_rows(model: LanguageModel, inputs, targets) -> list[Likelihood]:
    """Whole rows without a cache: all logits, then the target's."""
    apart, fill = (
        model.format == 'encoder_decoder',
        lambda rows: np.array([[*row, *[0] * (32 - len(row))] for row in rows]),
    )
    rows = [[0, *target[:-1]] if apart else [0, *ids, *target[:-1]] for ids, target in zip(inputs, targets)]
    batch = {'decoder_input_tokens': fill(rows)}
    if apart:
        batch['encoder_input_tokens'] = fill(inputs)
    if model.format == 'prefix_lm':
        batch['decoder_causal_attention'] = fill([[1] * (1 + len(ids)) for ids in inputs])
    logits_BTV = model.logits({name: x.astype(np.int32) for name, x in batch.items()})
    found = []
    for row, target, logits_TV in zip(rows, targets, logits_BTV):
        logits_TV = logits_TV[len(row) - len(target) : len(row)]
        log_probs_TV = np.asarray(jax.nn.log_softmax(logits_TV))
        total = sum(float(log_probs_TV[i, id]) for i, id in enumerate(target))
        right = int((logits_TV.argmax(-1) == np.array(target)).sum())
        found.append(Likelihood(total, right == len(target), right))
    return found


def values(found: list[Likelihood]) -> list[float]:
    return [one.log_prob for one in found]


@pytest.mark.parametrize('format', MAYBE_SLOW)
def test_shared_contexts_give_what_whole_rows_give(made, format, monkeypatch):
    model = made[format]
    if format == 'encoder_decoder':  # whose encoder reads 0 as padding
        pairs = [(a, b) for a, b in zip(INPUTS, TARGETS) if 0 not in a]
    else:
        pairs = list(zip(INPUTS, TARGETS))
    inputs, targets = [a for a, _ in pairs], [b for _, b in pairs]
    expected = by_whole_rows(model, inputs, targets)
    monkeypatch.setattr(likelihood_lib, '_TOKENS_OF_A_ROW', 8)  # several passes over the options of a batch
    monkeypatch.setattr(likelihood_lib, '_LOGITS_OF_A_CHUNK', 8)
    done = []
    found = model.likelihoods(inputs, targets, batch_size=2, progress=done.append)
    np.testing.assert_allclose(values(found), values(expected), rtol=1e-4)
    assert [one.is_greedy for one in found] == [one.is_greedy for one in expected]
    assert [one.correct for one in found] == [one.correct for one in expected]
    assert done[-1] == len(pairs) and done == sorted(done)
    alone = [model.likelihoods([a], [b])[0].log_prob for a, b in pairs[:2]]
    np.testing.assert_allclose(alone, values(expected)[:2], rtol=1e-4)


@pytest.mark.parametrize('format', MAYBE_SLOW)
def test_what_greedy_decoding_writes_is_greedy(made, format):
    model, inputs = made[format], [[5, 9, 2], [11, 12]]
    written = [one.tokens.tolist() for (one,) in model.generate_ids(inputs, 6)]
    assert [one.is_greedy for one in model.likelihoods(inputs, written)] == [True, True]
    for place in (0, 3):  # one other token, the first or a later one
        changed = [[*ids[:place], ids[place] % 200 + 3, *ids[place + 1 :]] for ids in written]
        assert [one.is_greedy for one in model.likelihoods(inputs, changed)] == [False, False]


def test_each_context_is_read_once(made, monkeypatch):
    model, read = made['causal_lm'], []
    whole = likelihood_lib._read_contexts
    count = lambda *args, **kwargs: read.append(args[1].shape) or whole(*args, **kwargs)
    monkeypatch.setattr(likelihood_lib, '_read_contexts', count)
    model.likelihoods(INPUTS, TARGETS, batch_size=4)
    assert read == [(3, 16)], 'three distinct contexts'


@pytest.mark.parametrize('format', FORMATS)
def test_the_start_token_is_inserted_unless_inputs_have_it(made, format):
    model = made[format]
    expected = values(model.likelihoods([[5, 9, 2]], [[40, 41]]))
    started = [5, 9, 2] if format == 'encoder_decoder' else [0, 5, 9, 2]
    assert values(model.likelihoods([started], [[40, 41]], started=True)) == pytest.approx(expected, rel=1e-5)
    if format == 'causal_lm':
        conventions = Conventions(add_bos=False)
        plain = LanguageModel(model.model, ByteVocabulary().with_conventions(conventions), format)
        assert values(plain.likelihoods([started], [[40, 41]])) == pytest.approx(expected, rel=1e-5)
        assert values(plain.likelihoods([[]], [[40]])) == pytest.approx(values(model.likelihoods([[]], [[40]])))


@pytest.mark.slow
@pytest.mark.parametrize('format', ['encoder_decoder', 'causal_lm'])
def test_a_mesh_gives_the_same(made, format):
    model = made[format]
    sharding = create_sharding(MeshConfig(data=4, tensor=2), jax.devices()[:8])
    meshed = LanguageModel(model.model, model.vocabulary, format, sharding=sharding)
    inputs, targets = INPUTS[:3], TARGETS[:3]
    assert values(meshed.likelihoods(inputs, targets)) == pytest.approx(
        values(model.likelihoods(inputs, targets)), rel=1e-5
    )


@pytest.mark.parametrize(('length', 'size'), [(1, 3), (3, 3), (4, 3), (7, 3), (9, 4), (8, 4), (5, 1)])
def test_windows_predict_every_token_once_with_all_context_that_fits(length, size):
    ids = list(range(1, length + 1))
    pairs = list(rolling_windows(ids, 0, size))
    assert [id for _, targets in pairs for id in targets] == ids
    for context, targets in pairs:
        row = context + targets
        assert row == list(range(row[0], row[-1] + 1)) and len(context) >= 1 and len(targets) <= size
        assert len(row) == size + 1 or row[0] == 0


def test_windows_of_one_row_sum_to_the_likelihood_of_the_text(made):
    model, text = made['causal_lm'], list(range(40, 52))
    pairs = list(rolling_windows(text, 0, 16))
    [whole] = model.likelihoods([[]], [text])
    assert sum(values(model.likelihoods(*zip(*pairs), started=True))) == pytest.approx(whole.log_prob, rel=1e-5)


def test_examples():
    assert doctest.testmod(likelihood_lib).failed == 0


@pytest.mark.parametrize(
    ('contexts', 'continuations', 'words'),
    [
        ([[5]], [[]], 'continuation 0 has no tokens'),
        ([[5], []], [[6], [7]], 'context 1 has no tokens'),
        ([[5]], [[260]], 'token id 260; the model has 0 to 259'),
        ([[-1]], [[5]], 'token id -1'),
        ([[5]], [[5], [6]], '1 contexts and 2 continuations'),
    ],
)
def test_mistakes_are_one_line(made, contexts, continuations, words):
    with pytest.raises(UserError, match=words) as error:
        likelihoods(made['causal_lm'].model, contexts, continuations)
    assert '\n' not in str(error.value)
