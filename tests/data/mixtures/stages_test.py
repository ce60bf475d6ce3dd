"""t5flan/data/mixtures/stages.py: rates of every stage, the same examples on any hosts and after any stop."""

import numpy as np
import pytest
import seqio

from t5flan.data import skipped as broken
from t5flan.data.batches.pipeline import TrainPipeline, eval_batches, eval_examples
from t5flan.data.batches.streams import merge_positions
from t5flan.data.config import DataConfig
from t5flan.data.mixture_config import Stage
from t5flan.data.mixtures.stages import make_plan
from t5flan.data.preprocessing.tokenization import append_eos, tokenize
from t5flan.data.records.sources import IndexedSource
from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.data.vocabulary.seqio_vocabulary import text_features
from t5flan.errors import UserError

VOCABULARY = ByteVocabulary(extra_ids=50)
NAMES = ('stage_a', 'stage_b', 'stage_c', 'stage_text')


@pytest.fixture(scope='module', autouse=True)
def tasks():
    for name in NAMES:
        records = [{'inputs': f'{name[6]}{i}' + 'x' * (i % 5), 'targets': f'{name[6]}'} for i in range(40)]
        source = IndexedSource(
            {'train': records, 'validation': records[:3]} if name != 'stage_c' else {'train': records}
        )
        seqio.TaskRegistry.add(
            name, source=source, preprocessors=[tokenize, append_eos], output_features=text_features()
        )
    seqio.TaskRegistry.add(
        'stage_empty',
        source=IndexedSource({'train': []}),
        preprocessors=[tokenize, append_eos],
        output_features=text_features(),
    )
    seqio.TaskRegistry.add(
        'stage_absent',
        source=seqio.TextLineDataSource({'train': '/absent/file'}),
        preprocessors=[tokenize],
        output_features=text_features(),
    )
    seqio.MixtureRegistry.add('stage_ab', [('stage_a', 3), ('stage_b', 1)])
    seqio.MixtureRegistry.add('stage_broken', [('stage_a', 1), ('stage_empty', 1), ('stage_absent', 1), ('stage_b', 1)])
    seqio.MixtureRegistry.add('stage_outer', [('stage_broken', 1), ('stage_c', 1)])
    yield
    for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
        for name in [name for name in registry.names() if name.startswith('stage_')]:
            registry.remove(name)


def config(mixture='stage_ab', **options):
    return DataConfig(
        **{
            'mixture': mixture,
            'batch_size': 8,
            'feature_lengths': {'inputs': 16, 'targets': 8},
            'vocabulary': 'bytes',
            'streams': 4,
            'prefetch': 0,
        }
        | options
    )


STAGED = dict(stages=(Stage('stage_c', 5, previous=0.25), Stage('stage_b', 9)), mixed_in={'stage_text': 0.2})


def rates(settings, stage):
    return {name: pytest.approx(rate) for name, rate in make_plan(settings, VOCABULARY).named_rates(stage).items()}


def test_rates_of_stages():
    settings = config(**STAGED)
    assert rates(settings, 0) == {'stage_a': 0.6, 'stage_b': 0.2, 'stage_c': 0.0, 'stage_text': 0.2}
    assert rates(settings, 1) == {'stage_a': 0.15, 'stage_b': 0.05, 'stage_c': 0.6, 'stage_text': 0.2}
    assert rates(settings, 2) == {'stage_a': 0.0, 'stage_b': 0.8, 'stage_c': 0.0, 'stage_text': 0.2}
    plan = make_plan(settings, VOCABULARY)
    assert [plan.stage_of(batch) for batch in (0, 4, 5, 8, 9, 100)] == [0, 0, 1, 1, 2, 2]


def names_of(batch):
    """The first byte of each example's targets, which is its task's letter."""
    first = (batch['decoder_positions'] == 0) & (batch['decoder_segment_ids'] > 0)
    return VOCABULARY.decode(batch['decoder_target_tokens'][first])


def test_a_stage_starts_at_its_batch():
    with TrainPipeline(config(**STAGED), VOCABULARY) as pipeline:
        letters = [set(names_of(next(pipeline)[0])) for _ in range(14)]
        report = pipeline.report()['tasks']
    assert all(made <= set('abt') for made in letters[:5])
    assert all('c' in made for made in letters[5:9]) and set.union(*letters[5:9]) == set('abct')
    assert all(made <= set('bt') for made in letters[9:])
    for name, task in report.items():
        assert task['share'] == pytest.approx(task['rate'], abs=0.05), name
    assert sum(task['rate'] for task in report.values()) == pytest.approx(1)


@pytest.mark.parametrize('hosts', [2, 4, 8])
def test_several_hosts_have_the_batches_of_one(hosts):
    settings = config(**STAGED)
    parts = [TrainPipeline(settings, VOCABULARY, process_index=host, process_count=hosts) for host in range(hosts)]
    for _, (batch, position) in zip(range(12), TrainPipeline(settings, VOCABULARY)):
        made = [next(part) for part in parts]
        for name in batch:
            np.testing.assert_array_equal(batch[name], np.concatenate([rows[name] for rows, _ in made]))
        assert merge_positions([at for _, at in made]) == position


def test_every_stop_resumes_with_the_same_batches():
    settings = config(**STAGED)
    whole = [batch for _, batch in zip(range(14), TrainPipeline(settings, VOCABULARY))]
    for stop in range(1, 13):
        again = TrainPipeline(settings, VOCABULARY)
        again.start(whole[stop - 1][1])
        for batch, position in whole[stop : stop + 2]:
            made, at = next(again)
            assert at == position
            for name in batch:
                np.testing.assert_array_equal(made[name], batch[name])


def test_the_order_before_a_stage_is_that_without_stages():
    plain, staged = (
        TrainPipeline(settings, VOCABULARY) for settings in (config(), config(stages=(Stage('stage_b', 3),)))
    )
    for batch in range(4):
        (one, _), (other, _) = next(plain), next(staged)
        assert (batch == 3) or all((one[name] == other[name]).all() for name in one)


def test_sampled_shares_are_the_rates():
    names = [f'stage_many_{i}' for i in range(60)]
    records = [{'inputs': 'a', 'targets': 'b'}] * 50
    for name in names:
        seqio.TaskRegistry.add(
            name,
            source=IndexedSource({'train': records}),
            preprocessors=[tokenize, append_eos],
            output_features=text_features(),
        )
    seqio.MixtureRegistry.add('stage_many', [(name, 1.1**i) for i, name in enumerate(names)])
    settings = config(
        'stage_many',
        feature_lengths={'inputs': 128, 'targets': 128},
        batch_size=64,
        streams=8,
        mixed_in={'stage_text': 0.05},
    )
    with TrainPipeline(settings, VOCABULARY) as pipeline:
        while sum(task['examples'] for task in pipeline.report()['tasks'].values()) < 50_000:
            next(pipeline)
        report = pipeline.report()['tasks']
    for name, task in report.items():
        # Shares are exact to one slot at the end of a block; the streams stop in the middle of one.
        assert task['share'] == pytest.approx(task['rate'], abs=0.0005), name
        assert task['share'] == pytest.approx(task['rate'], rel=0.01) or task['rate'] < 0.02, name


def test_evaluation_sees_every_stage():
    settings = config(split='validation', **STAGED)
    letters = {letter for batch in eval_batches(settings, VOCABULARY) for letter in names_of(batch)}
    assert letters == set('abt')  # stage_c has no validation split


def test_a_broken_task_stops_the_run_or_is_skipped():
    for mixture in ('stage_outer', 'stage_broken'):
        with pytest.raises(UserError, match="split 'train' of .* has no records") as error:
            make_plan(config(mixture), VOCABULARY)
        assert '\n' not in str(error.value)
    plan = make_plan(config('stage_outer', skip_broken=True), VOCABULARY)
    assert plan.named_rates() == {'stage_a': 0.25, 'stage_b': 0.25, 'stage_c': 0.5}
    assert set(plan.skipped) == {'stage_empty', 'stage_absent'} and 'no records' in plan.skipped['stage_empty']
    with TrainPipeline(config('stage_outer', skip_broken=True), VOCABULARY) as pipeline:
        next(pipeline)
        assert pipeline.report()['skipped'] == plan.skipped
        assert '2 tasks skipped (skip_broken):' in pipeline.report_lines()
    with pytest.raises(UserError, match='stage_empty: none of its tasks can be used.*no records'):
        make_plan(config('stage_empty', skip_broken=True), VOCABULARY)


def test_tasks_skipped_at_registration_are_reported(monkeypatch):
    monkeypatch.setattr(broken, '_skipped', {})
    with (
        pytest.raises(UserError, match=r'bad file. Set --skip_broken to continue without task_x\.'),
        broken.skip_on_error('task_x', False),
    ):
        raise UserError('bad file.')
    with broken.skip_on_error('task_x', True):
        raise UserError('bad\nfile.')
    assert make_plan(config(), VOCABULARY).skipped == {'task_x': 'bad file.'}
    assert broken.summary({f't{i}': 'why' for i in range(7)})[0::6] == [
        '7 tasks skipped (skip_broken):',
        '  and 2 more',
    ]
    assert broken.summary({}) == []


@pytest.mark.parametrize(
    'wrong, line',
    [
        (dict(stages=(Stage('stage_d', 3),)), "no task or mixture 'stage_d'.*Set Stage.mixture"),
        (dict(mixed_in={'stage_txt': 0.1}), "'stage_txt'; the nearest are stage_text.*Set DataConfig.mixed_in"),
    ],
)
def test_unknown_names(wrong, line):
    with pytest.raises(UserError, match=line):
        make_plan(config(**wrong), VOCABULARY)


@pytest.mark.parametrize(
    'make, line',
    [
        (
            lambda: config(stages=(Stage('stage_b', 5), Stage('stage_a', 5))),
            "Stage.start_step=5 of 'stage_a', expected more than 5",
        ),
        (lambda: Stage('stage_b', 0), 'Stage.start_step=0'),
        (lambda: Stage('stage_b', 1, previous=1.0), 'Stage.previous=1.0, expected less than 1'),
        (lambda: Stage('stage_b', 1, previous=-0.1), 'Stage.previous=-0.1'),
        (lambda: config(mixed_in={'stage_a': 0.5, 'stage_b': 0.5}), 'sum to less than 1'),
        (lambda: config(mixed_in={'stage_a': 2}), r"DataConfig.mixed_in\['stage_a'\]=2"),
    ],
)
def test_wrong_stages(make, line):
    with pytest.raises(UserError, match=line):
        make()


def test_examples_of_one_task_ignore_stages():
    found = eval_examples(config(split='validation', **STAGED), VOCABULARY, task='stage_b')
    assert len(found) == 3 and all(example['targets_pretokenized'] == 'b' for example in found)
