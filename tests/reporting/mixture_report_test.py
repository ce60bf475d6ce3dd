"""t5flan/reporting/mixture_report.py: the table of `t5flan mixture`."""

import json

import numpy as np
import pytest
import seqio

from t5flan.data import skipped
from t5flan.data.config import DataConfig
from t5flan.data.mixture_config import Mixture, Stage
from t5flan.data.mixtures.registration import register
from t5flan.data.preprocessing.examples import example_fn
from t5flan.data.preprocessing.features import LOSS_WEIGHTS
from t5flan.data.preprocessing.tokenization import append_eos, tokenize
from t5flan.data.records.sources import IndexedSource
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.data.vocabulary.seqio_vocabulary import text_features
from t5flan.errors import UserError
from t5flan.reporting import mixture_report as describe
from t5flan.tasks import register_all
from tests.data.preprocessing.spans import corrupt


def test_the_numbers_match_the_examples(tmp_path, capsys):
    for name, size in (('describe_short', 3), ('describe_long', 12)):
        records = [{'inputs': name[-5] * size, 'targets': 'b' * (i % 2 + 1)} for i in range(10)]
        seqio.TaskRegistry.add(
            name,
            source=IndexedSource({'train': records}),
            preprocessors=[tokenize, append_eos],
            output_features=text_features(),
        )
    seqio.MixtureRegistry.add('describe_both', [('describe_short', 3), ('describe_long', 1)])
    settings = DataConfig('describe_both', 4, {'inputs': 8, 'targets': 3}, 'bytes', too_long='drop')
    made = describe.main(settings, str(tmp_path / 'out.json'), shown=2)
    assert made == json.loads((tmp_path / 'out.json').read_text('utf-8'))
    long, short = made['tasks']
    assert (short['task'], short['rate'], short['records'], short['sampled'], short['too_long']) == (
        'describe_short',
        0.75,
        10,
        10,
        0,
    )
    assert (short['input_tokens'], short['target_tokens']) == (4.0, 2.5)
    assert (long['input_tokens'], long['too_long'], long['rate']) == (13.0, 1.0, 0.25)
    assert [example['task'] for example in made['examples']] == ['describe_long', 'describe_short']
    printed = capsys.readouterr().out
    assert 'describe_short' in printed and '75.00%' in printed and pytest.approx(2.5) == short['target_tokens']


@example_fn
def every_other(example, context):
    """A variant, with loss only on the last letter of the targets."""
    few = context.rng.random() < 0.5
    weights = np.zeros(len(example['targets']), np.float32)
    weights[-1] = 1
    return {**example, 'variant': 'few-shot, options' if few else 'zero-shot, options', LOSS_WEIGHTS: weights}


@pytest.fixture(scope='module', autouse=True)
def two_tasks():
    for name, size in (('describe_big', 300), ('describe_tiny', 2)):
        records = [{'inputs': f'question {i}', 'targets': 'ab'} for i in range(size)]
        seqio.TaskRegistry.add(
            name,
            source=IndexedSource({'train': records}),
            preprocessors=[tokenize, every_other],
            output_features=text_features(),
        )


def test_caps_variants_and_loss_weights(capsys):
    register([Mixture('describe_mixed', by_examples=('describe_big', 'describe_tiny'), cap=18)])
    settings = DataConfig('describe_mixed', 4, {'inputs': 32, 'targets': 8}, 'bytes')
    made = describe.main(settings)
    big, tiny = made['tasks']
    assert (big['records'], big['cap'], big['rate'], big['sampled']) == (300, 18, 0.9, 100)
    assert (tiny['records'], tiny['cap'], tiny['rate'], tiny['sampled']) == (2, 18, 0.1, 2)
    assert sum(big['variants'].values()) == 100 and 30 < big['variants']['few-shot, options'] < 70
    assert (big['target_tokens'], big['loss_tokens']) == (2.0, 1.0)
    assert made['examples'][0]['marked'][1:] == [['a', False], ['b', True]]
    assert made['examples'][0]['inputs'].startswith('question')
    printed = capsys.readouterr().out
    assert 'a ⟦b⟧' in printed and 'options 100%' in printed and '90.00%' in printed


def test_stages_have_a_rate_each():
    settings = DataConfig(
        'describe_big', 4, {'inputs': 32, 'targets': 8}, 'bytes', stages=(Stage('describe_tiny', 50, previous=0.25),)
    )
    made = describe.main(settings)
    assert [stage['start_step'] for stage in made['stages']] == [0, 50]
    assert [(row['task'], row['rates']) for row in made['tasks']] == [
        ('describe_big', [1.0, 0.25]),
        ('describe_tiny', [0.0, 0.75]),
    ]


def test_a_broken_task_is_skipped_with_skip_broken(capsys):
    @example_fn
    def requires_a_field(example, context):
        raise UserError("task describe_bad: no field 'premise'. Fix the mapping.")

    seqio.TaskRegistry.add(
        'describe_bad',
        source=IndexedSource({'train': [{'inputs': 'a', 'targets': 'b'}]}),
        preprocessors=[requires_a_field],
        output_features=text_features(),
    )
    seqio.MixtureRegistry.add('describe_with_bad', [('describe_bad', 1), ('describe_tiny', 1)])
    settings = DataConfig('describe_with_bad', 4, {'inputs': 32, 'targets': 8}, 'bytes')
    with pytest.raises(UserError, match="no field 'premise'"):
        describe.main(settings)
    made = describe.main(DataConfig('describe_with_bad', 4, {'inputs': 32, 'targets': 8}, 'bytes', skip_broken=True))
    assert [(row['task'], row['rate']) for row in made['tasks']] == [('describe_tiny', 1.0)]
    assert (
        "1 task skipped (skip_broken):\n  describe_bad: task describe_bad: no field 'premise'"
        in capsys.readouterr().out
    )


def test_without_a_sample_nothing_is_read(tmp_path, capsys):
    def unread():
        raise AssertionError('a source was opened')

    class Counted(IndexedSource):
        def num_input_examples(self, split):
            return 30

    for name in ('describe_unread_a', 'describe_unread_b'):
        seqio.TaskRegistry.add(
            name, source=Counted({'train': unread}), preprocessors=[tokenize], output_features=text_features()
        )
    register(
        [
            Mixture(
                'describe_unread',
                by_examples=('describe_unread_a', 'describe_unread_b'),
                caps={'describe_unread_a': 10},
            )
        ]
    )
    skipped.note('describe_unread', ['part_c: it is not here. Set C.'])
    made = describe.main(
        DataConfig('describe_unread', 4, {'inputs': 32, 'targets': 8}, 'bytes'), str(tmp_path / 'a.json'), sample=0
    )
    assert [(row['task'][-1], row['records'], row['cap'], row['rate']) for row in made['tasks']] == [
        ('a', 30, 10, 0.25),
        ('b', 30, None, 0.75),
    ]
    assert made['examples'] == [] and made['tasks'][0]['input_tokens'] is None
    assert made['notes'] == {'describe_unread': ['part_c: it is not here. Set C.']}
    printed = capsys.readouterr().out
    assert '25.00%' in printed and 'describe_unread lacks:' in printed and 'part_c: it is not here' in printed


def test_denoisers_show_one_example_each_with_its_spans(capsys):
    register_all()
    settings = DataConfig(
        'stdlib_docs_ul2', 4, {'inputs': 512, 'targets': 512}, 'bytes', mode_tokens=('[NLU]', '[NLG]', '[S2S]')
    )
    made = describe.main(settings, sample=20)
    rows = {row['task'].removeprefix('stdlib_docs_ul2_'): row for row in made['tasks']}
    assert len(made['examples']) == len(rows) == 7
    assert (
        rows['x_8_50']['target_share'] == pytest.approx(0.5, abs=0.02) and 0.15 < rows['r_3_15']['target_share'] < 0.2
    )
    assert rows['x_3_50']['few_sentinels'] > 0 and rows['r_3_15']['few_sentinels'] == 0, (
        '100 sentinels do not suffice for 128 spans'
    )
    vocabulary = load_vocabulary('bytes', 100, settings.mode_tokens)
    for example in made['examples']:
        if example['task'].endswith('_s'):
            assert 'spans' not in example and example['inputs'].startswith('[S2S]')
            continue
        numbers = [number for _, number in example['spans'] if number is not None]
        assert numbers == list(range(len(numbers))) and len(numbers) == example['inputs'].count('<extra_id_')
        for piece, number in example['spans']:
            if number is not None:
                assert f'<extra_id_{number}>{piece}' in example['targets']
        assert example['inputs'].startswith(('[NLU]', '[NLG]'))
    printed = capsys.readouterr().out
    assert '⟧0' in printed and 'few sentinels' in printed and vocabulary.vocab_size == 362


def test_a_span_keeps_the_space_before_its_first_word(shared):
    vocabulary = load_vocabulary(shared / 'data/vocab/t5_cc_all_32000/sentencepiece.model')
    tokens = np.array(vocabulary.encode('Thank you for inviting me to your party last week'), np.int32)
    noise = np.zeros(len(tokens), bool)
    noise[[2, 3, 8]] = True
    inputs, targets = corrupt(tokens, noise, vocabulary)
    made = describe._spans({'inputs': inputs, 'targets': targets}, vocabulary)['spans']
    assert made == [
        ['Thank you', None],
        [' for inviting', 0],
        [' me to your party', None],
        [' last', 1],
        [' week', None],
    ]
