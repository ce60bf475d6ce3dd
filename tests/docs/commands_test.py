"""Every command line and every piece of gin in the README and the documentation is one that t5flan takes."""

import re
import shlex

import pytest

from t5flan import configurables
from t5flan.commands import COMMANDS
from t5flan.commands.arguments import parse_arguments
from t5flan.config import renames
from t5flan.config.gin_files import find_gin_file
from tests.docs.markdown import ROOT, blocks, commands, inline_commands, name_of, pages

PLACEHOLDERS = ('FILE', 'FORMAT', 'SRC', 'DST', '…', '...')
OUR_FILES = {block.title for path in pages() for block in blocks(path.read_text(encoding='utf-8')) if block.title}
"""Files that a page itself shows, such as my_mixture.gin."""


@pytest.fixture(autouse=True)
def present_names_only(monkeypatch):
    """An old name of a setting, which t5flan still understands, is a mistake in the documentation."""

    def refuse(old: str, new: str) -> None:
        raise AssertionError(f'{old} is now {new}')

    monkeypatch.setattr(renames, 'warn', refuse)


def words(line: str) -> list[str]:
    """A command line as the shell splits it, from the command's name on."""
    found = shlex.split(line, comments=True)
    return found[found.index('t5flan') + 1 :]


def in_page(kind) -> list:
    return [
        pytest.param(line, id=f'{name_of(path)}: {line[:60]}')
        for path in pages()
        for line in kind(path.read_text(encoding='utf-8'))
    ]


def check_flags(argv: list[str]) -> None:
    """The command and each flag exist, and so do the gin files and settings."""
    command = COMMANDS[argv[0]]
    if command.foreign:
        return
    known = {flag.name for flag in command.flags} | {'--help'} | ({'--gin_file'} if command.gin else set())
    files, settings = [], []
    for word in argv[1:]:
        flag, _, value = word.partition('=')
        if flag.startswith('--gin.'):
            assert command.gin, f't5flan {command.name} takes no settings'
            settings.append(word.removeprefix('--gin.'))
        elif flag.startswith('--'):
            assert flag in known, f't5flan {command.name} has no flag {flag}'
            if flag == '--gin_file' and value not in (*PLACEHOLDERS, *OUR_FILES):
                files.append(find_gin_file(value, '--gin_file'))
    if files and not any('=' not in setting for setting in settings):
        configurables.parse(files, settings)  # an unknown name is an error


@pytest.mark.parametrize('line', in_page(commands))
def test_command_lines_parse(line):
    argv = words(line)
    check_flags(argv)
    if not any(word in PLACEHOLDERS for word in argv):
        command, _ = parse_arguments(argv, COMMANDS)
        assert command.name == argv[0]


@pytest.mark.parametrize('line', in_page(inline_commands))
def test_inline_commands_exist(line):
    if line.split()[1].islower():
        check_flags(words(line))


@pytest.mark.parametrize(
    ('path', 'block'),
    [
        pytest.param(path, block, id=f'{name_of(path)}: {block.title or block.text[:40]}')
        for path in pages()
        for block in blocks(path.read_text(encoding='utf-8'))
        if block.language == 'gin'
    ],
)
def test_gin_parses(path, block, tmp_path, monkeypatch):
    file = tmp_path / 'page.gin'
    file.write_text(block.text, encoding='utf-8')
    monkeypatch.chdir(tmp_path)
    configurables.parse([str(file)], [])


def test_the_pages_show_commands():
    """The patterns above still find what they look for."""
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert any(line.startswith('t5flan train ') for line in commands(text))
    assert 'my_mixture.gin' in OUR_FILES


def test_the_readme_names_every_command():
    rows = [line for line in (ROOT / 'README.md').read_text(encoding='utf-8').splitlines() if line.startswith('| `')]
    named = {name for row in rows for name in re.findall(r'`(\w+)`', row.split('|')[1])}
    assert named >= set(COMMANDS)
