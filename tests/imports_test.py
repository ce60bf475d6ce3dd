"""The layout, enforced: imports go down the layers and never in a circle; files, functions and folders stay small.

Every rule is a function from sources to the places that break it. It runs on the tree, where it must find nothing, and
a small broken example, where it must find the fault.
"""

import ast
import collections
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

LAYERS = (
    {'__main__', 'commands'},
    {'quickstart'},
    {'tasks'},
    {'evaluation', 'conversion', 'reporting', 'synthesis', 'corpora', 'planning', 'compiling'},
    {'language_model', 'configurables'},
    {'training', 'decoding'},
    {'adapters'},
    {'models', 'data', 'scoring'},
    {'kernels', 'sharding'},
    {'config', 'files', 'errors', 'mesh', 'moved', 'preemption', 'processes', 'signals', 'version'},
)
"""Rooms of t5flan/ from top to bottom. A room may import its own layer and those below."""
DATA_ROOMS = ('records', 'vocabulary', 'preprocessing', 'prompting', 'mixtures', 'batches')
"""Rooms of t5flan/data/ in the order in which a record passes through them; each may import those before it."""

MOST_LINES, MOST_FUNCTION_LINES, MOST_FILES = 500, 60, 12
LONG_FILES: dict[str, str] = {}
"""File -> why it may be longer."""
LONG_FUNCTIONS: dict[str, str] = {}
"""'FILE: function' -> why it may be longer."""
_MIRROR = 'a test file for each source file, and what these share'
FULL_FOLDERS = {
    'benchmarks': 'one file per measurement',
    't5flan/commands': 'one file per command, so that adding a command touches no other file',
    'tests/models': _MIRROR,
    'tests/training': _MIRROR,
}
"""Folder -> why it may hold more files."""
BANNED = {'utils', 'util', 'common', 'helpers', 'helper', 'misc'}

Sources = Mapping[str, str]
"""Path from the root of the checkout -> Python source."""


def read_sources(*folders: str) -> dict[str, str]:
    paths = sorted(path for folder in folders for path in (ROOT / folder).glob('**/*.py'))
    return {str(path.relative_to(ROOT)): path.read_text(encoding='utf-8') for path in paths}


PACKAGE = read_sources('t5flan', 'tasks')
EVERYTHING = PACKAGE | read_sources('benchmarks', 'experiments', 'tests')


# -- The rules ------------------------------------------------------------------------------------------------------


def module_of(path: str) -> str:
    """'tasks/flan/table.py' -> 't5flan.tasks.flan.table'."""
    parts = Path(path).with_suffix('').parts
    parts = ('t5flan', *parts) if parts[0] == 'tasks' else parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def import_graph(sources: Sources) -> dict[str, set[str]]:
    """Module -> the modules of `sources` that it imports, anywhere in the file, inside functions too."""
    modules = {module_of(path) for path in sources}
    graph: dict[str, set[str]] = {}
    for path, text in sources.items():
        found = graph.setdefault(module_of(path), set())
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f'{path}:{node.lineno}: write the import from the package root'
                names = {alias.name: f'{node.module}.{alias.name}' for alias in node.names}
                found |= {full if full in modules else str(node.module) for full in names.values()}
    return {module: (found & modules) - {module} for module, found in graph.items()}


def upward_imports(sources: Sources) -> list[str]:
    """Imports of a layer above, and inside data/ of a room that comes later. t5flan/__init__.py stands above all."""
    level = {room: number for number, layer in enumerate(LAYERS) for room in layer}
    found = []
    for module, imported in sorted(import_graph(sources).items()):
        if module == 't5flan':
            continue
        for other in sorted(imported):
            here, there = module.split('.')[1:], other.split('.')[1:]
            assert here[0] in level, f'{module}: name its layer in tests/imports_test.py'
            if not there or level[there[0]] < level[here[0]]:
                found.append(f'{module} imports {other}, a layer up')
            elif here[0] == there[0] == 'data' and {here[1], there[1]} <= set(DATA_ROOMS):
                if DATA_ROOMS.index(there[1]) > DATA_ROOMS.index(here[1]):
                    found.append(f'{module} imports {other}, a later room')
            elif there[0] == 'tasks' and here[0] not in ('tasks', 'commands'):
                found.append(f'{module} imports {other}: only commands/ imports tasks/')
    return found


def cycles(sources: Sources) -> list[list[str]]:
    """Groups of modules that import each other in a circle (Tarjan's strongly connected components)."""
    graph = import_graph(sources)
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(module: str) -> None:
        order[module] = low[module] = len(order)
        stack.append(module)
        for other in graph[module]:
            if other not in order:
                visit(other)
            if other in stack:
                low[module] = min(low[module], low[other])
        if low[module] == order[module]:
            group = [stack.pop()]
            while group[-1] != module:
                group.append(stack.pop())
            if len(group) > 1:
                found.append(sorted(group))

    for module in graph:
        if module not in order:
            visit(module)
    return found


def long_files(sources: Sources) -> list[str]:
    lengths = {path: text.count('\n') for path, text in sources.items()}
    return [f'{path} has {n} lines' for path, n in lengths.items() if n > MOST_LINES and path not in LONG_FILES]


def long_functions(sources: Sources) -> list[str]:
    return [
        f'{path}: {function.name} has {lines} lines of its own'
        for path, text in sources.items()
        for function, lines in functions(text)
        if lines > MOST_FUNCTION_LINES and f'{path}: {function.name}' not in LONG_FUNCTIONS
    ]


def functions(text: str) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, int]]:
    """Each function with its own lines: without its docstring and the functions inside it."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            inner = [child for child in node.body if isinstance(child, ast.FunctionDef)]
            docstring = node.body[:1] if ast.get_docstring(node) else []
            yield node, span(node) - sum(map(span, [*inner, *docstring]))


def span(node: ast.stmt) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def full_folders(sources: Sources) -> list[str]:
    counts = collections.Counter(str(Path(path).parent) for path in sources)
    return [f'{folder} has {n} files' for folder, n in counts.items() if n > MOST_FILES and folder not in FULL_FOLDERS]


def banned_names(sources: Sources) -> list[str]:
    return [path for path in sources if BANNED & set(Path(path).with_suffix('').parts)]


def undocumented_modules(sources: Sources) -> list[str]:
    return [path for path, text in sources.items() if text.strip() and not ast.get_docstring(ast.parse(text))]


def gin_readers(sources: Sources) -> list[str]:
    """Files that import gin, except the one that wraps its parser."""
    found = []
    for path, text in sources.items():
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ''] if isinstance(node, ast.ImportFrom) else []
            if any(name.split('.')[0] == 'gin' for name in names) and path != 't5flan/config/gin_syntax.py':
                found.append(path)
    return found


def heavy_settings(sources: Sources) -> list[str]:
    """Modules of settings that import more than the standard library and each other: gin must load in no time."""
    light = ('t5flan.config', 't5flan.errors', 't5flan.files', 't5flan.mesh', 't5flan.version')
    settings = [path for path in sources if Path(path).name in ('config.py', 'mesh.py') or path.endswith('_config.py')]
    settings = [path for path in settings if not path.startswith('t5flan/conversion')]  # other frameworks' settings
    found = []
    for path in settings:
        for node in ast.walk(ast.parse(sources[path])):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ''] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                is_light = name.startswith(light) or name.endswith('config')
                if name.split('.')[0] not in sys.stdlib_module_names and not is_light:
                    found.append(f'{path} imports {name}')
    return found


LONG_FUNCTION = 'def long():\n' + '    x = 1\n' * (MOST_FUNCTION_LINES + 1)
DOCUMENTED = '"""A module."""\n'

RULES = [
    (upward_imports, {'t5flan/models/a.py': 'import t5flan.training.b', 't5flan/training/b.py': ''}),
    (
        upward_imports,
        {'t5flan/data/records/a.py': 'from t5flan.data.batches import b', 't5flan/data/batches/b.py': ''},
    ),
    (upward_imports, {'t5flan/quickstart.py': 'from t5flan import tasks', 'tasks/__init__.py': ''}),
    (cycles, {'t5flan/a.py': 'import t5flan.b', 't5flan/b.py': 'def f():\n    from t5flan import a'}),
    (long_files, {'t5flan/a.py': '\n' * (MOST_LINES + 1)}),
    (long_functions, {'t5flan/a.py': LONG_FUNCTION}),
    (full_folders, {f't5flan/{number}.py': '' for number in range(MOST_FILES + 1)}),
    (banned_names, {'t5flan/utils/a.py': ''}),
    (undocumented_modules, {'t5flan/a.py': 'x = 1'}),
    (gin_readers, {'t5flan/a.py': 'from gin import config'}),
    (heavy_settings, {'t5flan/models/config.py': 'import jax'}),
]
PACKAGE_ONLY = (upward_imports, undocumented_modules, gin_readers, heavy_settings)


@pytest.mark.parametrize(('rule', 'broken'), RULES)
def test_the_rule_holds_and_can_fail(rule, broken):
    assert rule(broken), 'the rule does not notice a fault'
    assert rule(PACKAGE if rule in PACKAGE_ONLY else EVERYTHING) == []


@pytest.mark.parametrize('exceptions', [LONG_FILES, LONG_FUNCTIONS, FULL_FOLDERS])
def test_an_exception_is_still_needed_and_has_a_reason(exceptions):
    for name, reason in exceptions.items():
        assert (ROOT / name.partition(':')[0]).exists() and reason


def test_gin_stays_a_folder_of_data():
    assert not list((ROOT / 'gin').rglob('*.py')), 'Python in gin/ would hide gin-config'


def test_tasks_and_gin_belong_to_the_package_and_nothing_else_does():
    """A link in a checkout, a folder in a wheel; no trick on the import path lets tests and benchmarks in."""
    code = (
        'import importlib.util, t5flan, t5flan.tasks.practice; print(len(t5flan.__path__));'
        'outside = ("tests", "benchmarks", "experiments", "setup");'
        'print([name for name in outside if importlib.util.find_spec(f"t5flan.{name}")])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split('\n')[:2] == ['1', '[]']
