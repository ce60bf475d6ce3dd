"""Packaging: metadata, locked versions, the Makefile, CI, and a wheel that works from any folder."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ('3.11', '3.12', '3.13')
THIS_PYTHON = f'{sys.version_info.major}.{sys.version_info.minor}'


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
    folders = {path.parent for name in ('t5flan', 'tasks') for path in ROOT.glob(f'{name}/**/*.py')}
    for folder in folders:
        assert (folder / '__init__.py').is_file(), f'{folder} is not in the wheel: add an __init__.py'
        name = folder.relative_to(ROOT).as_posix().replace('/', '.')
        assert (name if name.startswith('t5flan') else f't5flan.{name}') in packages, f'{folder} is not in the wheel'


def test_extras_and_python_versions(metadata):
    extras = {'tpu', 'gcs', 'compile', 'convert', 'beam', 'hub', 'metrics', 'dedup', 'eval', 'dev', 'docs'}
    assert set(metadata['extras_require']) == extras
    assert metadata['python_requires'] == '>=3.11,<3.14'
    named = [name.rpartition(' ')[2] for name in metadata['classifiers'] if 'Python :: 3.' in name]
    assert tuple(named) == PYTHONS
    assert metadata['entry_points'] == {'console_scripts': ['t5flan = t5flan.__main__:console']}


def test_locked_versions_are_within_the_ranges(metadata):
    versions = locked()
    extras = metadata['extras_require']
    for text in [*metadata['install_requires'], *extras['dev'], *extras['docs']]:
        requirement = Requirement(text)
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f'{requirement.name} is not in requirements.lock'
        assert requirement.specifier.contains(version), (
            f'requirements.lock has {requirement.name} {version}, setup.py requires {requirement}'
        )


def test_the_lock_has_one_tensorflow():
    assert [name for name in locked() if re.fullmatch(r'tensorflow(-cpu|-gpu|-intel)?|tf-nightly', name)] == [
        'tensorflow'
    ]


def test_imported_packages_are_required(metadata):
    """setup.py names every package that t5flan and tasks import, and extras name no package that nothing uses."""
    import ast

    found = set()
    provided = {'orbax': 'orbax-checkpoint', 'gin': 'gin-config', 'tensorflow_datasets': 'tensorflow-datasets'}
    provided |= {'google': 'google-cloud-storage'}
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
                package = canonicalize_name(provided.get(top) or brought.get(top) or top)
                assert package in required, f'{path.relative_to(ROOT)} imports {top}: name its package in setup.py'
                found.add(package)
    for extra in ('convert', 'dedup', 'eval'):
        assert {canonicalize_name(Requirement(text).name) for text in metadata['extras_require'][extra]} <= found


# -- The Makefile ---------------------------------------------------------------------------------------------------


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {
        key: value
        for key, value in os.environ.items()
        if key not in ('PYTHON', 'MAKEFLAGS', 'MAKELEVEL', 'TESTS', 'SEED')
    }
    return subprocess.run(
        ['make', '-n', '-C', str(ROOT), *arguments], capture_output=True, text=True, env=clean | environment
    )


def test_make_uses_the_given_python():
    python = f'.venv-{THIS_PYTHON}/bin/python'
    for done in (make('test', f'PYTHON={sys.executable}'), make('test', PYTHON=sys.executable)):
        assert done.returncode == 0
        assert f"{python} -m pytest -q -n 2 --dist loadfile -p no:randomly -m 'not slow'" in done.stdout
    assert f'.venv-{THIS_PYTHON}/bin/t5flan quickstart' in make('quickstart', f'PYTHON={sys.executable}').stdout
    lint = make('lint', f'PYTHON={sys.executable}').stdout
    assert all(f'{python} -m {tool}' in lint for tool in ('ruff format --check .', 'ruff check .', 'mypy'))
    assert f'{python} -m mkdocs build --strict' in make('docs', f'PYTHON={sys.executable}').stdout


def test_make_runs_the_given_tests():
    done = make('test', f'PYTHON={sys.executable}', 'TESTS=tests/errors_test.py -x', 'SEED=7')
    assert "--randomly-seed=7 -m 'not slow' tests/errors_test.py -x\n" in done.stdout


def test_make_rejects_an_unsupported_python(tmp_path):
    old = tmp_path / 'python2'
    old.write_text('#!/bin/sh\nexit 1\n')
    old.chmod(0o755)
    for python in ('no-such-python', str(old)):
        done = make('test', f'PYTHON={python}')
        assert done.returncode != 0
        assert f't5flan needs Python 3.11, 3.12 or 3.13, but {python} is not one of them' in done.stderr


def test_a_second_make_installs_nothing(tmp_path):
    """If the stamp is newer than setup.py and requirements.lock, make runs only the command itself."""
    for name in ('Makefile', 'setup.py', 'requirements.lock'):
        shutil.copy(ROOT / name, tmp_path / name)
    stamp = tmp_path / f'.venv-{THIS_PYTHON}' / 'installed'
    stamp.parent.mkdir()
    stamp.touch()
    lines = make('-C', str(tmp_path), 'test', f'PYTHON={sys.executable}').stdout.splitlines()
    assert any('pytest' in line for line in lines) and not any('pip' in line for line in lines)
    os.utime(tmp_path / 'requirements.lock', (stamp.stat().st_mtime + 10,) * 2)
    assert 'pip install' in make('-C', str(tmp_path), 'test', f'PYTHON={sys.executable}').stdout


# -- CI -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('lint, test, code', [(0, 0, 0), (2, 0, 1), (0, 2, 1), (2, 2, 1)])
def test_ci_runs_lint_and_tests_even_if_one_fails(tmp_path, lint, test, code):
    (tmp_path / '.ci').mkdir()
    shutil.copy(ROOT / '.ci' / 'run', tmp_path / '.ci' / 'run')
    make = tmp_path / 'make'
    make.write_text(f'#!/bin/sh\necho "$@" >> calls\ncase "$1" in lint) exit {lint};; *) exit {test};; esac\n')
    make.chmod(0o755)
    path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
    done = subprocess.run([tmp_path / '.ci' / 'run', 'TESTS=x'], env=os.environ | {'PATH': path})
    assert done.returncode == code and (tmp_path / 'calls').read_text() == 'lint\ntest TESTS=x\n'


def test_the_workflow_tests_every_supported_python():
    workflow = (ROOT / '.github' / 'workflows' / 'ci.yml').read_text()
    (versions,) = re.findall(r'python-version: \[(.*)\]', workflow)
    assert tuple(re.findall(r"'([\d.]+)'", versions)) == PYTHONS
    targets = set(re.findall(r'^\s*- run: make ([\w-]+)', workflow, re.MULTILINE))
    assert targets == {'lint', 'test', 'docs'}


# -- The wheel ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    """A copy of the files that packaging reads, with t5flan/gin and t5flan/tasks as symbolic links."""
    tree = tmp_path_factory.mktemp('tree')
    for name in ('t5flan', 'gin', 'tasks'):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=shutil.ignore_patterns('__pycache__'))
    for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
        shutil.copy(ROOT / name, tree)
    return tree


def build_wheel(source: Path, out: Path) -> Path:
    command = [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--quiet', '-w', out, source]
    subprocess.run(command, check=True, capture_output=True)
    (path,) = out.glob('*.whl')
    return path


@pytest.fixture(scope='module')
def wheel(tree, tmp_path_factory):
    return build_wheel(tree, tmp_path_factory.mktemp('wheel'))


@pytest.mark.slow
def test_a_wheel_has_gin_files_and_tasks_under_t5flan(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split('/')[0] for name in names if '.dist-info' not in name} == {'t5flan'}
    packaged = [*ROOT.glob('t5flan/**/*.py'), *ROOT.glob('t5flan/synthesis/*.json*'), ROOT / 't5flan/py.typed']
    expected = {path.relative_to(ROOT).as_posix() for path in packaged}
    for pattern in ('gin/**/*.gin', 'tasks/**/*.py', 'tasks/**/*.json'):
        expected |= {f't5flan/{path.relative_to(ROOT).as_posix()}' for path in ROOT.glob(pattern)}
    assert {name for name in names if '.dist-info' not in name} == expected
    assert any(name.endswith('.dist-info/licenses/LICENSE') for name in names)


@pytest.mark.slow
def test_a_wheel_of_the_source_distribution_is_the_same(tree, wheel, tmp_path):
    command = [sys.executable, 'setup.py', '--quiet', 'sdist', '--dist-dir', tmp_path]
    subprocess.run(command, check=True, capture_output=True, cwd=tree)
    (archive,) = tmp_path.glob('*.tar.gz')
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter='data')
    built = build_wheel(tmp_path / archive.name.removesuffix('.tar.gz'), tmp_path)
    assert sorted(zipfile.ZipFile(built).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


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
