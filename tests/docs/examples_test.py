"""The worked examples of docs/extend run as they stand on the page."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest

from t5flan.__main__ import main
from t5flan.tasks import register_all
from tests.docs.markdown import ROOT, blocks, commands

EXTEND = ROOT / 'docs' / 'extend'
IN_THE_TREE = 'model_option.md'
"""The page whose example changes t5flan itself."""


def page(name: str) -> str:
    return (EXTEND / name).read_text(encoding='utf-8')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of the reader's own, on the path; tasks that a page registers are forgotten afterwards."""
    import seqio

    register_all()  # the package's own tasks stay
    before = set(seqio.TaskRegistry.names())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in set(seqio.TaskRegistry.names()) - before:
        seqio.TaskRegistry.remove(name)
    for path in tmp_path.glob('*.py'):
        sys.modules.pop(path.stem, None)


def run_page(name: str, folder) -> None:
    """Writes the page's files into the folder and runs its other blocks of Python in one namespace."""
    namespace = {'__name__': 'tests.docs.example'}
    for block in blocks(page(name)):
        if block.language == 'python' and block.title:
            (folder / block.title).write_text(block.text, encoding='utf-8')
        elif block.language == 'python':
            exec(compile(block.text, name, 'exec'), namespace)


@pytest.mark.parametrize('name', sorted(path.name for path in EXTEND.glob('*.md') if path.name != IN_THE_TREE))
def test_the_example_runs(name, folder):
    run_page(name, folder)


def test_the_mixture_command_shows_the_new_task(folder, capsys):
    for block in blocks(page('task.md')):
        if block.title:
            (folder / block.title).write_text(block.text, encoding='utf-8')
    argv = shlex.split(next(line for line in commands(page('task.md')) if ' mixture ' in line))
    assert main(argv[argv.index('t5flan') + 1 :]) == 0
    assert 'reverse_words' in capsys.readouterr().out


def apply(diff: str, text: str) -> str:
    """The text with a diff applied: its context and its '-' lines must be there exactly once."""
    lines = [line for line in diff.splitlines() if line]
    before = '\n'.join(line[1:] for line in lines if line[0] in ' -')
    after = '\n'.join(line[1:] for line in lines if line[0] in ' +')
    assert text.count(f'\n{before}\n') == 1, f'expected once:\n{before}'
    return text.replace(f'\n{before}\n', f'\n{after}\n')


@pytest.mark.slow
def test_the_model_option_works_as_shown(tmp_path):
    for name in ('t5flan', 'tasks', 'gin'):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__'))
    code = []
    for block in blocks(page(IN_THE_TREE)):
        if block.language == 'diff':
            path = tmp_path / block.title
            path.write_text(apply(block.text, path.read_text(encoding='utf-8')), encoding='utf-8')
        elif block.language == 'python':
            code.append(block.text)
    environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
    done = subprocess.run(
        [sys.executable, '-c', '\n'.join(code)],
        cwd=tmp_path,
        env=environment | {'PYTHONPATH': str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_diff_that_no_longer_fits_is_told():
    with pytest.raises(AssertionError, match='expected once'):
        apply('+new\n old\n', '\nanother\n')
    assert apply('+new\n old\n', 'a\nold\nb\n') == 'a\nnew\nold\nb\n'
