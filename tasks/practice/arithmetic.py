"""Arithmetic in digits and in short stories, with the steps as rationale."""

import random
from collections.abc import Sequence

from t5flan.tasks.practice.instance import Instance, Skill
from t5flan.tasks.practice.words import NAMES, OBJECTS


def column_steps(a: int, b: int) -> str:
    """The steps of adding two two-digit numbers column by column.

    >>> column_steps(47, 28)
    '7+8=15, carry 1, 4+1=5, 5+2=7.'
    >>> column_steps(42, 16)
    '2+6=8, 4+1=5.'
    """
    units, tens, more = a % 10 + b % 10, a // 10, b // 10
    steps = [f'{a % 10}+{b % 10}={units}']
    if units >= 10:
        steps += ['carry 1', f'{tens}+1={tens + 1}']
        tens += 1
    return ', '.join([*steps, f'{tens}+{more}={tens + more}']) + '.'


def borrow_steps(a: int, b: int) -> str:
    """The steps of subtracting b from a (b <= a < 100) column by column.

    >>> borrow_steps(52, 38)
    '12-8=4, borrow 1, 5-1=4, 4-3=1.'
    >>> borrow_steps(58, 32)
    '8-2=6, 5-3=2.'
    """
    units, tens, less = a % 10, a // 10, b // 10
    borrowed = []
    if units < b % 10:
        units += 10
        borrowed = ['borrow 1', f'{tens}-1={tens - 1}']
        tens -= 1
    return ', '.join([f'{units}-{b % 10}={units - b % 10}', *borrowed, f'{tens}-{less}={tens - less}']) + '.'


def multiply_steps(a: int, b: int) -> str:
    """The steps of multiplying a two-digit number by a digit, units first.

    >>> multiply_steps(34, 6)
    '4x6=24, carry 2, 3x6=18, 18+2=20.'
    >>> multiply_steps(32, 3)
    '2x3=6, 3x3=9.'
    """
    units, tens = a % 10 * b, a // 10 * b
    steps = [f'{a % 10}x{b}={units}', f'{a // 10}x{b}={tens}']
    if units >= 10:
        steps.insert(1, f'carry {units // 10}')
        steps.append(f'{tens}+{units // 10}={tens + units // 10}')
    return ', '.join(steps) + '.'


def draw_add(rng: random.Random) -> Instance:
    """The sum of two two-digit numbers; a + b and b + a are one instance."""
    a, b = rng.randint(10, 99), rng.randint(10, 99)
    return Instance(f'{min(a, b)}+{max(a, b)}', {'a': str(a), 'b': str(b)}, str(a + b), column_steps(a, b))


def draw_subtract(rng: random.Random) -> Instance:
    """A two-digit number minus a smaller one."""
    b, a = sorted(rng.sample(range(10, 100), 2))
    return Instance(f'{a}-{b}', {'a': str(a), 'b': str(b)}, str(a - b), borrow_steps(a, b))


def draw_add_three(rng: random.Random) -> Instance:
    """The sum of three digits; all orders are one instance."""
    numbers = [rng.randint(1, 9) for _ in range(3)]
    a, b, c = numbers
    fields = {'a': str(a), 'b': str(b), 'c': str(c)}
    steps = f'{a}+{b}={a + b}, {a + b}+{c}={a + b + c}.'
    return Instance('+'.join(map(str, sorted(numbers))), fields, str(a + b + c), steps)


def draw_multiply(rng: random.Random) -> Instance:
    """A two-digit number times a digit."""
    a, b = 10 * rng.randint(1, 6) + rng.randint(1, 9), rng.randint(2, 6)
    return Instance(f'{a}x{b}', {'a': str(a), 'b': str(b)}, str(a * b), multiply_steps(a, b))


def draw_story(rng: random.Random) -> Instance:
    """A story in which someone has some things, and gets or loses a few."""
    variant = rng.choice(('gain', 'lose'))
    b = rng.randint(2, 9)
    a = rng.randint(2, 9) if variant == 'gain' else b + rng.randint(1, 9)
    answer, sign = (a + b, '+') if variant == 'gain' else (a - b, '-')
    name, other = rng.sample(NAMES, 2)
    things = rng.choice(OBJECTS)
    fields = {'name': name, 'other': other, 'things': things, 'a': str(a), 'b': str(b)}
    return Instance(f'{a} {variant} {b} {things}', fields, str(answer), f'{a}{sign}{b}={answer}.', variant)


def _draw_two_steps(rng: random.Random, kinds: Sequence[str]) -> Instance:
    """A story of two changes, each `+` or `-`, in which all numbers stay between 1 and 20."""
    kind = rng.choice(kinds)
    while True:
        a, b, c = rng.randint(2, 15), rng.randint(2, 9), rng.randint(2, 9)
        middle = a + b if kind[0] == '+' else a - b
        answer = middle + c if kind[1] == '+' else middle - c
        if min(middle, answer) >= 1 and max(middle, answer) <= 20:
            break
    verbs = {'+': 'gets', '-': 'loses'}
    name, things = rng.choice(NAMES), rng.choice(OBJECTS)
    fields = {
        'name': name, 'things': things, 'a': str(a), 'b': str(b), 'c': str(c), 'first': verbs[kind[0]],
        'second': verbs[kind[1]],
    }  # fmt: skip
    steps = f'{a}{kind[0]}{b}={middle}, {middle}{kind[1]}{c}={answer}.'
    return Instance(f'{a}{kind[0]}{b}{kind[1]}{c}', fields, str(answer), steps)


def draw_two_steps(rng: random.Random) -> Instance:
    """A story of two changes; two losses are an unseen task."""
    return _draw_two_steps(rng, ('++', '+-', '-+'))


def draw_two_losses(rng: random.Random) -> Instance:
    """Unseen task: a story of two losses."""
    return _draw_two_steps(rng, ('--',))


def draw_compare(rng: random.Random) -> Instance:
    """Which of two numbers is larger or smaller."""
    a, b = rng.sample(range(10, 100), 2)
    variant = rng.choice(('larger', 'smaller'))
    answer = max(a, b) if variant == 'larger' else min(a, b)
    return Instance(f'{variant} {min(a, b)} {max(a, b)}', {'a': str(a), 'b': str(b)}, str(answer), variant=variant)


def draw_even_odd(rng: random.Random) -> Instance:
    """Whether a number below a thousand is even or odd."""
    number = rng.randint(0, 999)
    return Instance(str(number), {'a': str(number)}, 'odd' if number % 2 else 'even')


SKILLS = (
    Skill('add', 'arithmetic', draw_add, rationale=True, rate=1.5),
    Skill('subtract', 'arithmetic', draw_subtract, rationale=True, rate=1.5),
    Skill('add_three', 'arithmetic', draw_add_three, rationale=True, space=165),
    Skill('multiply', 'arithmetic', draw_multiply, rationale=True, rate=1.5, space=270),
    Skill('story', 'arithmetic', draw_story, rationale=True),
    Skill('two_steps', 'arithmetic', draw_two_steps, rationale=True, rate=1.5),
    Skill('compare', 'arithmetic', draw_compare),
    Skill('even_odd', 'arithmetic', draw_even_odd, rate=0.5, space=1000),
    Skill('two_losses', 'arithmetic', draw_two_losses, rationale=True, trained=False, space=266),
)
