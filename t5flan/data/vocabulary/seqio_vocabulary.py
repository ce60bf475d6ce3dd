"""The run's vocabulary as SeqIO sees it. Imported only where SeqIO is needed, because it imports TensorFlow."""

from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from t5flan.data.records.sources import IndexedSource
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError

seqio.DataSource.register(IndexedSource)  # it has the interface, and does without the base class to import no SeqIO
_chosen: list[Vocabulary] = []


def choose_vocabulary(vocabulary: Vocabulary) -> None:
    """Sets the vocabulary of all tasks with a `ConfiguredVocabulary`, which are registered before a run chooses one."""
    _chosen[:] = [vocabulary]


def chosen_vocabulary() -> Vocabulary:
    """The vocabulary that the run chose; raises a UserError if it has not chosen one yet."""
    if not _chosen:
        raise UserError('no vocabulary was chosen before a task was read. Call choose_vocabulary(load_vocabulary(…)).')
    return _chosen[0]


def chosen_vocabulary_or_none() -> Vocabulary | None:
    """The vocabulary that the run chose; None before it chose one."""
    return _chosen[0] if _chosen else None


class ConfiguredVocabulary(seqio.Vocabulary):
    """A seqio.Vocabulary that forwards to the chosen vocabulary; all instances are equal, so that tasks mix."""

    @property
    def bos_id(self) -> None:
        """None: targets do not begin with a token."""
        return None

    @property
    def eos_id(self) -> int:
        """The id of the end of sequence."""
        return chosen_vocabulary().eos_id

    @property
    def unk_id(self) -> int:
        """The id of unknown pieces."""
        return chosen_vocabulary().unk_id

    @property
    def extra_ids(self) -> int:
        """Number of sentinels and mode tokens."""
        return chosen_vocabulary().vocab_size - chosen_vocabulary().base_size

    @property
    def _base_vocab_size(self) -> int:
        return chosen_vocabulary().base_size

    def _encode(self, text: str) -> list[int]:
        return chosen_vocabulary().encode(text)

    def decode(self, ids: Any) -> str:
        """The text of `ids` up to the first end of sequence."""
        return chosen_vocabulary().decode(np.asarray(ids))

    _decode = decode

    def _encode_tf(self, text: tf.Tensor) -> tf.Tensor:
        def encode(value: bytes | np.ndarray) -> np.ndarray:  # outside a graph, a 0-d array
            return np.array(chosen_vocabulary().encode(np.asarray(value, object).item().decode('utf-8')), np.int32)

        ids = tf.numpy_function(encode, [text], tf.int32)
        ids.set_shape([None])
        return ids

    def _decode_tf(self, ids: tf.Tensor) -> tf.Tensor:
        text = tf.numpy_function(lambda value: chosen_vocabulary().decode(value).encode('utf-8'), [ids], tf.string)
        text.set_shape([])
        return text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConfiguredVocabulary)

    def __hash__(self) -> int:
        return hash(ConfiguredVocabulary)


def text_features(inputs: bool = True) -> dict[str, seqio.Feature]:
    """The output features of a task with inputs and targets, or with targets only (a plain language model)."""
    vocabulary = ConfiguredVocabulary()
    names = ('inputs', 'targets') if inputs else ('targets',)
    return {name: seqio.Feature(vocabulary) for name in names}


def check_vocabulary(task: seqio.Task, vocabulary: Vocabulary) -> None:
    """Checks that a task that was registered with its own vocabulary has the same ids as the run's.

    Raises:
        UserError: its vocabulary encodes text differently, or is larger.
    """
    probe = 'The year 1984, a naïve question: 7 x 6 = 42?'
    for name, feature in task.output_features.items():
        own = feature.vocabulary
        if isinstance(own, (ConfiguredVocabulary, seqio.PassThroughVocabulary)):
            continue
        if list(own.encode(probe)) != vocabulary.encode(probe) or own.vocab_size > vocabulary.vocab_size:
            other = f"feature '{name}' is tokenized by {own!r}, the run by another vocabulary"
            fix = "Set DataConfig.vocabulary to the task's vocabulary."
            raise UserError(f'task {task.name}: {other} of {vocabulary.vocab_size} ids. {fix}')
