"""Set-up: metadata, locked versions, the Makefile's choice of Python, and a wheel that works from any folder."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def metadata():
    given = {}
    original, setuptools.setup = setuptools.setup, lambda **values: given.update(values)
    folder = Path.cwd()
    try:
        os.chdir(ROOT)
        runpy.run_path(str(ROOT / 'setup.py'))
    finally:
        setuptools.setup = original
        os.chdir(folder)
    return given


def locked() -> dict[str, str]:
    lines = [
        line for line in (ROOT / 'requirements.lock').read_text().splitlines() if line and not line.startswith('#')
    ]
    pairs = [re.fullmatch(r'([A-Za-z0-9._-]+)==([A-Za-z0-9.+!]+)', line) for line in lines]
    assert all(pairs), f'not NAME==VERSION: {[line for line, pair in zip(lines, pairs) if not pair]}'
    return {canonicalize_name(pair.group(1)): pair.group(2) for pair in pairs}


# -- Metadata and versions ------------------------------------------------------------------------------------------


def test_packages_put_everything_under_t5flan(metadata):
    packages = metadata['packages']
    assert {'t5flan', 't5flan.data', 't5flan.models', 't5flan.tasks', 't5flan.gin'} <= set(packages)
    assert {name.split('.')[0] for name in packages} == {'t5flan'}
    rooms = {path.parent.relative_to(ROOT).as_posix().replace('/', '.') for path in ROOT.glob('t5flan/**/__init__.py')}
    assert rooms <= set(packages), 'a folder of t5flan/ has no place in the wheel'
    without = {path.parent for path in ROOT.glob('t5flan/**/*.py')} - {
        path.parent for path in ROOT.glob('t5flan/**/__init__.py')
    }
    assert not without, f'{without} would be left out of the wheel: add an __init__.py'


def test_extras_and_python_versions(metadata):
    assert set(metadata['extras_require']) >= {'tpu', 'convert', 'eval', 'dev'}
    assert metadata['python_requires'] == '>=3.11,<3.14'
    assert metadata['entry_points'] == {'console_scripts': ['t5flan = t5flan.__main__:console']}


def test_locked_versions_are_within_the_ranges(metadata):
    versions = locked()
    for text in [*metadata['install_requires'], *metadata['extras_require']['dev']]:
        requirement = Requirement(text)
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f'{requirement.name} is not in requirements.lock'
        assert requirement.specifier.contains(version), (
            f'requirements.lock has {requirement.name} {version}, setup.py wants {requirement}'
        )


def test_the_lock_has_one_tensorflow():
    assert [name for name in locked() if re.fullmatch(r'tensorflow(-cpu|-gpu|-intel)?|tf-nightly', name)] == [
        'tensorflow'
    ]


def test_what_is_imported_is_required(metadata):
    """Every package that t5flan and tasks import is named in setup.py, not there by another's kindness."""
    import ast

    provided = {'orbax': 'orbax-checkpoint', 'gin': 'gin-config', 'tensorflow_datasets': 'tensorflow-datasets'}
    brought = {'tensorflow': 'seqio', 'tensorflow_text': 'seqio', 'absl': 'seqio', 'etils': 'orbax-checkpoint'}
    required = {
        canonicalize_name(Requirement(text).name)
        for extra in (metadata['install_requires'], *metadata['extras_require'].values())
        for text in extra
    }
    for path in [*ROOT.glob('t5flan/**/*.py'), *ROOT.glob('tasks/**/*.py')]:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for top in {name.split('.')[0] for name in names} - {'t5flan', *sys.stdlib_module_names}:
                package = provided.get(top) or brought.get(top) or top
                assert canonicalize_name(package) in required, (
                    f'{path.relative_to(ROOT)} imports {top}: name its package in setup.py'
                )


# -- The Makefile ---------------------------------------------------------------------------------------------------


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {
        key: value for key, value in os.environ.items() if key not in ('PYTHON', 'MAKEFLAGS', 'MAKELEVEL', 'TESTS')
    }
    return subprocess.run(
        ['make', '-n', '-C', str(ROOT), *arguments], capture_output=True, text=True, env=clean | environment
    )


def test_make_takes_the_python_it_is_given():
    version = '%d.%d' % sys.version_info[:2]
    for done in (make('test', f'PYTHON={sys.executable}'), make('test', PYTHON=sys.executable)):
        assert done.returncode == 0 and f".venv-{version}/bin/python -m pytest -q -m 'not slow'" in done.stdout
    assert f'.venv-{version}/bin/t5flan quickstart' in make('quickstart', f'PYTHON={sys.executable}').stdout


def test_make_refuses_a_python_that_is_none(tmp_path):
    old = tmp_path / 'python2'
    old.write_text('#!/bin/sh\nexit 1\n')
    old.chmod(0o755)
    for python in ('no-such-python', str(old)):
        done = make('test', f'PYTHON={python}')
        assert done.returncode != 0 and f't5flan needs Python 3.11, 3.12 or 3.13, and {python} is none' in done.stderr


def test_a_second_make_installs_nothing(tmp_path):
    """With the stamp newer than what it stands for, only the command itself is left."""
    for name in ('Makefile', 'setup.py', 'requirements.lock'):
        shutil.copy(ROOT / name, tmp_path / name)
    stamp = tmp_path / ('.venv-%d.%d' % sys.version_info[:2]) / 'installed'
    stamp.parent.mkdir()
    stamp.touch()
    lines = make('-C', str(tmp_path), 'test', f'PYTHON={sys.executable}').stdout.splitlines()
    assert (
        [line for line in lines if 'pytest' in line or 'pip' in line]
        == [line for line in lines if 'pytest' in line]
        != []
    )
    os.utime(tmp_path / 'requirements.lock', (stamp.stat().st_mtime + 10,) * 2)
    assert 'pip install' in make('-C', str(tmp_path), 'test', f'PYTHON={sys.executable}').stdout


def test_checks_run_make_test():
    script = ROOT / '.ci' / 'run'
    assert os.access(script, os.X_OK) and subprocess.run(['bash', '-n', str(script)]).returncode == 0
    assert 'make test' in script.read_text()


# -- The wheel ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """The wheel of a copy of the tree."""
    tree, out = tmp_path_factory.mktemp('tree'), tmp_path_factory.mktemp('wheel')
    for name in ('t5flan', 'gin', 'tasks'):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'pyproject.toml'):
        shutil.copy(ROOT / name, tree)
    subprocess.run(
        [
            sys.executable,
            '-m',
            'pip',
            'wheel',
            '--no-deps',
            '--no-build-isolation',
            '--quiet',
            '-w',
            str(out),
            str(tree),
        ],
        check=True,
        capture_output=True,
    )
    (path,) = out.glob('*.whl')
    return path


@pytest.mark.slow
def test_a_wheel_holds_gin_files_and_tasks_and_nothing_beside_t5flan(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split('/')[0] for name in names if '.dist-info' not in name} == {'t5flan'}
    gin = {path.relative_to(ROOT).as_posix() for path in ROOT.glob('gin/**/*.gin')}
    data = {path.relative_to(ROOT).as_posix() for path in [*ROOT.glob('tasks/**/*.json'), *ROOT.glob('tasks/**/*.py')]}
    code = {path.relative_to(ROOT).as_posix() for path in ROOT.glob('t5flan/**/*.py')}
    assert {f't5flan/{name}' for name in gin | data} | code <= set(names)
    assert 't5flan/gin/__init__.py' not in names


@pytest.mark.slow
def test_a_wheel_works_from_any_folder(wheel, tmp_path):
    site, elsewhere = tmp_path / 'site', tmp_path / 'elsewhere'
    elsewhere.mkdir()
    subprocess.run(
        [sys.executable, '-m', 'pip', 'install', '--no-deps', '--quiet', '--target', str(site), str(wheel)],
        check=True,
        capture_output=True,
    )
    environment = os.environ | {'PYTHONPATH': str(site)}

    def run(*argv: str) -> subprocess.CompletedProcess:
        return subprocess.run(argv, capture_output=True, text=True, cwd=elsewhere, env=environment)

    help_text = run(sys.executable, str(site / 'bin' / 't5flan'), '--help')
    assert help_text.returncode == 0 and 'quickstart' in help_text.stdout
    assert 't5_1_1_small' in run(sys.executable, '-m', 't5flan', 'train', '--help').stdout
    code = """
import t5flan
from t5flan import configurables
from t5flan.config import gin_files
from t5flan.models.config import ModelConfig
import t5flan.tasks
from t5flan.tasks import practice
print(t5flan.__file__, gin_files.GIN_ROOT, t5flan.tasks.__file__, sep='\\n')
print(configurables.parse(['models/t5_1_1_small']).read(ModelConfig).emb_dim, len(gin_files.packaged_files()))
print(practice.make_example(practice.task_names()[0], 'train', 0)['targets'])
"""
    done = run(sys.executable, '-c', code)
    assert done.returncode == 0, done.stderr
    *places, numbers, _ = done.stdout.splitlines()
    assert all(place.startswith(str(site)) for place in places)
    assert numbers == f'512 {len(list((ROOT / "gin").rglob("*.gin")))}'
    shown = run(sys.executable, '-m', 't5flan', 'mixture', 'practice_add', '--sample=2', '--examples=1')
    assert shown.returncode == 0 and 'practice_add' in shown.stdout, shown.stderr
