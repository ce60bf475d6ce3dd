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
        {'num_beams': 0},
        {'length_penalty': float('nan')},
    ],
)
def test_values_out_of_range_are_reported(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(UserError, match=f'^{name}={value}, expected .*Set --.*Decoding.{name}'):
        Decoding(**wrong)


@pytest.mark.parametrize(
    'wrong, words',
    [
        ({'early_stopping': 'soon'}, "early_stopping='soon', expected True, False or 'never'. Set Decoding.early"),
        ({'beam_scoring': 'x'}, "beam_scoring='x', expected one of huggingface, t5x. Set Decoding.beam_scoring"),
        ({'beam_scoring': 't5x', 'early_stopping': True}, "early_stopping=True, expected False: T5X's beam search has"),
        ({'num_beams': 2, 'temperature': 0.5}, 'num_beams=2 with temperature=0.5, expected temperature=0: beam search'),
        ({'num_beams': 2, 'num_samples': 3}, 'num_beams=2 with num_samples=3, expected num_samples=1: beam search'),
        ({'stop': 'Q:'}, "stop='Q:', expected a list of non-empty strings. Set --stop, or Decoding.stop"),
        ({'stop': ('',)}, "stop=\\('',\\), expected a list of non-empty strings"),
    ],
)
def test_wrong_beams_and_stop_strings_are_reported(wrong, words):
    with pytest.raises(UserError, match=f'^{words}'):
        Decoding(**wrong)


def test_stop_strings_become_a_tuple():
    assert Decoding(stop=['a', 'b']) == Decoding(stop=('a', 'b'))


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
    beams = ['Decoding.num_beams=4', "Decoding.early_stopping='never'", "Decoding.stop=['a b', '\\n']"]
    expected = Decoding(num_beams=4, early_stopping='never', stop=('a b', '\n'))
    assert configurables.parse([], beams).read(Decoding) == expected
    assert configurables.parse([], ['Decoding.early_stopping=True']).read(Decoding).early_stopping is True
