"""The generated reference: every command, flag and setting is on it, with its meaning."""

import dataclasses
import importlib.util
from types import ModuleType

import pytest

from t5flan import configurables
from t5flan.commands import COMMANDS
from t5flan.commands.arguments import Command, Flag
from t5flan.config import annotations
from t5flan.config.gin_files import packaged_files
from tests.docs.markdown import ROOT


def hook(name: str) -> ModuleType:
    """A file of docs/ that MkDocs loads."""
    spec = importlib.util.spec_from_file_location(f'docs_{name}', ROOT / 'docs' / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def reference() -> ModuleType:
    return hook('reference')


def test_every_command_and_flag_is_listed(reference):
    page = reference.commands_page()
    for command in COMMANDS.values():
        _, _, section = page.partition(f'\n## {command.name} ')
        section = section.partition('\n## ')[0]
        for flag in command.flags:
            assert f'| `{flag.name}' in section, f'{command.name} {flag.name}'


def test_every_setting_is_listed_with_type_default_and_meaning(reference):
    page = reference.settings_page()
    for name, cls in configurables.CONFIGURABLES.items():
        meanings = reference.meanings(cls)
        for field, _ in annotations.fields(cls):
            _, found, entry = page.partition(f'\n### `{name}.{field.name}` {{ #{name}.{field.name} }}\n')
            assert found, f'{name}.{field.name}'
            assert annotations.is_required(field) == entry.partition('\n{ .type }')[0].endswith('**required**')
            assert entry.partition('\n#')[0].strip().endswith(reference._escaped(meanings[field.name]))


def test_every_packaged_gin_file_is_listed(reference):
    page = reference.gin_files_page()
    for name in packaged_files():
        assert f'`{name.removesuffix(".gin")}`' in page


def test_a_setting_without_a_meaning_stops_the_build(reference, monkeypatch):
    monkeypatch.setattr(reference, 'CONFIGURABLES', {'Bare': Bare})
    with pytest.raises(reference.Undocumented, match=r'Bare\.size has no meaning'):
        reference.settings_page()


def test_a_flag_without_help_stops_the_build(reference, monkeypatch):
    command = Command('bare', 'does nothing', print, (Flag('--size', ''),))
    monkeypatch.setattr(reference, 'COMMANDS', {'bare': command})
    with pytest.raises(reference.Undocumented, match='t5flan bare --size has no help'):
        reference.commands_page()


def test_meanings_are_read_from_both_forms(reference):
    assert reference.meanings(Documented) == {
        'first': 'the first of them, which takes two lines.',
        'second': 'as the first.',
        'third': 'as the first.',
        'fourth': 'After the field.',
    }


def test_long_commands_are_folded_before_a_flag(reference):
    command = f't5flan train --workdir=runs/mine {"--gin.STEPS=1 " * 8}'.strip()
    lines = reference._folded(command)
    assert all(len(line) <= 82 for line in lines) and all(line.endswith(' \\') for line in lines[:-1])
    assert ' '.join(line.removesuffix(' \\').strip() for line in lines) == command


def test_text_is_escaped_outside_of_code(reference):
    assert reference._escaped("'.*/scale' and `a*b` [x]") == r"'.\*/scale' and `a*b` \[x\]"


@dataclasses.dataclass(frozen=True)
class Bare:
    """A class with a field that nothing describes."""

    size: int = 1


@dataclasses.dataclass(frozen=True)
class Documented:
    """Fields described in both ways.

    Attributes:
        first: the first of them,
            which takes two lines.
        second, third: as the first.
    """

    first: int = 1
    second: int = 2
    third: int = 3
    fourth: int = 4
    """After the field."""
