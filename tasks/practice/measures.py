"""Days, dates, lengths and times."""

import random

from t5flan.tasks.practice.instance import Instance, Skill
from t5flan.tasks.practice.words import DAYS, MONTHS, NAMES

UNITS = (
    ('kilograms', 'grams', 1000), ('kilometres', 'metres', 1000), ('litres', 'millilitres', 1000),
    ('metres', 'centimetres', 100), ('centimetres', 'millimetres', 10),
)  # fmt: skip


def _days(count: int) -> str:
    return '1 day' if count == 1 else f'{count} days'


def draw_weekday(rng: random.Random) -> Instance:
    """The weekday some days after or before another; the rationale counts the days."""
    day, count, name = rng.randrange(7), rng.randint(1, 4), rng.choice(NAMES)
    variant, step = rng.choice((('after', 1), ('before', -1)))
    passed = [DAYS[(day + step * number) % 7] for number in range(1, count + 1)]
    fields = {'name': name, 'day': DAYS[day], 'days': _days(count)}
    return Instance(f'{name} {DAYS[day]} {variant} {count}', fields, passed[-1], ' '.join(passed) + '.', variant)


def draw_date(rng: random.Random) -> Instance:
    """The date one or two days after another; dates across the end of a month are never held out."""
    month = rng.randrange(12)
    name, length = MONTHS[month]
    day, count = rng.randint(1, length), rng.randint(1, 2)
    over = day + count > length
    answer = f'{MONTHS[(month + 1) % 12][0]} {day + count - length}' if over else f'{name} {day + count}'
    return Instance(f'{name} {day}+{count}', {'date': f'{name} {day}', 'days': _days(count)}, answer, pinned=over)


def draw_length(rng: random.Random) -> Instance:
    """Metres and centimetres to centimetres, or back."""
    metres, rest = rng.randint(1, 9), rng.randint(1, 99)
    long, short = f'{metres} metres {rest} centimetres', f'{100 * metres + rest} centimetres'
    variant = rng.choice(('down', 'up'))
    key = f'{variant} {100 * metres + rest}'
    if variant == 'down':
        return Instance(key, {'length': long}, short, variant='down')
    return Instance(key, {'length': short}, long, variant='up')


def draw_unit(rng: random.Random) -> Instance:
    """A whole number of a large unit, in a smaller unit."""
    large, small, factor = rng.choice(UNITS)
    number = rng.randint(2, 99)
    fields = {'number': str(number), 'large': large, 'small': small}
    return Instance(f'{number} {large} {small}', fields, str(number * factor))


def draw_minutes(rng: random.Random) -> Instance:
    """Hours and minutes in minutes."""
    hours, minutes = rng.randint(2, 5), rng.randint(1, 59)
    answer = 60 * hours + minutes
    steps = f'{hours}x60={60 * hours}, {60 * hours}+{minutes}={answer}.'
    return Instance(f'{hours}:{minutes}', {'hours': str(hours), 'minutes': str(minutes)}, str(answer), steps)


SKILLS = (
    Skill('weekday', 'measures', draw_weekday, rationale=True, space=448),
    Skill('date', 'measures', draw_date, rate=1.5, space=730),
    Skill('length', 'measures', draw_length, rate=0.5),
    Skill('unit', 'measures', draw_unit, rate=0.5, space=490),
    Skill('minutes', 'measures', draw_minutes, rationale=True, rate=0.7, space=236),
)
