"""Extracts answers from text and normalizes them for comparison."""

import re
import string
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from t5flan.scoring.numbers import read_numbers

TRIGGER = 'So the answer is'

_PUNCTUATION = frozenset(string.punctuation)
_ARTICLES = re.compile(r'\b(a|an|the)\b')
# A minus is read as a sign only where it cannot be a subtraction ("7-3" contains 7 and 3).
_NUMBER = re.compile(r'(?<![\w.])-?\d[\d,]*(?:\.\d+)?|(?<=[^\d\W])\d[\d,]*(?:\.\d+)?')
_CHOICE = re.compile(r'\(([A-Za-z])\)|(?<!\w)([A-Z])(?!\w)')
_ANNOUNCEMENT = (
    r'(?:\b(?:so|thus|hence|therefore|finally|and),?\s+)?(?:\b(?:the|my|our)\s+)?\b(?:final |correct |right )?'
    r'answer(?: is\b|\s?:)|####'
)
_BOXED = re.compile(r'\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}')
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


def find_number(text: str, triggers: Sequence[str], decimal_comma: bool = False) -> str | None:
    """The number that answers a question, or None: the rule of GSM8K and MGSM, see `tasks/benchmarks`.

    It is the first number after the last trigger in the same line, or after the last "=" there; without a trigger, or
    without a number after it, the last number of the text.

    >>> find_number('48 / 2 = 24 and 48 + 24 = $72.', ['The answer is'])
    '72'
    """
    ends = [found.end() for words in triggers for found in re.finditer(re.escape(words), text, re.IGNORECASE)]
    if ends:
        line = text[max(ends) :].lstrip(' :：\n').partition('\n')[0]
        sentence = re.split(r'[.。](?=\s|$)', line, maxsplit=1)[0]
        if numbers := read_numbers(sentence.rpartition('=')[2], decimal_comma) or read_numbers(line, decimal_comma):
            return numbers[0]
    numbers = read_numbers(text, decimal_comma)
    return numbers[-1] if numbers else None


class Announced(NamedTuple):
    """An answer at the end of a text, and the text before its announcement."""

    before: str
    answer: str


def split_answer(text: str, triggers: Sequence[str] = (TRIGGER,), is_number: bool = False) -> Announced:
    r"""Splits a text into what leads to an answer and the answer; both are '' if it has none.

    An answer follows one of the triggers or a usual phrase ("The answer is", "Answer:", "####"), or stands in
    `\boxed{}`. The last of these counts. A number that is not announced so is the last one of the text, and the whole
    text leads to it: the rule of GSM8K and MGSM.

    Args:
        triggers: phrases that announce an answer, one for each language.
        is_number: the answer must be a number.

    >>> split_answer('3 and 4 are 7. So the answer is 7.')
    Announced(before='3 and 4 are 7.', answer='7')
    >>> split_answer('40 + 56 is 96. Therefore, the final answer is $\\boxed{96}$.')
    Announced(before='40 + 56 is 96.', answer='96')
    >>> split_answer('48 + 48 = $96', is_number=True)
    Announced(before='48 + 48 = $96', answer='96')
    """
    spans = [
        match.span()
        for pattern in (*(re.escape(words) for words in triggers), _ANNOUNCEMENT)
        for match in re.finditer(pattern, text, re.IGNORECASE)
    ]
    start, end = max(spans, key=lambda span: (span[1], -span[0]), default=(len(text), len(text)))
    line = text[end:].lstrip(' \t:：*').partition('\n')[0]
    if boxed := list(_BOXED.finditer(text)):
        last = boxed[-1]
        if last.start() >= end or not spans:
            start = start if last.group() in line else last.start()
            line = last.group(1)
    if is_number:
        is_announced = bool(read_numbers(line))
        found = find_number(f'{TRIGGER} {line}', [TRIGGER]) if is_announced else find_number(text, ())
        before = text[:start] if is_announced else text
        return Announced(_before(before), found) if found else Announced('', '')
    answer = clean(line.strip().strip('$*'))
    return Announced(_before(text[:start]), answer) if answer and start < len(text) else Announced('', '')


def _before(text: str) -> str:
    """Without the mathematics mode that a box ends, and markup."""
    return text.strip().rstrip('*$').strip()


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
