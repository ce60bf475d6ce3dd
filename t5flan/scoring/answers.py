"""From a model's words to the answer in them, and to the form two answers are compared in."""

import re
import string
import unicodedata
from collections.abc import Sequence

TRIGGER = 'So the answer is'

_PUNCTUATION = frozenset(string.punctuation)
_ARTICLES = re.compile(r'\b(a|an|the)\b')
# A sign counts only where it cannot be a minus between two numbers ("7-3" holds 7 and 3).
_NUMBER = re.compile(r'(?<![\w.])-?\d[\d,]*(?:\.\d+)?|(?<=[^\d\W])\d[\d,]*(?:\.\d+)?')
_CHOICE = re.compile(r'\(([A-Za-z])\)|(?<!\w)([A-Z])(?!\w)')
_QUOTES = {'"': '"', "'": "'", '“': '”', '「': '」', '«': '»', '`': '`'}


def extract_answer(text: str, trigger: str | Sequence[str] = TRIGGER, default: str | None = None) -> str:
    """The answer of a rationale: what follows the last `trigger`, to the end of that line, without its full stop.

    Args:
        text: what the model wrote (or a target with a rationale).
        trigger: the words that announce the answer, in any case; or several such (one for each language).
        default: returned where no trigger stands in the text; None returns the whole text, so that a direct answer is
            its own answer.

    >>> extract_answer('7 apples and 5 more are 12. So the answer is 12.')
    '12'
    >>> extract_answer('So the answer is: "pear"')
    'pear'
    >>> extract_answer(' 12 ')
    '12'
    >>> extract_answer('I am not sure.', default='')
    ''
    """
    triggers = [trigger] if isinstance(trigger, str) else list(trigger)
    found = None
    for words in triggers:
        for match in re.finditer(re.escape(words), text, re.IGNORECASE):
            if found is None or match.end() > found:
                found = match.end()
    if found is None:
        return clean(text) if default is None else default
    return clean(text[found:].lstrip(' \t:：').strip().partition('\n')[0])


def clean(answer: str) -> str:
    """Strips spaces, one closing full stop and one pair of quotes around the whole answer.

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
    """The last number of a text, without thousands separators, or None: how GSM8K and MGSM answers are read.

    >>> extract_number('She makes 9 * 2 = $1,018.00 a day.')
    '1018.00'
    >>> extract_number('none') is None
    True
    """
    numbers = _NUMBER.findall(unicodedata.normalize('NFKC', text))
    return numbers[-1].replace(',', '') if numbers else None


def extract_choice(text: str) -> str | None:
    """The letter of a multiple-choice answer ('(B)', 'B', 'B.', '(b) because …'), upper case, or None: the first one.

    >>> extract_choice('(b) because it is red')
    'B'
    """
    for match in _CHOICE.finditer(text):
        return (match.group(1) or match.group(2)).upper()
    return None


def normalize_space(text: str) -> str:
    """Unicode NFC and single spaces: the weakest normalization, which keeps case and punctuation."""
    return ' '.join(unicodedata.normalize('NFC', text).split())


def normalize_answer(text: str) -> str:
    """SQuAD's normalization (Rajpurkar et al. 2016): lower case, no punctuation, no English articles, single spaces.

    >>> normalize_answer('The  Eiffel Tower!')
    'eiffel tower'
    """
    text = ''.join(letter for letter in unicodedata.normalize('NFC', text).lower() if letter not in _PUNCTUATION)
    return ' '.join(_ARTICLES.sub(' ', text).split())
