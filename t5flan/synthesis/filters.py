"""Filters for text that a model made. Each returns the reason for which a text is rejected, or ''.

Similarity is ROUGE-L between words, as in Self-Instruct (arXiv:2212.10560). A character of Chinese, Japanese or Thai is
a word.
"""

import collections
import re
from collections.abc import Iterable, Sequence

from t5flan.scoring.metrics import rouge_l_between

_WORDS = re.compile(r'[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]|[^\W_\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]+')
_UNSUITABLE = re.compile(
    r'\b(images?|pictures?|photos?|graphs?|plots?|charts?|diagrams?|flowcharts?|maps?|draw|paint|sketch|videos?|audio|'
    r'music|files?|attach\w*|links?|websites?|click|go to)\b',
    re.IGNORECASE,
)
"""Tasks about something that is no text, about as in Self-Instruct, which leaves out programs to write too."""
_PROGRAM = re.compile(
    r'^(write|create|make|develop|build) (a|an|me a) (computer )?(program|app|website|video game)', re.I
)
_REFUSAL = re.compile(r"\b(i'm sorry|i am sorry|i apologi[sz]e|as an ai|i cannot|i can't|i'm unable)\b", re.IGNORECASE)
_LABELS = re.compile(r'(input|output|task|instruction|label|example|question|answer|text)\s*:', re.IGNORECASE)
_STATEMENT = re.compile(
    r'(the|a|an|this|that|these|those|it|he|she|they|we|i|there|his|her|my|our)\b[^?]*$', re.IGNORECASE
)
"""A sentence that starts like this and asks nothing tells something."""
_SENTENCE = re.compile(r'[.!?]["\')]?\s+(?=[A-Z])')


def words_of(text: str) -> list[str]:
    """The words of a text, lower case.

    >>> words_of("Don't stop: 你好!")
    ['don', 't', 'stop', '你', '好']
    """
    return _WORDS.findall(text.lower())


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n words."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def repetition(text: str, n: int = 4) -> float:
    """The share of a text's runs of n words that repeat an earlier one.

    >>> repetition('a b c d a b c d a b c d'), repetition('a b c')
    (0.5555555555555556, 0.0)
    """
    runs = ngrams(words_of(text), n)
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def copied(text: str, source: str, n: int = 5) -> float:
    """The share of a text's runs of n words that `source` has too; a text of fewer words is one run.

    >>> copied('Tom has 3 cats and a dog', 'Tom has 3 cats and 2 dogs. How many?')
    0.3333333333333333
    """
    words = words_of(text)
    n = min(n, len(words))
    runs, known = ngrams(words, n), set(ngrams(words_of(source), n))
    return sum(run in known for run in runs) / len(runs) if words else 0.0


def length_fault(text: str, least: int, most: int) -> str:
    """'too short' or 'too long', in words."""
    count = len(words_of(text))
    return 'too short' if count < least else 'too long' if count > most else ''


def instruction_fault(text: str, least: int = 3, most: int = 60) -> str:
    """Why a text is no instruction for a language model: its length, how it starts, or keywords (Self-Instruct)."""
    text = text.strip()
    if fault := length_fault(text, least, most):
        return fault
    if not text[0].isalpha() and text[0] not in '"“¿':
        return 'bad start'
    if text[0].islower() or text[-1] in ':,;' or _LABELS.search(text) or _STATEMENT.match(text):
        return 'no instruction'
    if _UNSUITABLE.search(text) or _PROGRAM.search(text):
        return 'keyword'
    sentences = [' '.join(words_of(one)) for one in _SENTENCE.split(text)]
    return 'repetition' if repetition(text) > 0.2 or len(set(sentences)) < len(sentences) else ''


def without_quotes(text: str) -> str:
    """A text without the quotes or asterisks around the whole of it.

    >>> without_quotes('**"Name a tree."** '), without_quotes('Say "no"')
    ('Name a tree.', 'Say "no"')
    """
    text = text.strip().strip('*').strip()
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] == '"' and text.count('"') == 2 else text


def output_fault(text: str, instruction: str, given: str = '', most: int = 400) -> str:
    """Why a text is no answer to an instruction and its input."""
    words = words_of(text)
    if not words:
        return 'empty output'
    if len(words) > most:
        return 'output too long'
    if repetition(text) > 0.2:
        return 'output repeats itself'
    if _REFUSAL.search(text) and len(words) < 80:
        return 'refusal'
    own = [' '.join(words_of(one)) for one in (instruction, given, f'{instruction} {given}') if one]
    if ' '.join(words) in own or (len(words) > 5 and copied(text, f'{instruction}\n{given}') > 0.8):
        return 'output copies'
    return ''


class Pool:
    """Texts, and whether a new one is like one of them: ROUGE-L of `threshold` or more.

    The F-measure is at most 2 * (common words) / (words of both), so most pairs need no search for a common
    subsequence.
    """

    def __init__(self, texts: Iterable[str] = (), threshold: float = 0.7) -> None:
        self._threshold, self._similarity = threshold, rouge_l_between(words_of)
        self._known: list[tuple[str, collections.Counter[str], int]] = []
        self._exact: set[str] = set()
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        """Adds a text."""
        words = words_of(text)
        self._known.append((text, collections.Counter(words), len(words)))
        self._exact.add(' '.join(words) or text)

    def has_similar(self, text: str) -> bool:
        """Whether a text of the pool is like this one."""
        words = words_of(text)
        if (' '.join(words) or text) in self._exact:
            return True
        counts, length = collections.Counter(words), len(words)
        for other, known, size in self._known:
            bound = 2 * sum((counts & known).values()) / max(1, length + size)
            if bound >= self._threshold and self._similarity(other, text) >= self._threshold:
                return True
        return False
