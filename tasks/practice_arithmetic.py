"""Adding, taking away, multiplying and comparing: sums in digits and in small stories, with the steps as rationale."""

import random
from collections.abc import Sequence

from t5flan.tasks.practice_instance import Instance, Skill
from t5flan.tasks.practice_words import NAMES, OBJECTS


def column_steps(addends: Sequence[int]) -> str:
    """Adds two-digit numbers column by column, as on paper.

    >>> column_steps([47, 28])
    '7+8=15, carry 1, 4+2+1=7.'
    >>> column_steps([42, 16])
    '2+6=8, 4+1=5.'
    """
    units = [number % 10 for number in addends]
    tens = [number // 10 for number in addends]
    carry = sum(units) // 10
    steps = ['+'.join(map(str, units)) + f'={sum(units)}']
    if carry:
        steps.append(f'carry {carry}')
        tens.append(carry)
    steps.append('+'.join(map(str, tens)) + f'={sum(tens)}')
    return ', '.join(steps) + '.'


def borrow_steps(a: int, b: int) -> str:
    """Takes b from a (both below 100, b not larger) column by column.

    >>> borrow_steps(52, 38)
    '12-8=4, borrow 1, 5-3-1=1.'
    >>> borrow_steps(58, 32)
    '8-2=6, 5-3=2.'
    """
    units, tens = a % 10 - b % 10, a // 10 - b // 10
    if units >= 0:
        return f'{a % 10}-{b % 10}={units}, {a // 10}-{b // 10}={tens}.'
    return f'{a % 10 + 10}-{b % 10}={units + 10}, borrow 1, {a // 10}-{b // 10}-1={tens - 1}.'


def draw_add(rng: random.Random) -> Instance:
    """Two two-digit numbers; a + b and b + a are one instance."""
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    return Instance(f'{min(a, b)}+{max(a, b)}', {'a': str(a), 'b': str(b)}, str(a + b), column_steps([a, b]))


def draw_subtract(rng: random.Random) -> Instance:
    """A two-digit number less a smaller two-digit number."""
    b, a = sorted(rng.sample(range(10, 100), 2))
    return Instance(f'{a}-{b}', {'a': str(a), 'b': str(b)}, str(a - b), borrow_steps(a, b))


def draw_add_three(rng: random.Random) -> Instance:
    """Three two-digit numbers below 50: hard at one glance, easy in columns."""
    numbers = [rng.randint(10, 49) for _ in range(3)]
    fields = dict(zip('abc', map(str, numbers), strict=True))
    return Instance('+'.join(map(str, sorted(numbers))), fields, str(sum(numbers)), column_steps(numbers))


def draw_multiply(rng: random.Random) -> Instance:
    """A two-digit number times a digit: the tens, the units, and their sum."""
    a, b = 10 * rng.randint(1, 9) + rng.randint(1, 9), rng.randint(2, 6)
    tens, units = a // 10 * 10 * b, a % 10 * b
    steps = f'{a // 10 * 10}x{b}={tens}, {a % 10}x{b}={units}, {tens}+{units}={a * b}.'
    return Instance(f'{a}x{b}', {'a': str(a), 'b': str(b)}, str(a * b), steps)


def draw_story(rng: random.Random) -> Instance:
    """Someone has some, and gets or loses a few."""
    a, b = rng.randint(11, 49), rng.randint(2, 9)
    variant, sign = rng.choice((('gain', 1), ('lose', -1)))
    answer = a + sign * b
    name, other = rng.sample(NAMES, 2)
    fields = {'name': name, 'other': other, 'things': rng.choice(OBJECTS), 'a': str(a), 'b': str(b)}
    steps = f'{a}{"+" if sign > 0 else "-"}{b}={answer}.'
    return Instance(f'{a} {variant} {b}', fields, str(answer), steps, variant)


def _draw_two_steps(rng: random.Random, kinds: Sequence[tuple[int, int]]) -> Instance:
    a, b, c = rng.randint(21, 59), rng.randint(2, 9), rng.randint(2, 9)
    first, second = rng.choice(kinds)
    name, other, third = rng.sample(NAMES, 3)
    verbs = {1: 'gets', -1: 'loses'}
    middle = a + first * b
    answer = middle + second * c
    signs = {1: '+', -1: '-'}
    fields = {
        'name': name, 'other': other, 'third': third, 'things': rng.choice(OBJECTS), 'a': str(a), 'b': str(b),
        'c': str(c), 'first': verbs[first], 'second': verbs[second],
    }  # fmt: skip
    steps = f'{a}{signs[first]}{b}={middle}, {middle}{signs[second]}{c}={answer}.'
    return Instance(f'{a}{signs[first]}{b}{signs[second]}{c}', fields, str(answer), steps)


def draw_two_steps(rng: random.Random) -> Instance:
    """A story of two changes; that both are losses is left to an unseen task."""
    return _draw_two_steps(rng, ((1, 1), (1, -1), (-1, 1)))


def draw_two_losses(rng: random.Random) -> Instance:
    """Unseen: a story of two losses."""
    return _draw_two_steps(rng, ((-1, -1),))


def draw_compare(rng: random.Random) -> Instance:
    """Which of two numbers is larger, or smaller."""
    a, b = rng.sample(range(10, 100), 2)
    variant = rng.choice(('larger', 'smaller'))
    answer = max(a, b) if variant == 'larger' else min(a, b)
    return Instance(f'{variant} {min(a, b)} {max(a, b)}', {'a': str(a), 'b': str(b)}, str(answer), variant=variant)


def draw_even_odd(rng: random.Random) -> Instance:
    """Whether a number below a thousand is even or odd."""
    number = rng.randint(0, 999)
    return Instance(str(number), {'a': str(number)}, 'odd' if number % 2 else 'even')


SKILLS = (
    Skill('add', 'arithmetic', draw_add, rationale=True),
    Skill('subtract', 'arithmetic', draw_subtract, rationale=True),
    Skill('add_three', 'arithmetic', draw_add_three, rationale=True),
    Skill('multiply', 'arithmetic', draw_multiply, rationale=True, space=405),
    Skill('story', 'arithmetic', draw_story, rationale=True, space=624),
    Skill('two_steps', 'arithmetic', draw_two_steps, rationale=True),
    Skill('compare', 'arithmetic', draw_compare),
    Skill('even_odd', 'arithmetic', draw_even_odd, space=1000),
    Skill('two_losses', 'arithmetic', draw_two_losses, rationale=True, trained=False),
)
