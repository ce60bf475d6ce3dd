"""Extraction and normalization of answers."""

import doctest

import pytest

from t5flan.scoring import answers
from t5flan.scoring.answers import extract_answer, extract_choice, extract_number, normalize_answer, normalize_space


def test_worked_examples():
    results = doctest.testmod(answers)
    assert results.attempted > 5 and results.failed == 0


@pytest.mark.parametrize(
    'text, expected',
    [
        ('3 + 4 = 7. So the answer is 7.', '7'),
        ('So the answer is 7. Wait, no. So the answer is 8.', '8'),
        ('so THE answer is 3.5', '3.5'),
        ('So the answer is $1,000.\nQ: another question', '$1,000'),
        ('So the answer is\n 12', '12'),
        ('So the answer is "a b".', 'a b'),
        ('So the answer is "a b."', 'a b'),
        ('So the answer is ...', '...'),
        ('So the answer is .', '.'),
        ('So the answer is', ''),
        ('', ''),
        ('blue', 'blue'),
    ],
)
def test_extract_answer(text, expected):
    assert extract_answer(text) == expected


def test_triggers_and_default():
    assert extract_answer('5 + 5 = 10\n#### 10', trigger='####') == '10'
    assert extract_answer('답은 3입니다. 따라서 답은 4', trigger=('So the answer is', '따라서 답은')) == '4'
    assert extract_answer('no trigger here', default='?') == '?'


def test_the_answer_of_a_target_is_extracted():
    for answer in ('12', 'yes', '3 March 2021', 'a, b, c', 'vingt-deux', '日本', '-4', '1/2'):
        assert extract_answer(f'Because of this. So the answer is {answer}.') == answer


@pytest.mark.parametrize(
    'text, expected',
    [
        ('$18', '18'),
        ('1,234 and 5,678.5.', '5678.5'),
        ('-3', '-3'),
        ('7-3', '3'),
        ('x = -12 apples', '-12'),
        ('３６ 個', '36'),
        ('20%', '20'),
        ('no number', None),
        ('room B12', '12'),
        ('80.000', '80.000'),
    ],
)
def test_extract_number(text, expected):
    assert extract_number(text) == expected


@pytest.mark.parametrize(
    'text, expected', [('(C)', 'C'), ('D.', 'D'), ('(a) one', 'A'), ('apple', None), ('The C one', 'C')]
)
def test_extract_choice(text, expected):
    assert extract_choice(text) == expected


def test_normalizations():
    assert normalize_answer("The  cat's, a HAT") == 'cats hat'
    assert normalize_answer('another then') == 'another then'
    assert normalize_space(' e\u0301  X.\n') == 'é X.'
