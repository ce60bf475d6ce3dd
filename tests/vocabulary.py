"""A small SentencePiece vocabulary for tests."""

import functools
import os

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
