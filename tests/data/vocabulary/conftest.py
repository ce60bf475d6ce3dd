"""Vocabularies that several test files share."""

import random

import pytest

from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.data.vocabulary.sentencepiece_model import SentencePieceVocabulary
from t5flan.data.vocabulary.training import train_sentencepiece

SYLLABLES = ['the', 'qui', 'ck', 'brown', 'fox', 'jump', 's', 'over', 'la', 'zy', 'dog', 'whi', 'le', 'seven', 'wiz']
WORDS = [''.join(random.Random(i).choices(SYLLABLES, k=3)) for i in range(400)] + ['the', 'fox']
TEXTS = [' '.join(random.Random(i).choices(WORDS, k=12)) + f' {i}.\nNext: {{x}}' for i in range(300)]


@pytest.fixture(scope='session')
def texts() -> list[str]:
    """300 short texts of made-up words."""
    return TEXTS


@pytest.fixture(scope='session')
def trained() -> SentencePieceVocabulary:
    """500 ids learned from `texts`, with 100 sentinels and the three mode tokens."""
    return train_sentencepiece(TEXTS, 500)


@pytest.fixture(scope='session')
def t5_path(shared) -> str:
    """T5's SentencePiece model."""
    return str(shared / 'data' / 'vocab' / 't5_cc_all_32000' / 'sentencepiece.model')


@pytest.fixture(scope='session')
def t5(t5_path) -> SentencePieceVocabulary:
    """T5's vocabulary."""
    return load_vocabulary(t5_path)
