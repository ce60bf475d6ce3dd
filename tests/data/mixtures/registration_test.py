"""t5flan/data/mixtures/registration.py: mixtures from gin have the given rates; a wrong name is a one-line error."""

import pytest
import seqio

from t5flan import configurables
from t5flan.data.config import DataConfig
from t5flan.data.mixture_config import Mixture
from t5flan.data.mixtures import mixing
from t5flan.data.mixtures import registration as registration
from t5flan.data.records.sources import IndexedSource
from t5flan.data.vocabulary.seqio_vocabulary import text_features
from t5flan.errors import UserError

SIZES = {'mix_a': 10, 'mix_b': 100, 'mix_c': 1000, 'mix_text': 5000}


@pytest.fixture(scope='module', autouse=True)
def tasks():
    for name, size in SIZES.items():
        source = IndexedSource({'train': [{'inputs': 'a', 'targets': 'b'}] * size})
        seqio.TaskRegistry.add(name, source=source, preprocessors=[], output_features=text_features())
    source = IndexedSource({'train': [{'targets': 'b'}]})
    seqio.TaskRegistry.add('mix_plain', source=source, preprocessors=[], output_features=text_features(inputs=False))
    seqio.MixtureRegistry.add('mix_ab', [('mix_a', 1), ('mix_b', 3)])
    yield
    for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
        for name in [name for name in registry.names() if name.startswith('mix_')]:
            registry.remove(name)
    registration._registered.clear()


def rates(*made: Mixture) -> dict[str, float]:
    registration.register(made)
    return {task.name: pytest.approx(rate) for task, rate in mixing.tasks_and_rates(mixing.find_mixture(made[-1].name))}


def test_given_rates_keep_the_rates_inside_a_part():
    assert rates(Mixture('mix_x', {'mix_ab': 8, 'mix_c': 2})) == {'mix_a': 0.2, 'mix_b': 0.6, 'mix_c': 0.2}


@pytest.mark.parametrize(
    'options, weights',
    [
        ({}, [10, 100, 1000]),
        ({'cap': 50}, [10, 50, 50]),
        ({'cap': 50, 'caps': {'mix_c': 200}}, [10, 50, 200]),
        ({'cap': 50, 'caps': {'mix_ab': 20, 'mix_b': 30}}, [10, 30, 50]),
        ({'temperature': 2}, [10**0.5, 10, 1000**0.5]),
        ({'cap': 100, 'temperature': 1 / 0.3}, [10**0.3, 100**0.3, 100**0.3]),
    ],
)
def test_by_examples(options, weights):
    made = rates(Mixture('mix_x', by_examples=('mix_ab', 'mix_c'), **options))
    assert list(made.values()) == [weight / sum(weights) for weight in weights]


def test_caps_are_found():
    registration.register(
        [
            Mixture('mix_x', by_examples=('mix_ab', 'mix_c'), cap=50, caps={'mix_a': 7}),
            Mixture('mix_y', {'mix_x': 1, 'mix_text': 1}),
        ]
    )
    assert mixing.caps(mixing.find_mixture('mix_y')) == {'mix_a': 7, 'mix_b': 50, 'mix_c': 50}
    assert mixing.caps(mixing.find_mixture('mix_ab')) == {} == mixing.caps(mixing.find_mixture('mix_a'))


def test_mixtures_contain_mixtures_in_any_order():
    made = rates(Mixture('mix_x', by_examples=('mix_[ab]',)), Mixture('mix_y', {'mix_x': 0.9, 'mix_text': 0.1}))
    assert made == {'mix_a': 0.9 / 11, 'mix_b': 9 / 11, 'mix_text': 0.1}
    assert rates(Mixture('mix_x', by_examples=('mix_c',)), Mixture('mix_y', {'mix_x': 1}))  # replaces the first


def test_the_rate_of_an_excluded_task_goes_to_the_rest_of_its_part():
    assert rates(Mixture('mix_x', {'mix_ab': 0.5, 'mix_c': 0.5}, exclude=('mix_b',))) == {
        'mix_a': 0.5,
        'mix_c': 0.5,
    }
    assert rates(Mixture('mix_x', by_examples=('mix_[abc]', 'mix_text'), exclude=('mix_text', 'mix_c'))) == {
        'mix_a': 1 / 11,
        'mix_b': 10 / 11,
    }
    assert mixing.tasks_and_rates(mixing.find_mixture('mix_ab'))[1][1] == 0.75, 'the part itself does not change'


@pytest.mark.parametrize(
    'made, line',
    [
        (
            [Mixture('mix_x', {'mix_d': 1})],
            "Mixture 'mix_x': there is no task or mixture 'mix_d'; the nearest is mix_",
        ),
        ([Mixture('mix_x', by_examples=('mx_ab',))], 'the nearest is mix_ab'),
        (
            [Mixture('mix_x', by_examples=('nothing_*',))],
            "'nothing_\\*' matches no task. Set Mixture.by_examples",
        ),
        ([Mixture('mix_x', {'mix_*': 1})], "'mix_\\*' is a pattern, which takes no rate"),
        ([Mixture('mix_x', by_examples=('mix_ab',), caps={'mix_c': 5})], "'mix_c'.*Set Mixture.caps"),
        (
            [Mixture('mix_x', by_examples=('mix_ab',), exclude=('mix_bb',))],
            "'mix_bb'; the nearest is mix_b.*Set Mixture.exclude",
        ),
        ([Mixture('mix_x', by_examples=('mix_ab',), exclude=('mix_c',))], 'Set Mixture.exclude'),
        (
            [Mixture('mix_x', by_examples=('mix_ab',), exclude=('mix_*',))],
            'contains only tasks that Mixture.exclude names',
        ),
        (
            [Mixture('mix_x', {'mix_y': 1}), Mixture('mix_y', {'mix_a': 1, 'mix_x': 1})],
            'contains itself: mix_x -> mix_y -> mix_x',
        ),
        ([Mixture('mix_x', {'mix_x': 1})], 'contains itself: mix_x -> mix_x'),
        ([Mixture('mix_ab', {'mix_a': 1})], "Mixture.name='mix_ab' is the name of another"),
        ([Mixture('mix_x', {'mix_a': 1}), Mixture('mix_x', {'mix_b': 1})], "2 mixtures have Mixture.name='mix_x'"),
        (
            [Mixture('mix_x', {'mix_a': 1, 'mix_plain': 1})],
            "Mixture 'mix_x' cannot be registered: .*different output features",
        ),
    ],
)
def test_a_wrong_mixture_is_one_line(made, line):
    with pytest.raises(UserError, match=line) as error:
        registration.register(made)
    assert '\n' not in str(error.value)


def test_gin_alone_makes_a_mixture(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mix.gin').write_text("""
        DataConfig.mixture = 'mix_all'
        DataConfig.batch_size = 2
        DataConfig.vocabulary = 'bytes'
        DataConfig.feature_lengths = {'inputs': 4, 'targets': 4}
        DataConfig.mixtures = [@tasks/Mixture(), @all/Mixture()]
        tasks/Mixture.name = 'mix_tasks'
        tasks/Mixture.by_examples = ['mix_ab', 'mix_c']
        tasks/Mixture.cap = %CAP
        CAP = 50
        all/Mixture.name = 'mix_all'
        all/Mixture.rates = {'mix_tasks': 0.9, 'mix_text': 0.1}
    """)
    settings = configurables.parse(['mix.gin'], ['CAP=10'])
    data = settings.read(DataConfig)
    assert list(rates(*data.mixtures).values()) == [0.3, 0.3, 0.3, 0.1]
    (tmp_path / 'again.gin').write_text(settings.operative_config())
    assert configurables.parse(['again.gin']).read(DataConfig) == data


def test_languages_by_size_keep_their_denoisers_rates():
    """mT5's alpha over mixtures: each weighs as its largest task and keeps its own rates."""
    options = {'by_examples': ('mix_ab', 'mix_c'), 'temperature': 1 / 0.3, 'keep_rates': True}
    total = 100**0.3 + 1000**0.3
    expected = {'mix_a': 100**0.3 / total / 4, 'mix_b': 3 * 100**0.3 / total / 4, 'mix_c': 1000**0.3 / total}
    assert rates(Mixture('mix_x', **options)) == expected
    assert rates(Mixture('mix_x', **options, caps={'mix_ab': 50}))['mix_b'].expected == pytest.approx(
        3 / 4 * 50**0.3 / (50**0.3 + 1000**0.3)
    )
    assert rates(Mixture('mix_x', **options, exclude=('mix_a',)))['mix_b'].expected == pytest.approx(100**0.3 / total)
    with pytest.raises(UserError, match='keep_rates'):
        Mixture('mix_x', {'mix_ab': 1}, keep_rates=True)
