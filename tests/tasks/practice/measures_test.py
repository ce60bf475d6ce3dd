"""tasks/practice/measures.py: answers are those of the calendar and of rational arithmetic."""

import datetime
import re
from fractions import Fraction

from t5flan.tasks.practice import tasks as practice

MONDAY = datetime.date(2024, 1, 1)
DAY = r'(Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)'


def rows(name: str):
    for split in ('train', 'validation', 'test_wordings'):
        for i in range(300):
            yield practice.make_example(f'practice_{name}', split, i)


def weekday(name: str) -> datetime.date:
    return next(day for day in (MONDAY + datetime.timedelta(n) for n in range(7)) if day.strftime('%A') == name)


def test_weekdays():
    for example in rows('weekday_cot'):
        start = weekday(re.search(DAY, example['inputs'])[1])
        count = int(re.search(r'(\d+) day', example['inputs'])[1])
        step = datetime.timedelta(1 if 'after' in example['inputs'] else -1)
        assert (start + count * step).strftime('%A') == example['answer']
        counted = re.findall(DAY, example['rationale'])
        assert counted == [(start + n * step).strftime('%A') for n in range(1, count + 1)]


def test_dates():
    over = 0
    for example in rows('date'):
        text = example['inputs'].replace('It is ', '').replace('Find ', '')
        month, day = re.search(r'([A-Z][a-z]+) (\d+)', text).groups()
        count = int(re.search(r'(\d) day', example['inputs'])[1])
        start = datetime.datetime.strptime(f'{month} {day} 2023', '%B %d %Y')
        end = start + datetime.timedelta(count)
        assert example['answer'] == f'{end:%B} {end.day}'
        over += end.month != start.month
    assert over


def metres(text: str) -> Fraction:
    parts = re.findall(r'(\d+) (metres|centimetres)', text)
    return sum(Fraction(int(number), 1 if unit == 'metres' else 100) for number, unit in parts)


def test_lengths():
    for example in rows('length'):
        assert metres(example['inputs']) == metres(example['answer'])
        assert len(re.findall('metres', example['answer'])) == (1 if example['instance'].startswith('down') else 2)


def test_units():
    prefix = {'kilo': Fraction(1000), 'centi': Fraction(1, 100), 'milli': Fraction(1, 1000), '': Fraction(1)}
    for example in rows('unit'):
        number, large, small = example['instance'].split()
        assert re.search(rf'\b{number} {large}\b', example['inputs']) and re.search(rf'\b{small}\b', example['inputs'])
        size = [prefix[re.fullmatch('(kilo|centi|milli|)(metres|grams|litres)', unit)[1]] for unit in (large, small)]
        assert int(example['answer']) == int(number) * size[0] / size[1]


def test_minutes():
    for example in rows('minutes_cot'):
        hours, minutes = map(int, re.search(r'(\d+) hours (\d+) minutes', example['inputs']).groups())
        assert datetime.timedelta(hours=hours, minutes=minutes) == datetime.timedelta(minutes=int(example['answer']))
        assert example['rationale'] == f'{hours}x60={hours * 60}, {hours * 60}+{minutes}={hours * 60 + minutes}.'
