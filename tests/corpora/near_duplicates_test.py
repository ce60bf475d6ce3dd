"""t5flan/corpora/near_duplicates.py: what is found is what comparing all pairs finds."""

import numpy as np
import pytest

from benchmarks.deduplication import LANGUAGES, brute_force, planted, quality
from t5flan.corpora import near_duplicates
from t5flan.corpora.near_duplicates import NearStore, Rules, exact_repeats, greedy_repeats, similarity
from t5flan.corpora.words import hash_ngrams, hash_words


@pytest.mark.parametrize('language', LANGUAGES)
def test_recall_and_precision_in_six_languages(language):
    """500 documents each; `benchmarks/deduplication.py --quality` compares 3,000 each."""
    found = quality(language, 500, seed=1)
    assert found['near duplicates'] > 100
    assert found['recall'] >= 0.98 and found['precision'] >= 0.99, found


@pytest.mark.parametrize(('threshold', 'size'), [(0.5, 5), (0.8, 3), (0.95, 5)])
def test_bands_follow_the_threshold(tmp_path, monkeypatch, threshold, size):
    monkeypatch.setattr(near_duplicates, '_FLUSH', 37)
    rules, texts = Rules(threshold, size), list(planted('English', 250, seed=2))
    store = NearStore(str(tmp_path), rules)
    for text in texts:
        store.add(hash_ngrams(hash_words(text), size))
    expected = greedy_repeats(brute_force(texts, size, threshold))
    found = store.find_repeats()
    assert len(found.keys() ^ expected.keys()) <= 0.02 * len(expected)
    for text in found.keys() & expected.keys():
        assert found[text][1] == pytest.approx(expected[text][1], abs=1e-6)


@pytest.mark.parametrize('permutations', [2, 16, 64, 128, 256, 1000])
@pytest.mark.parametrize('threshold', [0.3, 0.8, 0.95])
def test_bands_find_pairs_at_the_threshold_if_any_can(permutations, threshold):
    bands, rows = Rules(threshold, permutations=permutations).bands
    assert bands * rows <= permutations
    assert rows == 1 or 1 - (1 - threshold**rows) ** bands >= near_duplicates.RECALL


def test_similarity_of_sets():
    sets = [np.array(values, np.uint32) for values in ([1, 2, 3, 9], [2, 3, 4], [7], [])]
    assert similarity(sets[0], sets[1]) == similarity(sets[1], sets[0]) == 2 / 5
    assert similarity(sets[0], sets[2]) == similarity(sets[0], sets[3]) == similarity(sets[3], sets[3]) == 0


def test_texts_without_ngrams_repeat_nothing(tmp_path):
    store = NearStore(str(tmp_path), Rules())
    for text in ('!!!', 'one two', '', '😀', 'One; two'):
        store.add(hash_ngrams(hash_words(text), 5))
    assert store.find_repeats() == {4: (1, 1.0)}
    (tmp_path / 'none').mkdir()
    assert NearStore(str(tmp_path / 'none'), Rules()).find_repeats() == {}


def test_exact_repeats_name_the_first():
    assert exact_repeats(np.array([5, 7, 5, 5, 7, 1], np.uint64)).tolist() == [0, 1, 0, 0, 1, 5]
