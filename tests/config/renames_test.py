"""t5flan/config/renames.py: old names of settings are understood everywhere, with one warning each."""

import dataclasses
from pathlib import Path

import pytest

from t5flan import configurables
from t5flan.config import renames
from t5flan.data.config import DataConfig
from t5flan.data.mixture_config import Mixture, Stage
from t5flan.errors import UsageError

OLD = """
    DataConfig.mixture = 'all'
    DataConfig.batch_size = 2
    DataConfig.vocabulary = 'bytes'
    DataConfig.feature_lengths = {'inputs': 4, 'targets': 4}
    DataConfig.blends = [@tasks/Blend(), @all/Blend()]
    tasks/Blend.name = 'tasks'
    tasks/Blend.by_examples = ['a', 'b']
    Blend.without = %HELD_OUT
    HELD_OUT = ['b']
    all/Blend.name = 'all'
    all/Blend.shares = {'tasks': 1}
    Stage.mixture = 'a'
    Stage.begins = 3
    Stage.former = 0.5
    DataConfig.stages = %STAGES
    STAGES = [@Stage()]
    NaturalInstructionsConfig.without_categories = ['Translation']
"""


def write(folder: Path, text: str, name: str = 'run.gin') -> str:
    (folder / name).write_text(text)
    return str(folder / name)


@pytest.fixture
def warned(capsys):
    """Returns the lines on stderr since the last call."""
    renames.warn.cache_clear()
    yield lambda: capsys.readouterr().err.splitlines()
    renames.warn.cache_clear()


def test_old_names_are_read_with_one_warning_each(tmp_path, warned):
    settings = configurables.parse([write(tmp_path, OLD)])
    data = settings.read(DataConfig)
    assert data.mixtures == (
        Mixture('tasks', by_examples=('a', 'b'), exclude=('b',)),
        Mixture('all', rates={'tasks': 1.0}, exclude=('b',)),
    )
    assert data.stages == (Stage('a', start_step=3, previous=0.5),)
    assert data.natural.exclude_categories == ('Translation',)
    assert warned() == [
        f't5flan: the setting {old} is now {new}'
        for old, new in (
            ('Blend', 'Mixture'),
            ('DataConfig.blends', 'DataConfig.mixtures'),
            ('Blend.without', 'Mixture.exclude'),
            ('Blend.shares', 'Mixture.rates'),
            ('Stage.begins', 'Stage.start_step'),
            ('Stage.former', 'Stage.previous'),
            ('NaturalInstructionsConfig.without_categories', 'NaturalInstructionsConfig.exclude_categories'),
        )
    ]
    text = settings.operative_config()
    assert 'DataConfig.mixtures = [@tasks/Mixture(), @all/Mixture()]' in text and 'Stage.start_step = 3' in text
    assert 'Blend' not in text
    assert configurables.parse([write(tmp_path, text, 'again.gin')]).read(DataConfig) == data and warned() == []


@pytest.mark.parametrize(
    'bindings, warnings',
    [
        (['DataConfig.blends=[@more/Blend()]'], {'Blend', 'Blend.shares', 'DataConfig.blends'}),
        (['MORE=[@more/Blend()]', 'DataConfig.mixtures=%MORE'], {'Blend', 'Blend.shares'}),
    ],
)
def test_old_names_on_the_command_line(tmp_path, warned, bindings, warnings):
    lines = [
        line for line in OLD.splitlines() if 'Blend' not in line and 'HELD_OUT' not in line and 'Stage' not in line
    ]
    name = write(tmp_path, '\n'.join(lines).replace('without', 'exclude').replace('%STAGES', '[]'))
    settings = configurables.parse([name], [*bindings, 'more/Blend.name=more', "more/Blend.shares={'c': 2}"])
    data = settings.read(DataConfig)
    assert data.mixtures == (Mixture('more', {'c': 2.0}),)
    assert {line.split()[3] for line in warned()} == warnings
    again = configurables.parse([write(tmp_path, settings.operative_config(), 'again.gin')])
    assert again.read(DataConfig) == data


def test_a_later_value_wins_under_either_name(tmp_path, warned):
    text = OLD + 'Stage.start_step = 7\n'
    for bindings, step in (([], 7), (['Stage.begins=9'], 9)):
        assert configurables.parse([write(tmp_path, text)], bindings).read(DataConfig).stages[0].start_step == step


@pytest.mark.parametrize(
    'binding, expected',
    [
        ('Blend.nothing=1', 'there is no setting Blend.nothing'),
        ('Mixture.nam=1', 'there is no setting Mixture.nam: did you mean Mixture.name?'),
        ('Stage.begns=1', 'there is no setting Stage.begns'),
    ],
)
def test_a_misspelled_old_name_is_an_error(tmp_path, binding, expected):
    with pytest.raises(UsageError) as error:
        configurables.parse([write(tmp_path, OLD)], [binding])
    assert expected in str(error.value) and 'did you mean Blend' not in str(error.value)


def test_saved_settings_are_translated():
    saved = {
        'mixture': 'm',
        'blends': [{'name': 'b', 'shares': {'without': 1}, 'without': ['x']}],
        'stages': [{'mixture': 'a', 'begins': 3, 'former': 0.5}],
        'denoisers': {'mine': [{'name': 'r'}]},
        'instructions.few_shot': 0.5,
        'streams': 3,
        'gone': {'begins': 1},
    }
    assert renames.current_settings(DataConfig, saved) == {
        'mixture': 'm',
        'mixtures': [{'name': 'b', 'rates': {'without': 1}, 'exclude': ['x']}],
        'stages': [{'mixture': 'a', 'start_step': 3, 'previous': 0.5}],
        'denoisers': {'mine': [{'name': 'r'}]},
        'instructions.few_shot': 0.5,
        'streams': 3,
        'gone': {'begins': 1},
    }


def test_every_rename_leads_to_a_field():
    assert set(configurables.RENAMED_CLASSES.values()) <= set(configurables.CONFIGURABLES)
    assert not set(configurables.RENAMED_CLASSES) & set(configurables.CONFIGURABLES)
    for kind in configurables.CONFIGURABLES.values():
        names = {field.name for field in dataclasses.fields(kind)}
        renamed = getattr(kind, 'RENAMED', {})
        assert set(renamed.values()) <= names and not set(renamed) & names, kind.__name__
