"""Limits of numbers: declared with the type, checked everywhere."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated

import pytest

from t5flan.config.checks import INT32, BelowOne, Count, Limits, Positive, Seed, check_limits, limits_of, require_count
from t5flan.errors import UserError


@dataclasses.dataclass(frozen=True)
class Example:
    steps: Count = 1
    seed: Seed = 0
    rate: BelowOne = 0.5
    scale: Positive | None = None
    angle: Annotated[float, Limits(-90, 90)] = 0.0
    lengths: Mapping[str, Count] = dataclasses.field(default_factory=dict)
    name: str = 'no limits'

    def __post_init__(self) -> None:
        check_limits(self)


@pytest.mark.parametrize(
    'given, message',
    [
        ({'steps': 0}, 'Example.steps=0, expected an integer of 1 or more. Set Example.steps'),
        ({'steps': True}, 'steps=True, expected an integer'),
        ({'steps': 1.0}, 'steps=1.0, expected an integer'),
        ({'steps': INT32 + 1}, f'expected an integer of at most {INT32}'),
        ({'seed': -1}, 'seed=-1, expected an integer of 0 or more'),
        ({'seed': 10**400}, 'expected an integer of at most'),
        ({'rate': 1.0}, 'rate=1.0, expected a number of 0 or more and below 1'),
        ({'rate': float('nan')}, 'rate=nan, expected a number'),
        ({'scale': 0}, 'scale=0, expected a number above 0, or None'),
        ({'scale': float('inf')}, 'scale=inf, expected a number above 0'),
        ({'angle': 91}, 'angle=91, expected a number from -90 to 90'),
        ({'lengths': {'inputs': 8, 'targets': -8}}, r"lengths\['targets'\]=-8, expected an integer of 1 or more"),
    ],
)
def test_a_number_out_of_its_limits_is_one_line(given, message):
    with pytest.raises(UserError, match=message) as raised:
        Example(**given)
    assert '\n' not in str(raised.value)


def test_numbers_at_their_limits_are_accepted():
    Example(steps=INT32, seed=0, rate=0, scale=None, angle=-90, lengths={'inputs': 1})
    require_count('X', INT32)


@pytest.mark.parametrize('alias', [Count, Seed, BelowOne, Positive])
def test_what_is_expected_is_in_words(alias):
    limits = limits_of(alias)
    for value in (-1, 10**10, None, 'x', float('nan')):
        assert limits.holds(value) or limits.expected(value).startswith(('an integer of ', 'a number '))
