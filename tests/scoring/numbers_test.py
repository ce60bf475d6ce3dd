"""Numbers as many languages write them."""

import doctest

import pytest

from t5flan.scoring import numbers
from t5flan.scoring.numbers import read_numbers


def test_worked_examples():
    results = doctest.testmod(numbers)
    assert results.attempted and not results.failed


@pytest.mark.parametrize(
    ('text', 'found'),
    [
        ('', []),
        ('none', []),
        ('18', ['18']),
        ('18.00', ['18']),
        ('$1,234.50!', ['1234.5']),
        ('1,14,200', ['114200']),  # Indian grouping
        ("1'000", ['1000']),
        ('1,2', ['1', '2']),
        ('1234,567', ['1234', '567']),
        ('.5', ['0.5']),
        ('7-3', ['7', '3']),
        ('7 - 3', ['7', '3']),
        ('= -3', ['-3']),
        ('−3 and –4', ['-3', '-4']),
        ('(−3)', ['-3']),
        ('20%', ['20']),
        ('3/4', ['3', '4']),
        ('B12', ['12']),
        ('0010', ['10']),
        ('100', ['100']),
        ('３６ 個', ['36']),
        ('৭০ টাকা', ['70']),
        ('౧౮', ['18']),
        ('๑๒.๕', ['12.5']),
        ('٢٣', ['23']),
        ('7万', ['70000']),
        ('1.5万', ['15000']),
        ('3億5千万', ['350000000']),
        ('12億3456万', ['1234560000']),
        ('2千', ['2000']),
        ('5만', ['50000']),
        ('②', ['2']),  # NFKC
        ('1' * 60, ['1' * 60]),
        ('1' * 5000, ['1' * 5000]),
    ],
)
def test_decimal_point(text, found):
    assert read_numbers(text) == found


@pytest.mark.parametrize(
    ('text', 'found'),
    [
        ('1.234', ['1234']),
        ('1.234,50 €', ['1234.5']),
        ('114,200', ['114200']),
        ('3,5', ['3.5']),
        ('3.5', ['3.5']),
        ('5 600', ['5600']),
        ('5\u202f600 euros', ['5600']),
        ('5 60', ['5', '60']),
        ('70 000,25', ['70000.25']),
        ('1.234.567', ['1234567']),
        ('Antwort 11.', ['11']),
    ],
)
def test_decimal_comma(text, found):
    assert read_numbers(text, decimal_comma=True) == found
