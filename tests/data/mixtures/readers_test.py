"""t5flan/data/mixtures/readers.py: an example depends neither on the block it is made in nor on who reads beside it."""

import collections
import random

import numpy as np
import pytest

from t5flan.data.config import DataConfig
from t5flan.data.mixtures.definitions import Task
from t5flan.data.mixtures.readers import LARGEST_BLOCK, IndexedRecords, Reader
from t5flan.data.preprocessing.denoising import causal_lm
from t5flan.data.preprocessing.examples import example_fn
from t5flan.data.preprocessing.joining import join_documents
from t5flan.data.preprocessing.tokenization import append_eos, tokenize
from t5flan.data.records.sources import IndexedSource
from t5flan.data.vocabulary.byte_level import ByteVocabulary

VOCABULARY = ByteVocabulary(extra_ids=10)
LENGTHS = {'inputs': 24, 'targets': 16}
calls = collections.Counter()


@example_fn
def drop_some_and_draw(example, context):
    """Drops one in six; the others get a random number."""
    calls['examples'] += 1
    drawn = {**example, 'targets': f'{example["targets"]}:{context.rng.integers(1000)}'}
    return None if int(example['targets']) % 6 == 0 else drawn


class CountsBlocks(type(tokenize)):
    """Tokenizes, and counts how often it is called."""

    def apply_block(self, examples, contexts):
        calls['blocks'] += 1
        return super().apply_block(examples, contexts)


FUNCTIONS = (drop_some_and_draw, CountsBlocks(), append_eos)


def task(size, functions=FUNCTIONS, name='readers'):
    records = [{'inputs': 'x' * (i % 40), 'targets': f'{i}'} for i in range(size)]
    return Task(name, IndexedSource({'train': records}), tuple(functions))


def config(**options):
    given = {'mixture': 'x', 'batch_size': 8, 'feature_lengths': LENGTHS, 'vocabulary': 'bytes', 'prefetch': 0}
    return DataConfig(**given | options)


def take(reader, count):
    """The next examples: tokens, counts and the cursor after each."""
    made = []
    for _ in range(count):
        ready = reader.peek()
        reader.pop()
        tokens = ready.example['inputs'].tolist(), ready.example['targets'].tolist()
        made.append((tokens, ready.counts, ready.lengths, reader.cursor))
    return made


@pytest.mark.parametrize('size, shuffle', [(500, True), (500, False), (7, True), (61, True)])
def test_readers_beside_each_other_read_what_each_reads_alone(size, shuffle):
    settings, streams = config(shuffle=shuffle, too_long='drop'), 4
    alone = [Reader(task(size), settings, VOCABULARY, stream, streams) for stream in range(streams)]
    expected = [take(reader, 90) for reader in alone]
    beside, rng = [], random.Random(size)
    together = [
        Reader(task(size), settings, VOCABULARY, stream, streams, ahead=8, beside=beside) for stream in range(streams)
    ]
    left = [number for number in range(streams) for _ in range(90)]
    rng.shuffle(left)
    found = [[] for _ in range(streams)]
    for number in left:
        found[number] += take(together[number], 1)
    assert found == expected
    dropped = sum(counts.dropped for one in found for _, counts, _, _ in one)
    assert size < 24 or dropped > 0


def test_every_cursor_resumes_beside_others():
    settings = config()
    whole = [take(Reader(task(300), settings, VOCABULARY, stream, 3), 60) for stream in range(3)]
    for places in ((0, 0, 0), (1, 17, 40), (30, 3, 29)):
        beside = []
        readers = [Reader(task(300), settings, VOCABULARY, stream, 3, ahead=8, beside=beside) for stream in range(3)]
        for stream, (reader, place) in enumerate(zip(readers, places)):
            if place:
                reader.start(whole[stream][place - 1][-1])
        for _ in range(15):
            for stream, reader in enumerate(readers):
                (tokens, _, _, cursor), *_ = take(reader, 1)
                assert (tokens, cursor) == (whole[stream][places[stream]][0], whole[stream][places[stream]][-1])
            places = tuple(place + 1 for place in places)


def test_streams_of_a_rare_task_are_read_together():
    streams, beside = 8, []
    readers = [
        Reader(task(2000), config(), VOCABULARY, stream, streams, ahead=8, beside=beside) for stream in range(streams)
    ]
    calls.clear()
    for _ in range(200):
        for reader in readers:
            take(reader, 1)
    assert calls['examples'] / calls['blocks'] > LARGEST_BLOCK / 2
    assert max(len(reader._ready) for reader in readers) <= 16, 'few examples wait in memory'


def test_joined_documents_are_the_same_beside_others():
    functions = (tokenize, join_documents, causal_lm)
    settings = config(format='causal_lm', concatenate=3)
    expected = [take_targets(Reader(task(100, functions), settings, VOCABULARY, s, 2), 40) for s in range(2)]
    beside = []
    readers = [Reader(task(100, functions), settings, VOCABULARY, s, 2, ahead=8, beside=beside) for s in range(2)]
    found = [[], []]
    for _ in range(40):
        for one, reader in zip(found, readers):
            one += take_targets(reader, 1)
    assert found == expected


def take_targets(reader, count):
    made = []
    for _ in range(count):
        made.append(reader.peek().example['targets'].tolist())
        reader.pop()
    return made


@pytest.mark.parametrize('size, epochs', [(500, None), (5, None), (50, 3)])
def test_the_order_of_records_is_that_of_one_at_a_time(size, epochs):
    records = lambda: IndexedRecords(task(size), config(), stream=1, streams=3, joined=1)
    one, places = records(), []
    for first in range(150):
        block = one.read((first, 0), 1, epochs)
        if block is None:
            break
        places += block.places
    assert len(places) == (150 if epochs is None else sum(1 for i in range(size * epochs) if i % 3 == 1))
    rng, many = np.random.default_rng(size), records()
    for _ in range(30):
        first, count = int(rng.integers(0, 100)), int(rng.integers(1, 50))
        block = many.read((first, 0), count, epochs)
        assert (block.places if block else []) == places[first : first + count]
        assert (block is None) == (first >= len(places))
