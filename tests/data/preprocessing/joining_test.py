"""t5flan/data/preprocessing/joining.py: joined documents lose no token and fill the windows."""

import numpy as np
import pytest

from t5flan.data.preprocessing.denoising import span_corruption
from t5flan.data.preprocessing.examples import Context, example_fn, run_block
from t5flan.data.preprocessing.joining import join_documents, joined_by, run_joined
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from tests.data.preprocessing.spans import restore

VOCABULARY = ByteVocabulary(100)
LENGTHS = {'inputs': 128, 'targets': 96}


@example_fn
def only_long(example, context):
    return example if len(example['targets']) > 2 else None


@example_fn
def first_and_last(example, context):
    return [{'targets': example['targets'][:1]}, {'targets': example['targets'][-1:]}]


def documents(count, longest, seed=5):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, longest, count)
    return [{'targets': rng.integers(3, 259, size).astype(np.int32)} for size in sizes]


def context(index=0):
    return Context(VOCABULARY, LENGTHS, task='t', index=index)


@pytest.mark.parametrize('size', [1, 3, 64])
def test_no_token_is_lost_and_windows_are_full(size):
    records = documents(64, 60)
    groups = [records[start : start + size] for start in range(0, 64, size)]
    made = run_joined([join_documents, span_corruption], groups, [context(i) for i in range(len(groups))])
    for group, examples in zip(groups, made, strict=True):
        tokens = [restore(one['inputs'], one['targets'], VOCABULARY) for one in examples]
        np.testing.assert_array_equal(np.concatenate(tokens), np.concatenate([one['targets'] for one in group]))
    if size == 64:
        assert {len(one['inputs']) for one in made[0][:-2]} == {LENGTHS['inputs'] - 1}, 'room for the end of sequence'


def test_preprocessors_before_and_after_joining():
    short, long = {'targets': np.arange(2)}, {'targets': np.arange(5)}
    made = run_joined([only_long, join_documents, first_and_last], [[short, long, long], [short]], [context()] * 2)
    assert [[one['targets'].tolist() for one in group] for group in made] == [[[0], [4]], []]
    empty = [{'targets': np.zeros(0, np.int32)}]
    assert run_joined([join_documents, span_corruption], [empty], [context()]) == [[]], 'an empty document'


def test_only_preprocessors_that_join_take_several_records():
    assert joined_by([only_long, join_documents], 128) == 128
    assert joined_by([only_long], 128) == joined_by([], 128) == joined_by(None, 128) == 1
    record = documents(1, 9)[0]
    assert run_block([join_documents], [record], [context()]) == [[record]], 'SeqIO reads documents one by one'
