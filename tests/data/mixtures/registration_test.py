"""t5flan/data/mixtures/registration.py: mixtures made in gin have the rates they say, and every wrong name is one line."""

import pytest
import seqio

from t5flan import configurables
from t5flan.data.config import Blend, DataConfig
from t5flan.data.mixtures import mixing
from t5flan.data.mixtures import registration as blends
from t5flan.data.records.sources import IndexedSource
from t5flan.data.vocabulary.seqio_vocabulary import text_features
from t5flan.errors import UserError

SIZES = {'blend_a': 10, 'blend_b': 100, 'blend_c': 1000, 'blend_text': 5000}


@pytest.fixture(scope='module', autouse=True)
def tasks():
    for name, size in SIZES.items():
        source = IndexedSource({'train': [{'inputs': 'a', 'targets': 'b'}] * size})
        seqio.TaskRegistry.add(name, source=source, preprocessors=[], output_features=text_features())
    source = IndexedSource({'train': [{'targets': 'b'}]})
    seqio.TaskRegistry.add('blend_plain', source=source, preprocessors=[], output_features=text_features(inputs=False))
    seqio.MixtureRegistry.add('blend_ab', [('blend_a', 1), ('blend_b', 3)])
    yield
    for registry in (seqio.TaskRegistry, seqio.MixtureRegistry):
        for name in [name for name in registry.names() if name.startswith('blend_')]:
            registry.remove(name)
    blends._registered.clear()


def rates(*made: Blend) -> dict[str, float]:
    blends.register(made)
    return {task.name: pytest.approx(rate) for task, rate in mixing.tasks_and_rates(mixing.find_mixture(made[-1].name))}


def test_shares_keep_the_rates_inside_a_part():
    assert rates(Blend('blend_x', {'blend_ab': 8, 'blend_c': 2})) == {'blend_a': 0.2, 'blend_b': 0.6, 'blend_c': 0.2}


@pytest.mark.parametrize(
    'options, weights',
    [
        ({}, [10, 100, 1000]),
        ({'cap': 50}, [10, 50, 50]),
        ({'cap': 50, 'caps': {'blend_c': 200}}, [10, 50, 200]),
        ({'cap': 50, 'caps': {'blend_ab': 20, 'blend_b': 30}}, [10, 30, 50]),
        ({'temperature': 2}, [10**0.5, 10, 1000**0.5]),
        ({'cap': 100, 'temperature': 1 / 0.3}, [10**0.3, 100**0.3, 100**0.3]),
    ],
)
def test_by_examples(options, weights):
    made = rates(Blend('blend_x', by_examples=('blend_ab', 'blend_c'), **options))
    assert list(made.values()) == [weight / sum(weights) for weight in weights]


def test_caps_are_told():
    blends.register(
        [
            Blend('blend_x', by_examples=('blend_ab', 'blend_c'), cap=50, caps={'blend_a': 7}),
            Blend('blend_y', {'blend_x': 1, 'blend_text': 1}),
        ]
    )
    assert mixing.caps(mixing.find_mixture('blend_y')) == {'blend_a': 7, 'blend_b': 50, 'blend_c': 50}
    assert mixing.caps(mixing.find_mixture('blend_ab')) == {} == mixing.caps(mixing.find_mixture('blend_a'))


def test_blends_hold_blends_in_any_order():
    made = rates(Blend('blend_x', by_examples=('blend_[ab]',)), Blend('blend_y', {'blend_x': 0.9, 'blend_text': 0.1}))
    assert made == {'blend_a': 0.9 / 11, 'blend_b': 9 / 11, 'blend_text': 0.1}
    assert rates(Blend('blend_x', by_examples=('blend_c',)), Blend('blend_y', {'blend_x': 1}))  # made anew


def test_what_is_held_out_leaves_its_share_to_the_rest_of_its_part():
    assert rates(Blend('blend_x', {'blend_ab': 0.5, 'blend_c': 0.5}, without=('blend_b',))) == {
        'blend_a': 0.5,
        'blend_c': 0.5,
    }
    assert rates(Blend('blend_x', by_examples=('blend_[abc]', 'blend_text'), without=('blend_text', 'blend_c'))) == {
        'blend_a': 1 / 11,
        'blend_b': 10 / 11,
    }
    assert mixing.tasks_and_rates(mixing.find_mixture('blend_ab'))[1][1] == 0.75, 'the part itself is as it was'


@pytest.mark.parametrize(
    'made, line',
    [
        (
            [Blend('blend_x', {'blend_d': 1})],
            "Blend 'blend_x': there is no task or mixture 'blend_d'; the nearest is blend_",
        ),
        ([Blend('blend_x', by_examples=('blnd_ab',))], 'the nearest is blend_ab'),
        (
            [Blend('blend_x', by_examples=('nothing_*',))],
            "'nothing_\\*': no task has such a name. Set Blend.by_examples",
        ),
        ([Blend('blend_x', {'blend_*': 1})], 'a pattern has no share of its own'),
        ([Blend('blend_x', by_examples=('blend_ab',), caps={'blend_c': 5})], "'blend_c'.*Set Blend.caps"),
        (
            [Blend('blend_x', by_examples=('blend_ab',), without=('blend_bb',))],
            "'blend_bb'; the nearest is blend_b.*Set Blend.without",
        ),
        ([Blend('blend_x', by_examples=('blend_ab',), without=('blend_c',))], 'Set Blend.without'),
        (
            [Blend('blend_x', by_examples=('blend_ab',), without=('blend_*',))],
            'holds no task that Blend.without leaves',
        ),
        (
            [Blend('blend_x', {'blend_y': 1}), Blend('blend_y', {'blend_a': 1, 'blend_x': 1})],
            'holds itself: blend_x -> blend_y -> blend_x',
        ),
        ([Blend('blend_x', {'blend_x': 1})], 'holds itself: blend_x -> blend_x'),
        ([Blend('blend_ab', {'blend_a': 1})], "Blend.name='blend_ab' is the name of another"),
        ([Blend('blend_x', {'blend_a': 1}), Blend('blend_x', {'blend_b': 1})], 'is given to 2 blends'),
        (
            [Blend('blend_x', {'blend_a': 1, 'blend_plain': 1})],
            "Blend 'blend_x' cannot be made: .*different output features",
        ),
    ],
)
def test_a_wrong_blend_is_one_line(made, line):
    with pytest.raises(UserError, match=line) as error:
        blends.register(made)
    assert '\n' not in str(error.value)


def test_a_blend_is_made_by_gin_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'mix.gin').write_text("""
        DataConfig.mixture = 'blend_all'
        DataConfig.batch_size = 2
        DataConfig.vocabulary = 'bytes'
        DataConfig.feature_lengths = {'inputs': 4, 'targets': 4}
        DataConfig.blends = [@tasks/Blend(), @all/Blend()]
        tasks/Blend.name = 'blend_tasks'
        tasks/Blend.by_examples = ['blend_ab', 'blend_c']
        tasks/Blend.cap = %CAP
        CAP = 50
        all/Blend.name = 'blend_all'
        all/Blend.shares = {'blend_tasks': 0.9, 'blend_text': 0.1}
    """)
    settings = configurables.parse(['mix.gin'], ['CAP=10'])
    data = settings.read(DataConfig)
    assert list(rates(*data.blends).values()) == [0.3, 0.3, 0.3, 0.1]
    (tmp_path / 'again.gin').write_text(settings.operative_config())
    assert configurables.parse(['again.gin']).read(DataConfig) == data


def test_languages_by_size_keep_their_denoisers_rates():
    """mT5's alpha over mixtures: each weighs as its largest task, and keeps its own rates."""
    options = {'by_examples': ('blend_ab', 'blend_c'), 'temperature': 1 / 0.3, 'keep_rates': True}
    total = 100**0.3 + 1000**0.3
    expected = {'blend_a': 100**0.3 / total / 4, 'blend_b': 3 * 100**0.3 / total / 4, 'blend_c': 1000**0.3 / total}
    assert rates(Blend('blend_x', **options)) == expected
    assert rates(Blend('blend_x', **options, caps={'blend_ab': 50}))['blend_b'].expected == pytest.approx(
        3 / 4 * 50**0.3 / (50**0.3 + 1000**0.3)
    )
    assert rates(Blend('blend_x', **options, without=('blend_a',)))['blend_b'].expected == pytest.approx(
        100**0.3 / total
    )
    with pytest.raises(UserError, match='keep_rates'):
        Blend('blend_x', {'blend_ab': 1}, keep_rates=True)
