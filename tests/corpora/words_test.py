"""t5flan/corpora/words.py: words of any script, and hashes that agree with the n-grams themselves."""

import random

import pytest

from t5flan.corpora.words import hash_ngrams, hash_words, ngrams, words_of


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ("Don't PANIC, 42 times!", ['don', 't', 'panic', '42', 'times']),
        ('हिन्दी में किताब', ['हिन्दी', 'में', 'किताब']),
        ('مَرْحَبًا بِكُمْ', ['مَرْحَبًا', 'بِكُمْ']),
        ('ที่นี่ดี', ['ที่', 'นี่', 'ดี']),
        ('吾輩は猫。', ['吾', '輩', 'は', '猫']),
        ('မြန်မာ', ['မြ', 'န်', 'မာ']),
        ('한국어 텍스트', ['한국어', '텍스트']),
        ('nai\u0308ve na\u00efve ＡＢＣ', ['na\u00efve', 'na\u00efve', 'abc']),
        ('می\u200cخواهم', ['می\u200cخواهم']),
        ('𑄌𑄋𑄴𑄟𑄳𑄦 😀 𠀀𠀁', ['𑄌𑄋𑄴𑄟𑄳𑄦', '𠀀', '𠀁']),  # beyond the basic plane
        ('!!! 😀 …', []),
        ('', []),
    ],
)
def test_words_keep_their_marks(text, words):
    assert words_of(text) == words


def test_characters_without_spaces_are_words():
    assert ngrams('吾輩は猫', 2) == ['吾 輩', '輩 は', 'は 猫']
    assert ngrams('Naïve words', 5) == ['naïve words'] and ngrams('', 3) == ngrams('?!', 3) == []


def test_hashes_are_equal_where_ngrams_are():
    rng = random.Random(0)
    texts = [' '.join(rng.choices(['ab', 'cd', 'ef', '東京', 'กา'], k=rng.randint(0, 30))) for _ in range(200)]
    for size in (1, 2, 5, 13):
        named = [ngram for text in texts for ngram in ngrams(text, size)]
        hashed = [int(value) for text in texts for value in hash_ngrams(hash_words(text), size)]
        assert len(named) == len(hashed) and len(set(named)) == len(set(hashed)) == len(set(zip(named, hashed)))
