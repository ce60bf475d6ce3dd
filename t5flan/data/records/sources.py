"""Data sources with random access by record number, so that any position of a run is found in constant time.

SeqIO reads them too, but nothing here imports it: a run that reads by number starts without TensorFlow.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from t5flan.data.records.file_rows import Records
from t5flan.errors import UserError

_SHARD_RECORDS, _MOST_SHARDS = 5000, 256


class IndexedSource:
    """A SeqIO source whose splits are sequences of records (`len(records)`, `records[i] -> dict`).

    Args:
        splits: split name -> records, or a function that makes them at the first use (by reading a file, say).
    """

    def __init__(self, splits: Mapping[str, Records | Callable[[], Records]]) -> None:
        self._makers = dict(splits)
        self._records: dict[str, Records] = {}
        self.splits: Sequence[str] = tuple(splits)

    def records(self, split: str) -> Records:
        """The records of a split; raises a UserError if there is no such split, or it is empty."""
        if split not in self._makers:
            raise UserError(f"no split '{split}'; the splits are {', '.join(self._makers)}. Set DataConfig.split.")
        if split not in self._records:
            maker = self._makers[split]
            records = maker() if callable(maker) else maker
            if not len(records):
                raise UserError(f"split '{split}' of {self!r} has no records. Check its file or setting.")
            self._records[split] = records
        return self._records[split]

    def flat_records(self, split: str) -> Records:
        """The records as tf.data takes them: values, and lists of values of one kind."""
        return self.records(split)

    @property
    def caching_permitted(self) -> bool:
        """True: `t5flan cache` and SeqIO may cache it."""
        return True

    @property
    def performs_internal_shuffling(self) -> bool:
        """False: records are shuffled by who reads them."""
        return False

    @property
    def supports_arbitrary_sharding(self) -> bool:
        """True: a shard is any range of records."""
        return True

    def list_shards(self, split: str) -> Sequence[str]:
        """Names of shards of about 5,000 records each, in order."""
        shards = min(_MOST_SHARDS, -(-len(self.records(split)) // _SHARD_RECORDS))
        return [f'{split}-{number:05}-of-{shards:05}' for number in range(shards)]

    def num_input_examples(self, split: str) -> int:
        """Number of records."""
        return len(self.records(split))

    def get_dataset(self, split: str, shuffle: bool = True, seed: int | None = None, shard_info: Any = None) -> Any:
        """The records as a tf.data.Dataset, as SeqIO reads them: all, or the `shard_info`'s share.

        `shuffle` shuffles up to 100,000 at a time.
        """
        from t5flan.data.records.tf_values import dataset_of_records

        records = self.flat_records(split)
        index, shards = (shard_info.index, shard_info.num_shards) if shard_info else (0, 1)
        start, end = (len(records) * i // shards for i in (index, index + 1))
        dataset = dataset_of_records(records, range(start, end))
        return dataset.shuffle(min(max(1, end - start), 100_000), seed=seed) if shuffle else dataset

    def __repr__(self) -> str:
        return f'{type(self).__name__}({", ".join(self._makers)})'
