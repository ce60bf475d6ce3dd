"""tasks/practice/arithmetic.py: answers are recomputed from the text, and every equation of a rationale is checked."""

import doctest
import re

import pytest

from t5flan.tasks.practice import arithmetic
from t5flan.tasks.practice import tasks as practice
from t5flan.tasks.practice.arithmetic import borrow_steps, column_steps, multiply_steps

COUNT = 300


def rows(task: str):
    for split in ('train', 'validation', 'test_wordings'):
        for i in range(COUNT):
            yield practice.make_example(f'practice_{task}', split, i)


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r'\d+', text)]


def value(expression: str) -> int:
    """The value of sums, differences and products of whole numbers."""
    total = 0
    for sign, term in re.findall(r'([+-]?)([\dx]+)', expression):
        product = 1
        for factor in term.split('x'):
            product *= int(factor)
        total += -product if sign == '-' else product
    return total


def equations(rationale: str) -> list[tuple[str, int]]:
    return [(left, int(right)) for left, right in re.findall(r'([\dx+-]+)=(\d+)', rationale)]


@pytest.mark.parametrize(
    'task', [name.removeprefix('practice_') for name in practice.task_names('arithmetic', direct=False, trained=None)]
)
def test_rationales_are_true(task):
    for example in rows(task):
        found = equations(example['rationale'])
        assert found and all(value(left) == right for left, right in found), example
        if task in ('add_cot', 'subtract_cot', 'multiply_cot'):  # by columns: the tens, then the digit of the units
            assert 10 * found[-1][1] + found[0][1] % 10 == int(example['answer'])
            carries = [int(carry) for carry in re.findall(r'carry (\d)', example['rationale'])]
            assert carries == ([found[0][1] // 10] if found[0][1] > 9 else [])
            assert ('borrow' in example['rationale']) == bool(re.match(r'1\d-', example['rationale']))
        else:
            assert found[-1][1] == int(example['answer'])


@pytest.mark.parametrize('task', ['add', 'add_three'])
def test_sums(task):
    for example in rows(task):
        assert sum(numbers(example['inputs'])) == int(example['answer'])


def test_differences_and_products():
    for example in rows('subtract'):
        small, large = sorted(numbers(example['inputs']))
        assert large - small == int(example['answer'])
        if 'from' in example['inputs']:
            assert numbers(example['inputs']) == [small, large]
    for example in rows('multiply'):
        a, b = numbers(example['inputs'])
        assert a * b == int(example['answer'])


def story_value(text: str) -> int:
    """The answer of a story, from who gets, gives and loses."""
    start, *changes = numbers(text)
    owner = re.search(r'(\w+) ha[sd] \d', text)
    signs = []
    for verb in re.finditer(r'(?:(\w+) )?(gives|gets|got|brings|loses|lost|takes)', text):
        if verb[2] == 'gives':
            signs.append(-1 if verb[1] == owner[1] else 1)
        else:
            signs.append(1 if verb[2] in ('gets', 'got', 'brings') else -1)
    assert len(signs) == len(changes), text
    return start + sum(sign * change for sign, change in zip(signs, changes, strict=True))


@pytest.mark.parametrize('task', ['story', 'two_steps', 'two_losses'])
def test_stories(task):
    for example in rows(task):
        assert story_value(example['inputs']) == int(example['answer']), example


def test_two_losses_are_never_trained_on():
    assert not any(len(re.findall('loses', example['inputs'])) == 2 for example in rows('two_steps'))


def test_compare_and_parity():
    for example in rows('compare'):
        wanted = max if 'larger' in example['inputs'] else min
        assert wanted(numbers(example['inputs'])) == int(example['answer'])
    for example in rows('even_odd'):
        assert example['answer'] == ('even' if numbers(example['inputs'])[0] % 2 == 0 else 'odd')


def by_columns(rationale: str) -> int:
    found = equations(rationale)
    return 10 * found[-1][1] + found[0][1] % 10


def test_docstrings():
    results = doctest.testmod(arithmetic)
    assert results.attempted and not results.failed


def test_columns():
    for a in range(10, 100):
        for b in range(10, 100):
            assert by_columns(column_steps(a, b)) == a + b
            if a >= b:
                assert by_columns(borrow_steps(a, b)) == a - b
        for b in range(2, 10):
            assert by_columns(multiply_steps(a, b)) == a * b
