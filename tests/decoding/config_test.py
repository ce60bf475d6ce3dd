"""The one setting of decoding: checked, replaced by keywords, set in gin."""

import dataclasses

import numpy as np
import pytest

from t5flan import configurables
from t5flan.decoding.config import Decoding, DecodingSettings
from t5flan.errors import UserError


def test_greedy_is_the_default():
    assert Decoding().greedy and not Decoding(temperature=0.7).greedy
    assert {'max_new_tokens', *DecodingSettings.__annotations__} == {
        field.name for field in dataclasses.fields(Decoding)
    }


@pytest.mark.parametrize(
    'wrong',
    [
        {'temperature': -1},
        {'temperature': float('nan')},
        {'temperature': float('inf')},
        {'top_k': -1},
        {'top_k': 1.5},
        {'top_p': 0},
        {'top_p': 1.1},
        {'max_new_tokens': 0},
        {'num_samples': -1},
        {'batch_size': 0},
        {'batch_size': True},
        {'seed': 2**31},
    ],
)
def test_values_out_of_range_are_reported(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UserError, match=f'^{name}={value}, expected .*Set --.*Decoding.{name}'):
        Decoding(**wrong)


def test_numpy_numbers_become_python_numbers():
    decoding = Decoding(max_new_tokens=np.int32(4), temperature=np.float32(0.5), seed=np.int64(3))
    assert decoding == Decoding(max_new_tokens=4, temperature=0.5, seed=3)
    assert [type(value) for value in (decoding.max_new_tokens, decoding.temperature, decoding.seed)] == [
        int,
        float,
        int,
    ]


def test_an_unknown_keyword_is_reported_with_the_nearest_name():
    assert Decoding(top_k=4).replace(seed=2) == Decoding(top_k=4, seed=2)
    with pytest.raises(UserError, match='^temprature=0.7 is not a decoding setting; did you mean temperature\\?$'):
        Decoding().replace(temprature=0.7)
    with pytest.raises(UserError, match='expected one of max_new_tokens, temperature'):
        Decoding().replace(x=1)


def test_gin_sets_it(tmp_path):
    (tmp_path / 'decoding.gin').write_text('Decoding.top_p = 0.9\nDecoding.temperature = 1.0\n')
    settings = configurables.parse([str(tmp_path / 'decoding.gin')], ['Decoding.temperature=0.7'])
    assert settings.read(Decoding) == Decoding(temperature=0.7, top_p=0.9)
