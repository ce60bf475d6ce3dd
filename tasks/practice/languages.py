"""Number words from 0 to 99 in English, French, Korean (Sino-Korean), Japanese (hiragana) and Chinese.

The parts of Korean, Japanese and Chinese numbers are separated by spaces, as in a beginner's book: otherwise a
vocabulary trained on these texts would make one piece of each number, and models could not compose new ones.
"""

import random
from collections.abc import Callable

from t5flan.tasks.practice.instance import Instance, Skill

_ENGLISH = (
    'zero', 'one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten', 'eleven', 'twelve',
    'thirteen', 'fourteen', 'fifteen', 'sixteen', 'seventeen', 'eighteen', 'nineteen',
)  # fmt: skip
_ENGLISH_TENS = ('twenty', 'thirty', 'forty', 'fifty', 'sixty', 'seventy', 'eighty', 'ninety')
_FRENCH = (
    'zéro', 'un', 'deux', 'trois', 'quatre', 'cinq', 'six', 'sept', 'huit', 'neuf', 'dix', 'onze', 'douze', 'treize',
    'quatorze', 'quinze', 'seize',
)  # fmt: skip
_FRENCH_TENS = ('vingt', 'trente', 'quarante', 'cinquante', 'soixante')


def english(number: int) -> str:
    """A number in English words, with hyphens.

    >>> english(42)
    'forty-two'
    """
    if number < 20:
        return _ENGLISH[number]
    tens = _ENGLISH_TENS[number // 10 - 2]
    return f'{tens}-{_ENGLISH[number % 10]}' if number % 10 else tens


def french(number: int) -> str:
    """A number in French words, in the traditional spelling of France.

    >>> [french(number) for number in (17, 21, 71, 80, 81, 97)]
    ['dix-sept', 'vingt et un', 'soixante et onze', 'quatre-vingts', 'quatre-vingt-un', 'quatre-vingt-dix-sept']
    """
    if number < 17:
        return _FRENCH[number]
    if number < 20:
        return f'dix-{_FRENCH[number - 10]}'
    if number >= 80:
        return f'quatre-vingt-{french(number - 80)}' if number > 80 else 'quatre-vingts'
    base = min(number // 10, 6)
    tens, rest = _FRENCH_TENS[base - 2], number - 10 * base
    if rest == 0:
        return tens
    return f'{tens} et {french(rest)}' if rest in (1, 11) else f'{tens}-{french(rest)}'


def decimal(digits: str, ten: str) -> Callable[[int], str]:
    """East Asian counting: the digit of the tens (omitted for one), the word for ten, the units.

    >>> decimal('零 一 二 三 四 五 六 七 八 九', '十')(42)
    '四 十 二'
    """
    names = digits.split()

    def words(number: int) -> str:
        tens, units = divmod(number, 10)
        if tens == 0:
            return names[units]
        return ' '.join([names[tens]] * (tens > 1) + [ten] + [names[units]] * (units > 0))

    return words


LANGUAGES: dict[str, Callable[[int], str]] = {
    'English': english,
    'French': french,
    'Korean': decimal('영 일 이 삼 사 오 육 칠 팔 구', '십'),
    'Japanese': decimal('ゼロ いち に さん よん ご ろく なな はち きゅう', 'じゅう'),
    'Chinese': decimal('零 一 二 三 四 五 六 七 八 九', '十'),
}
# Training uses each language as source and as target, but never these pairs.
UNSEEN_PAIRS = (
    ('French', 'English'), ('Korean', 'French'), ('Chinese', 'Korean'), ('English', 'Japanese'),
    ('Japanese', 'Chinese'),
)  # fmt: skip
SEEN_PAIRS = tuple(
    (source, target)
    for source in LANGUAGES for target in LANGUAGES
    if source != target and (source, target) not in UNSEEN_PAIRS
)  # fmt: skip


def is_part(number: int) -> bool:
    """Whether other numbers' words contain this number's word: 0 to 20, the tens, and irregular ones in French."""
    return number <= 20 or number % 10 == 0 or number in (71, 81, 91)


def _draw_words(language: str) -> Callable[[random.Random], Instance]:
    """Digits to words and words to digits in one language."""

    def draw(rng: random.Random) -> Instance:
        number = rng.randrange(100)
        variant = rng.choice(('write', 'read'))
        fields = {'digits': str(number), 'words': LANGUAGES[language](number), 'language': language}
        answer = fields['words'] if variant == 'write' else fields['digits']
        return Instance(f'{variant} {number}', fields, answer, variant=variant, pinned=is_part(number))

    return draw


def _draw_translation(pairs: tuple[tuple[str, str], ...]) -> Callable[[random.Random], Instance]:
    def draw(rng: random.Random) -> Instance:
        source, target = rng.choice(pairs)
        number = rng.randrange(100)
        fields = {'words': LANGUAGES[source](number), 'source': source, 'target': target}
        return Instance(f'{source} {target} {number}', fields, LANGUAGES[target](number), pinned=is_part(number))

    return draw


def _words_skill(language: str) -> Skill:
    rate = 1.0 if language == 'French' else 0.5  # French has irregular numbers
    name, draw = f'number_{language.lower()}', _draw_words(language)
    return Skill(name, 'languages', draw, held_share=0.15, space=200, rate=rate)


SKILLS = (
    *map(_words_skill, LANGUAGES),
    Skill('number_translate', 'languages', _draw_translation(SEEN_PAIRS), rate=1.5),
    Skill('number_translate_pairs', 'languages', _draw_translation(UNSEEN_PAIRS), trained=False, space=500),
)
