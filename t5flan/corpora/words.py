"""Words and word n-grams of a text in any script, for comparing texts.

A word is a run of letters, digits and the marks that combine with them, in lower case and Unicode's compatibility form
(NFKC), so that white space, case, punctuation and the way a letter is encoded make no difference. Scripts without
spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) have no words to find: there each character, with its marks, is
one, and n-grams are n-grams of characters.
"""

import functools
import re
import unicodedata

import numpy as np

from t5flan.data.randomness import scramble, stable_hash

_NO_SPACES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x3005, 0x3007),
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x31F0, 0x31FF),
    (0x3400, 0x9FFF),  # Chinese characters
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
_JOINERS = '\u200c\u200d'  # inside words of Persian and Indic scripts
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_MOST_CACHED = 2**20


@functools.cache
def _pattern(top: int) -> re.Pattern[str]:
    r"""Matches a word of characters below `top`; re is several times slower with classes that go beyond 0x10000.

    Python's `\w` lacks combining marks, which would cut words of Hindi or Arabic at their vowels.
    """
    places = [place for place in (*range(0x20000), *range(0xE0100, 0xE01F0)) if place < top]
    marks = _JOINERS + ''.join(chr(place) for place in places if unicodedata.category(chr(place)).startswith('M'))
    character = ''.join(f'{chr(first)}-{chr(last)}' for first, last in _NO_SPACES if first < top)
    return re.compile(rf'[^\W{character}]+(?:[{marks}]+[^\W{character}]*)*|(?=\w)[{character}][{marks}]*')


def words_of(text: str) -> list[str]:
    """The words of a text in order; [] if it has none, such as '!!!'.

    >>> words_of("Don't  PANIC: 東京")
    ['don', 't', 'panic', '東', '京']
    """
    folded = unicodedata.normalize('NFKC', text).lower()
    is_basic = len(folded.encode('utf-16-le', 'surrogatepass')) == 2 * len(folded)
    return _pattern(0x10000 if is_basic else 0x110000).findall(folded)


def ngrams(text: str, size: int) -> list[str]:
    """The word n-grams of a text; a shorter text is one n-gram, and a text without words has none.

    >>> ngrams('To be, or not', 3)
    ['to be or', 'be or not']
    """
    words = words_of(text)
    starts = range(max(1, len(words) - size + 1)) if words else ()
    return [' '.join(words[start : start + size]) for start in starts]


class _WordHashes(dict[str, int]):
    """Word -> its 64-bit hash, computed once while the word is common."""

    def __missing__(self, word: str) -> int:
        if len(self) >= _MOST_CACHED:
            self.clear()
        self[word] = value = stable_hash(word)
        return value


_HASHES = _WordHashes()


def hash_words(text: str) -> np.ndarray:
    """64-bit hashes of the words of a text, in order. [words] uint64, the same in every process."""
    words = words_of(text)
    return np.fromiter(map(_HASHES.__getitem__, words), np.uint64, len(words))


def hash_ngrams(words_W: np.ndarray, size: int) -> np.ndarray:
    """64-bit hashes of the n-grams of hashed words, in order, as `ngrams` has them. [ngrams] uint64."""
    count = max(1, len(words_W) - size + 1) if len(words_W) else 0
    hashes_G = words_W[:count].copy()
    for place in range(1, min(size, len(words_W))):
        hashes_G *= _MULTIPLIER
        hashes_G += words_W[place : place + count]
    return scramble(hashes_G)
