"""t5flan/data/preprocessing/denoising.py: T5's arithmetic, T5's own examples, and no token is ever lost."""

import gzip
import json

import numpy as np
import pytest

from t5flan.data.preprocessing import denoising
from t5flan.data.preprocessing.examples import Context
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.errors import UserError
from tests.data.preprocessing.spans import corrupt, restore

VOCABULARY = ByteVocabulary(extra_ids=100)
DENSITIES = [(0.15, 3.0), (0.15, 8.0), (0.5, 3.0), (0.5, 8.0), (0.15, 64.0), (0.5, 64.0), (0.9, 1.0)]


def context(index=0, **lengths):
    return Context(VOCABULARY, lengths, task='t', index=index)


def tokens(length, seed=0):
    return np.random.default_rng(seed).integers(3, 259, length).astype(np.int32)


def t5_helper(inputs_length, noise_density, mean_span_length):
    """random_spans_helper of T5, from its description: the longest text whose corrupted inputs, with their end, fit."""

    def lengths(n):
        noise = int(round(n * noise_density))
        spans = int(round(noise / mean_span_length))
        return n - noise + spans + 1, noise + spans + 1

    n = inputs_length
    while lengths(n + 1)[0] <= inputs_length:
        n += 1
    targets_length = lengths(n)[1]
    if noise_density == 0.5 and targets_length > inputs_length:
        n, targets_length = n - 1, targets_length - 1
    return n, targets_length


@pytest.mark.parametrize('inputs_length', [64, 114, 128, 512, 1024])
@pytest.mark.parametrize('density,mean', [(0.15, 3.0), (0.15, 8.0), (0.5, 3.0)])
def test_lengths_are_those_of_t5(inputs_length, density, mean):
    window, targets_length = t5_helper(inputs_length, density, mean)
    assert denoising.window_length(inputs_length, targets_length, density, mean) == window


def test_t5_pretraining_lengths():
    assert denoising.window_length(512, 114, 0.15, 3.0) == 568
    assert denoising.corrupted_lengths(568, 0.15, 3.0) == (512, 114)


@pytest.mark.parametrize('density,mean', DENSITIES)
def test_noise_has_the_requested_density_and_spans(density, mean):
    rng = np.random.default_rng(1)
    for length in [2, 3, 5, 17, 100, 568]:
        noise, spans = denoising.noise_counts(length, density, mean)
        for mask in denoising.noise_masks(length, density, mean, 5, rng):
            assert mask.dtype == bool and len(mask) == length and not mask[0] and mask[-1]
            assert mask.sum() == noise
            assert (mask[1:] & ~mask[:-1]).sum() == spans


def test_every_segmentation_is_equally_likely():
    rng = np.random.default_rng(0)
    found = denoising.segment_lengths(5, 3, 3000, rng)
    counts = np.unique(found, axis=0, return_counts=True)[1]
    assert len(counts) == 6 and (abs(counts - 500) < 100).all(), counts


@pytest.mark.parametrize('density,mean', DENSITIES)
def test_inputs_and_targets_rebuild_the_text(density, mean):
    rng = np.random.default_rng(2)
    for length in [2, 3, 10, 99, 200]:
        text = tokens(length, length)
        inputs, targets = corrupt(text, denoising.noise_masks(length, density, mean, 1, rng)[0], VOCABULARY)
        np.testing.assert_array_equal(restore(inputs, targets, VOCABULARY), text)
        sentinels = [i for i in inputs if i >= VOCABULARY.base_size]
        assert sentinels == [VOCABULARY.sentinel_id(k) for k in range(len(sentinels))]
        assert (len(inputs) + 1, len(targets) + 1) == denoising.corrupted_lengths(length, density, mean)


def test_worked_example():
    text = np.arange(10, 20, dtype=np.int32)
    noise = np.array([[0, 0, 1, 1, 0, 0, 0, 0, 1, 1], [1, 0, 0, 0, 0, 1, 1, 1, 0, 0]], bool)
    inputs, targets = denoising.corrupt_rows(np.stack([text, text]), noise, VOCABULARY)
    assert inputs.tolist() == [[10, 11, 358, 14, 15, 16, 17, 357], [358, 11, 12, 13, 14, 357, 18, 19]]
    assert targets.tolist() == [[358, 12, 13, 357, 18, 19], [358, 10, 357, 15, 16, 17]]


def test_t5_own_examples(shared):
    """The masks are drawn by another generator; given T5's own spans, inputs and targets are T5's to the token."""
    folder = shared / 'data' / 'golden_span_corruption'
    vocabulary = load_vocabulary(shared / 'data/vocab/t5_cc_all_32000/sentencepiece.model')
    name = 'c4_span_corruption_t5_default_vocab_inputs_1024_targets_1024_add_eos_true_seed_94043.jsonl.gz'
    with gzip.open(folder / name, 'rt', encoding='utf-8') as file:
        examples = [json.loads(line) for line in file]
    assert len(examples) > 200
    for example in examples:
        inputs, targets = np.array(example['inputs'], np.int32), np.array(example['targets'], np.int32)
        text = restore(inputs, targets, vocabulary)
        noise = np.zeros(len(text), bool)
        at = 0
        spans = {int(targets[i]): i for i in np.flatnonzero(targets >= 32000)}
        for token in inputs.tolist():
            if token in spans:
                rest = targets[spans[token] + 1 :]
                size = int(np.argmax(rest >= 32000)) if (rest >= 32000).any() else len(rest)
                noise[at : at + size] = True
                at += size
            else:
                at += 1
        assert len(text) <= denoising.window_length(1024, 229, 0.15, 3.0) == 1137
        assert (int(noise.sum()), len(spans)) == denoising.noise_counts(len(text), 0.15, 3.0)
        made = corrupt(text, noise, vocabulary)
        np.testing.assert_array_equal(made[0], inputs)
        np.testing.assert_array_equal(made[1], targets)


@pytest.mark.parametrize('length', [1, 2, 20, 58, 59, 60, 115, 116, 117, 300])
def test_long_texts_become_windows_that_fit_and_lose_nothing(length):
    text = tokens(length)
    made = denoising.span_corruption.apply({'targets': text}, context(inputs=53, targets=14))
    window = denoising.window_length(53, 14, 0.15, 3.0)
    assert all(len(example['inputs']) < 53 and len(example['targets']) < 14 for example in made)
    if length == 1:
        assert made == []
        return
    whole = np.concatenate([restore(example['inputs'], example['targets'], VOCABULARY) for example in made])
    np.testing.assert_array_equal(whole, text)
    assert len(made) == -(-length // window)


def test_the_same_example_gets_the_same_noise():
    text = tokens(100)
    one, again, other = (denoising.span_corruption.apply({'targets': text}, context(i))[0] for i in (3, 3, 4))
    np.testing.assert_array_equal(one['inputs'], again['inputs'])
    assert one['inputs'].tolist() != other['inputs'].tolist()


@pytest.mark.parametrize('inputs,targets', [(20, 20), (40, 10), (10, 40)])
def test_prefix_lm_loses_nothing_and_fits(inputs, targets):
    points = set()
    for index in range(60):
        text = tokens(5 + 3 * index, index)
        made = denoising.prefix_lm.apply({'targets': text}, context(index, inputs=inputs, targets=targets))
        for example in made:
            assert 1 <= len(example['inputs']) < inputs and 1 <= len(example['targets']) < targets
            points.add(len(example['inputs']))
        np.testing.assert_array_equal(np.concatenate([np.concatenate([e['inputs'], e['targets']]) for e in made]), text)
    assert len(points) > min(inputs, targets) // 2, 'the split moves'


def test_prefix_split_is_uniform():
    rng = np.random.default_rng(0)
    points = np.array([denoising.split_point(11, 20, 20, rng) for _ in range(5000)])
    counts = np.bincount(points, minlength=12)
    assert counts[0] == counts[11] == 0 and (abs(counts[1:11] - 500) < 110).all(), counts


def test_causal_lm_ends_a_document_once():
    text = tokens(25)
    made = [example['targets'] for example in denoising.causal_lm.apply({'targets': text}, context(targets=10))]
    assert [len(window) for window in made] == [10, 10, 6]
    np.testing.assert_array_equal(np.concatenate(made), [*text, VOCABULARY.eos_id])


def test_too_few_sentinels():
    """A window is as short as the sentinels make it; without any there is no span corruption."""
    few, text = ByteVocabulary(extra_ids=2), tokens(100)
    made = denoising.span_corruption.apply({'targets': text}, Context(few, {'inputs': 200, 'targets': 200}))
    assert len(made) > 1
    whole = np.concatenate([restore(example['inputs'], example['targets'], few) for example in made])
    np.testing.assert_array_equal(whole, text)
    with pytest.raises(UserError, match='the vocabulary has 2'):
        corrupt(text, np.arange(100) % 2 == 1, few)
    with pytest.raises(UserError, match='DataConfig.extra_ids'):
        denoising.window_length(200, 200, 0.15, 3.0, sentinels=0)


def test_features_too_short_for_any_text():
    with pytest.raises(UserError, match='feature_lengths'):
        denoising.window_length(2, 2, 0.15, 3.0)
