"""t5flan/data/records/sources.py: records by number, and SeqIO reads the same records."""

import pytest
import seqio

from t5flan.data.records.sources import IndexedSource
from t5flan.errors import UserError

RECORDS = [
    {'text': f'line {i}', 'n': i, 'words': ['a'] * (i % 3 + 1), 'share': i / 2, 'good': i > 3} for i in range(10)
]


def test_a_split_is_made_at_its_first_use():
    calls = []
    source = IndexedSource({'train': lambda: calls.append(1) or RECORDS, 'test': RECORDS[:2]})
    assert not calls and list(source.splits) == ['train', 'test']
    assert source.records('train')[3]['n'] == 3 and source.num_input_examples('train') == 10 and len(calls) == 1


def test_seqio_sees_the_same_records():
    source = IndexedSource({'train': RECORDS})
    made = list(source.get_dataset('train', shuffle=False).as_numpy_iterator())
    names = ('n', 'share', 'good')
    found = [(one['text'].decode(), len(one['words']), *(one[name].item() for name in names)) for one in made]
    assert found == [(one['text'], len(one['words']), *(one[name] for name in names)) for one in RECORDS]
    shuffled = [int(one['n']) for one in source.get_dataset('train', shuffle=True, seed=1).as_numpy_iterator()]
    assert shuffled != list(range(10)) and sorted(shuffled) == list(range(10))
    shard = source.get_dataset('train', shuffle=False, shard_info=seqio.ShardInfo(index=1, num_shards=3))
    numbers = [int(one['n']) for one in shard.as_numpy_iterator()]
    assert numbers == [3, 4, 5], 'a range: a cached task keeps the order of its source'


def test_an_empty_or_missing_split():
    source = IndexedSource({'train': []})
    with pytest.raises(UserError, match="split 'train' .* has no records"):
        source.records('train')
    with pytest.raises(UserError, match="no split 'test'; the splits are train"):
        source.records('test')
