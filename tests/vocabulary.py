"""A small SentencePiece vocabulary for tests, and choosing a vocabulary for a while."""

import contextlib
import functools
import os
from unittest import mock

from t5flan.data.vocabulary.sentencepiece_model import SentencePieceVocabulary
from t5flan.data.vocabulary.training import train_sentencepiece

TEXTS = (
    'The quick brown fox jumps over the lazy dog, 12 times.',
    'A naïve question:\n\tis 7 x 6 = 42?',
    'Übung macht den Meister.',
)


@functools.cache
def small_vocabulary() -> SentencePieceVocabulary:
    """Some 300 pieces and bytes, 10 sentinels, no mode tokens."""
    return train_sentencepiece(TEXTS, 318, extra_ids=10, mode_tokens=())


def small_vocabulary_model(path: str | os.PathLike) -> SentencePieceVocabulary:
    """The same vocabulary, written to `path` (F.model) and read from there."""
    small_vocabulary().save_model(path)
    return SentencePieceVocabulary(path, 10)


@contextlib.contextmanager
def vocabulary_chosen(vocabulary):
    """Chooses a vocabulary for the time of a `with` block."""
    from t5flan.data.vocabulary import seqio_vocabulary  # imports TensorFlow

    with mock.patch.object(seqio_vocabulary, '_chosen', [vocabulary]):
        yield
