"""The settings of t5flan/data: an error names the wrong setting and how to fix it."""

import pytest

from t5flan.data.config import DataConfig
from t5flan.data.corpus_config import FileTask, TextFiles
from t5flan.data.instruction_config import InstructionConfig
from t5flan.data.mixture_config import Mixture
from t5flan.errors import UserError

GIVEN = dict(mixture='m', batch_size=24, feature_lengths={'inputs': 8, 'targets': 4}, vocabulary='bytes')


@pytest.mark.parametrize(
    'wrong,setting',
    [
        ({'batch_size': 0}, 'DataConfig.batch_size=0'),
        ({'batch_size': True}, 'DataConfig.batch_size=True'),
        ({'feature_lengths': {'inputs': 8}}, "no length for 'targets'"),
        ({'feature_lengths': {'targets': 8}}, "no length for 'inputs'"),
        ({'feature_lengths': {'inputs': 8, 'targets': 0}}, r"DataConfig.feature_lengths\['targets'\]=0"),
        ({'format': 'decoder'}, "DataConfig.format='decoder', expected one of encoder_decoder, prefix_lm, causal_lm"),
        ({'too_long': 'cut'}, "DataConfig.too_long='cut'"),
        ({'streams': 5}, 'DataConfig.streams=5 does not divide DataConfig.batch_size=24'),
        ({'prefetch': -1}, 'DataConfig.prefetch=-1'),
        ({'mixture': ''}, "DataConfig.mixture=''"),
    ],
)
def test_wrong_settings(wrong, setting):
    with pytest.raises(UserError, match=setting) as error:
        DataConfig(**GIVEN | wrong)
    assert '\n' not in str(error.value) and 'Set ' in str(error.value)


@pytest.mark.parametrize(
    'make',
    [
        lambda: FileTask(name='a', train=''),
        lambda: FileTask(name='a', train='x', held_out=1.5),
        lambda: FileTask(name='a', train='x', rate=0),
        lambda: TextFiles(name='a', train='x', unit='word'),
        lambda: TextFiles(name='a', train='x', max_chars=0),
        lambda: TextFiles(name='', train='x'),
    ],
)
def test_wrong_files(make):
    with pytest.raises(UserError, match='Set (FileTask|TextFiles)'):
        make()


@pytest.mark.parametrize(
    'wrong,setting',
    [
        ({'few_shot': 1.5}, 'InstructionConfig.few_shot=1.5, expected a number from 0 to 1'),
        ({'inverted': True}, 'InstructionConfig.inverted=True'),
        ({'max_exemplars': 0}, 'InstructionConfig.max_exemplars=0'),
        ({'triggers': ('Why?', '')}, "InstructionConfig.triggers=''"),
        ({'triggers': ()}, 'InstructionConfig.triggers is empty and InstructionConfig.rationale=0.5'),
    ],
)
def test_wrong_instructions(wrong, setting):
    with pytest.raises(UserError, match=setting) as error:
        InstructionConfig(**wrong)
    assert '\n' not in str(error.value) and 'Set ' in str(error.value)


def test_one_path_or_a_list_becomes_a_tuple():
    assert DataConfig(**GIVEN).cot == () and DataConfig(**GIVEN, chat='a.json').chat == ('a.json',)
    assert DataConfig(**GIVEN, cot=['a', 'b']).cot == ('a', 'b')
    with pytest.raises(UserError, match='DataConfig.cot'):
        DataConfig(**GIVEN, cot=['a', ''])


def test_streams_divide_the_batch():
    for batch_size in range(1, 200):
        config = DataConfig(**GIVEN | {'batch_size': batch_size})
        assert batch_size % config.stream_count == 0 and config.stream_count <= max(1, batch_size // 8)
    assert DataConfig(**GIVEN).stream_count == 3
    assert DataConfig(**GIVEN, streams=12).stream_count == 12


def test_a_plain_language_model_needs_only_targets():
    config = DataConfig(**GIVEN | {'format': 'causal_lm', 'feature_lengths': {'targets': 8}})
    assert config.feature_lengths == {'targets': 8}


@pytest.mark.parametrize(
    'wrong,setting',
    [
        ({'rates': {'a': 1}, 'by_examples': ('b',)}, "Mixture 'x' has both rates and by_examples"),
        ({}, "Mixture 'x' has neither rates nor by_examples"),
        ({'rates': {'a': 0}}, r"Mixture.rates\['a'\]=0 of 'x', expected a number above 0"),
        ({'by_examples': ('a',), 'cap': 0}, "Mixture.cap=0 of 'x', expected an integer of 1 or more"),
        ({'by_examples': ('a',), 'caps': {'a': 0}}, r"Mixture.caps\['a'\]=0"),
        ({'rates': {'a': 1}, 'cap': 5}, 'has rates, which take no cap'),
        ({'by_examples': ('a',), 'temperature': 0}, 'Mixture.temperature=0'),
    ],
)
def test_wrong_mixtures(wrong, setting):
    with pytest.raises(UserError, match=setting) as error:
        Mixture('x', **wrong)
    assert '\n' not in str(error.value) and 'Set ' in str(error.value)
