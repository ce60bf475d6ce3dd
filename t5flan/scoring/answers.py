"""Extracts answers from text and normalizes them for comparison."""

import re
import string
import unicodedata
from collections.abc import Sequence

TRIGGER = 'So the answer is'

_PUNCTUATION = frozenset(string.punctuation)
_ARTICLES = re.compile(r'\b(a|an|the)\b')
# A minus is read as a sign only where it cannot be a subtraction ("7-3" contains 7 and 3).
_NUMBER = re.compile(r'(?<![\w.])-?\d[\d,]*(?:\.\d+)?|(?<=[^\d\W])\d[\d,]*(?:\.\d+)?')
_CHOICE = re.compile(r'\(([A-Za-z])\)|(?<!\w)([A-Z])(?!\w)')
_QUOTES = {'"': '"', "'": "'", '“': '”', '「': '」', '«': '»', '`': '`'}


def extract_answer(text: str, trigger: str | Sequence[str] = TRIGGER, default: str | None = None) -> str:
    """Extracts the answer of a rationale: the rest of the line after the last `trigger`, without its full stop.

    Args:
        text: the model's output, or a target with a rationale.
        trigger: the phrase that announces the answer, in any case, or several (one for each language).
        default: returned if the text has no trigger; None returns the whole text, which is then a direct answer.

    >>> extract_answer('7 apples and 5 more are 12. So the answer is 12.')
    '12'
    >>> extract_answer('So the answer is: "pear"')
    'pear'
    >>> extract_answer(' 12 ')
    '12'
    >>> extract_answer('I am not sure.', default='')
    ''
    """
    triggers = [trigger] if isinstance(trigger, str) else trigger
    ends = [match.end() for words in triggers for match in re.finditer(re.escape(words), text, re.IGNORECASE)]
    if not ends:
        return clean(text) if default is None else default
    return clean(text[max(ends) :].lstrip(' \t:：').strip().partition('\n')[0])


def clean(answer: str) -> str:
    """Strips spaces, a final full stop and a pair of quotes around the whole answer.

    >>> clean(' (B). ')
    '(B)'
    >>> clean('3.5')
    '3.5'
    """
    answer = answer.strip()
    if len(answer) > 1 and answer[-1] in '.。' and not answer.endswith('..'):
        answer = answer[:-1].rstrip()
    if len(answer) > 1 and _QUOTES.get(answer[0]) == answer[-1]:
        answer = answer[1:-1]
    if len(answer) > 1 and answer[-1] in '.。' and not answer.endswith('..'):
        answer = answer[:-1].rstrip()
    return answer


def extract_number(text: str) -> str | None:
    """Returns the last number of a text, without thousands separators, or None, as GSM8K and MGSM answers are read.

    >>> extract_number('She makes 9 * 2 = $1,018.00 a day.')
    '1018.00'
    >>> extract_number('none') is None
    True
    """
    numbers = _NUMBER.findall(unicodedata.normalize('NFKC', text))
    return numbers[-1].replace(',', '') if numbers else None


def extract_choice(text: str) -> str | None:
    """Returns the first letter of a multiple-choice answer ('(B)', 'B', 'B.', '(b) because ...'), upper case, or None.

    >>> extract_choice('(b) because it is red')
    'B'
    """
    match = _CHOICE.search(text)
    return (match.group(1) or match.group(2)).upper() if match else None


def normalize_space(text: str) -> str:
    """Unicode NFC and single spaces; keeps case and punctuation."""
    return ' '.join(unicodedata.normalize('NFC', text).split())


def normalize_answer(text: str) -> str:
    """SQuAD's normalization (Rajpurkar et al. 2016): lower case, no punctuation, no English articles, single spaces.

    >>> normalize_answer('The  Eiffel Tower!')
    'eiffel tower'
    """
    text = ''.join(letter for letter in unicodedata.normalize('NFC', text).lower() if letter not in _PUNCTUATION)
    return ' '.join(_ARTICLES.sub(' ', text).split())
