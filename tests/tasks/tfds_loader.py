"""Replaces TFDS's loader of a data set that is not prepared: given records, in two shards."""

import types

import tensorflow as tf


class Loader:
    """`monkeypatch.setattr(task.source, '_tfds_dataset', Loader({'text': [...]}))`"""

    def __init__(self, records):
        self._records = records

    def load(self, split, shuffle_files, seed=None, shard_info=None, **options):
        dataset = tf.data.Dataset.from_tensor_slices(self._records)
        return dataset.shard(shard_info.num_shards, shard_info.index) if shard_info else dataset

    def files(self, split):
        return [types.SimpleNamespace(filename=name) for name in 'ab']

    def size(self, split):
        return len(self._records['text'])
