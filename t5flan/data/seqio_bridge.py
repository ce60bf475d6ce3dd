"""Where our preprocessors and vocabularies meet SeqIO's tf.data: imported only by what needs SeqIO (it brings TensorFlow)."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

from t5flan.data.examples import Context, ExampleFn, as_list
from t5flan.data.vocabularies import Vocabulary
from t5flan.errors import UserError

_chosen: list[Vocabulary] = []


def choose_vocabulary(vocabulary: Vocabulary) -> None:
    """Sets the vocabulary of every task that has a `ConfiguredVocabulary`: tasks are registered before a run chooses one."""
    _chosen[:] = [vocabulary]


def chosen_vocabulary() -> Vocabulary:
    """The vocabulary the run chose.

    Raises:
        UserError: none was chosen yet.
    """
    if not _chosen:
        raise UserError(
            'no vocabulary was chosen before a task was read. Call choose_vocabulary(load_vocabulary(…)) or set '
            'DataConfig.vocabulary.'
        )
    return _chosen[0]


@contextlib.contextmanager
def vocabulary_chosen(vocabulary: Vocabulary) -> Iterator[None]:
    """Chooses a vocabulary for the time of a `with` block."""
    before = list(_chosen)
    choose_vocabulary(vocabulary)
    try:
        yield
    finally:
        _chosen[:] = before


class ConfiguredVocabulary(seqio.Vocabulary):
    """A seqio.Vocabulary that is whatever vocabulary the run chose; all of them are equal, so that tasks mix."""

    @property
    def bos_id(self) -> None:
        return None

    @property
    def eos_id(self) -> int:
        return chosen_vocabulary().eos_id

    @property
    def unk_id(self) -> int:
        return chosen_vocabulary().unk_id

    @property
    def extra_ids(self) -> int:
        return chosen_vocabulary().vocab_size - chosen_vocabulary().base_size

    @property
    def _base_vocab_size(self) -> int:
        return chosen_vocabulary().base_size

    def _encode(self, text: str) -> list[int]:
        return chosen_vocabulary().encode(text)

    def decode(self, ids: Any) -> str:
        return chosen_vocabulary().decode(np.asarray(ids))

    def _decode(self, ids: Any) -> str:
        return chosen_vocabulary().decode(np.asarray(ids))

    def _encode_tf(self, text: tf.Tensor) -> tf.Tensor:
        def encode(value: bytes | np.ndarray) -> np.ndarray:  # an array of no dimensions outside a graph
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
    """The output features of a task with inputs and targets, or with targets alone (a plain language model)."""
    vocabulary = ConfiguredVocabulary()
    names = ('inputs', 'targets') if inputs else ('targets',)
    return {name: seqio.Feature(vocabulary) for name in names}


def check_vocabulary(task: seqio.Task, vocabulary: Vocabulary) -> None:
    """Raises UserError where a task brings a vocabulary of its own that is not the run's."""
    probe = 'The year 1984, a naïve question: 7 x 6 = 42?'
    for name, feature in task.output_features.items():
        own = feature.vocabulary
        if isinstance(own, (ConfiguredVocabulary, seqio.PassThroughVocabulary)):
            continue
        if list(own.encode(probe)) != vocabulary.encode(probe) or own.vocab_size > vocabulary.vocab_size:
            raise UserError(
                f"task {task.name}: feature '{name}' is tokenized by {own!r}, the run by another vocabulary of "
                f'{vocabulary.vocab_size} ids. '
                "Set DataConfig.vocabulary to the task's vocabulary."
            )


def _spec(value: Any) -> tf.TensorSpec:
    """The TensorSpec of a plain value: str, bytes, bool, int, float, an array, or a list of these."""
    if isinstance(value, np.ndarray) and value.dtype.kind in 'iufb':
        return tf.TensorSpec([None] * value.ndim, value.dtype)
    if isinstance(value, (list, tuple, np.ndarray)):
        inner = _spec(value[0]) if len(value) else tf.TensorSpec([], tf.string)
        return tf.TensorSpec([None, *inner.shape], inner.dtype)
    kinds = (
        (bool, tf.bool),
        (np.bool_, tf.bool),
        (int, tf.int64),
        (np.integer, tf.int64),
        (float, tf.float32),
        (np.floating, tf.float32),
    )
    return tf.TensorSpec([], next((dtype for kind, dtype in kinds if isinstance(value, kind)), tf.string))


def plain_value(value: Any) -> Any:
    """tf.data's numpy values as the plain Python values a record holds: bytes become str, ragged tensors lists."""
    if isinstance(value, dict):
        return {name: plain_value(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_value(item) for item in value]
    if hasattr(value, 'to_list'):
        return plain_value(value.to_list())
    if isinstance(value, bytes):
        return value.decode('utf-8')
    if isinstance(value, np.ndarray) and value.dtype.kind in 'OS':
        return [plain_value(item) for item in value.tolist()]
    return value.item() if isinstance(value, np.generic) else value


def map_dataset(function: ExampleFn, dataset: tf.data.Dataset, lengths: Mapping[str, int], features: Any) -> tf.data.Dataset:
    """A tf.data.Dataset of what `function` makes of each example; the shapes and types are read off the first one made."""
    vocabulary = _chosen[0] if _chosen else None
    seed = seqio.utils._NEXT_MAP_SEED or 0  # SeqIO's own numbering of random preprocessors, set by get_dataset(seed=…)

    def generate() -> Iterator[dict[str, Any]]:
        for index, example in enumerate(dataset.as_numpy_iterator()):
            context = Context(vocabulary, lengths, seed=int(seed), index=index)
            yield from as_list(function.apply({name: plain_value(value) for name, value in example.items()}, context))

    first = next(generate(), None)
    if first is None:
        raise UserError(f"preprocessor {function!r} left no example. Check the task's files and filters.")
    return tf.data.Dataset.from_generator(generate, output_signature={name: _spec(value) for name, value in first.items()})


def dataset_of_records(records: Any, numbers: range | None = None) -> tf.data.Dataset:
    """Random-access records (dicts of plain values), all or those of these numbers, as a tf.data.Dataset, in their order."""
    signature = {name: _spec(value) for name, value in records[0].items()}
    chosen = range(len(records)) if numbers is None else numbers
    return tf.data.Dataset.from_generator(lambda: (records[i] for i in chosen), output_signature=signature)
