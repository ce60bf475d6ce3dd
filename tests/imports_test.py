"""The plan of the house, held: imports run one way, files and functions stay short, no room for odds and ends."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LONGEST_FILE, LONGEST_FUNCTION = 500, 60
LONG_FUNCTIONS = {'t5flan/train.py: train'}  # one loop, read top to bottom
BANNED = {'utils', 'util', 'common', 'helpers', 'helper', 'misc'}

# Who may import whom. A room's settings (standard library and errors only) are open to all.
SETTINGS = {'config', 'corpus_config', 'checks'}
FOUNDATIONS = {'errors', 'annotations', 'sharding', 'kernels'}
ROOMS = FOUNDATIONS | {'models', 'data'}
SETTINGS_MAY_IMPORT = (
    't5flan.errors',
    't5flan.config.annotations',
    't5flan.data.checks.',
    't5flan.data.corpus_config.',
)
MAINS = {
    'train',
    'evaluate',
    'infer',
    'quickstart',
    'convert',
    'compile',
    'plan',
    'report',
    'rationales',
    'memorization',
    'cache',
}
MAY_IMPORT = {
    'errors': set(),
    'annotations': {'errors'},
    'preemption': {'errors'},
    'sharding': {'errors'},
    'kernels': {'errors', 'sharding'},
    'models': FOUNDATIONS | {'models'},
    'data': {'errors', 'data'},
    'training': ROOMS | {'training'},
    'decoding': ROOMS | {'decoding'},
    'evaluation': ROOMS | {'evaluation', 'decoding'},
    'conversion': ROOMS | {'conversion', 'training'},
    'language_model': ROOMS | {'decoding', 'training'},
    'gin_syntax': {'annotations', 'errors'},
    'config': {'annotations', 'errors', 'gin_syntax'},
    'tasks': {'errors', 'data', 'evaluation', 'tasks'},
    'arguments': {'errors', 'config'},
    '__init__': {'language_model'},
}
MAIN_MAY_IMPORT = (
    ROOMS | MAINS | {'training', 'decoding', 'evaluation', 'conversion', 'language_model', 'config', 'preemption'}
)


def sources() -> list[Path]:
    return sorted([*ROOT.glob('t5flan/**/*.py'), *ROOT.glob('tasks/**/*.py')])


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(path: Path) -> set[str]:
    """The modules of t5flan that a file imports anywhere in it, as 'data.config' or 'sharding'."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parent.parts
            package = ('t5flan', *package) if package[0] == 'tasks' else package
            above = '.'.join(package[: len(package) - node.level + 1]) if node.level else ''
            module = '.'.join(filter(None, [above, node.module]))
            found |= {f'{module}.{alias.name}' for alias in node.names}
    return {name.removeprefix('t5flan.') for name in found if name.startswith('t5flan.')}


def room_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix('').parts
    return 'tasks' if parts[0] == 'tasks' else parts[1]


def is_settings(module: str) -> bool:
    return '.'.join(module.split('.')[1:2]) in SETTINGS


@pytest.mark.parametrize('path', sources(), ids=name_of)
def test_imports_run_one_way(path):
    room = room_of(path)
    if room in ('__main__', 'commands'):
        return  # the top of the house
    allowed = MAIN_MAY_IMPORT if room in MAINS else MAY_IMPORT.get(room)
    assert allowed is not None, f'{name_of(path)}: say in tests/imports_test.py what {room} may import'
    for module in imported(path):
        top = module.split('.')[0]
        if is_settings(module) or not (
            (ROOT / 't5flan' / top).exists() or (ROOT / 't5flan' / f'{top}.py').exists() or top == 'tasks'
        ):
            continue  # settings, or a name such as t5flan.__version__
        assert top in allowed or (top == room and room not in MAINS), (
            f'{name_of(path)} imports t5flan.{module}, up the stairs'
        )


@pytest.mark.parametrize(
    'path', [path for path in sources() if path.stem in SETTINGS and path.parent.name != 't5flan'], ids=name_of
)
def test_settings_import_the_standard_library_alone(path):
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [f'{node.module}.{alias.name}' for alias in node.names] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            assert name.split('.')[0] in sys.stdlib_module_names or name.startswith(SETTINGS_MAY_IMPORT), (
                f'{name_of(path)} imports {name}'
            )


@pytest.mark.parametrize('path', sources(), ids=name_of)
def test_files_and_functions_stay_short(path):
    text = path.read_text(encoding='utf-8')
    assert text.count('\n') <= LONGEST_FILE, f'{name_of(path)} has {text.count(chr(10))} lines: make two files of it'
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            name, length = f'{name_of(path)}: {node.name}', node.end_lineno - node.lineno + 1
            own = (
                length
                - docstring_lines(node)
                - sum(inner.end_lineno - inner.lineno + 1 for inner in node.body if isinstance(inner, ast.FunctionDef))
            )
            assert own <= LONGEST_FUNCTION or name in LONG_FUNCTIONS, (
                f'{name} has {own} lines of its own: make two of it'
            )


def docstring_lines(node: ast.FunctionDef) -> int:
    first = node.body[0]
    is_docstring = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return first.end_lineno - first.lineno + 1 if is_docstring else 0


def test_no_room_for_odds_and_ends():
    names = {
        part
        for path in [*sources(), *ROOT.glob('tests/**/*.py')]
        for part in path.relative_to(ROOT).with_suffix('').parts
    }
    assert not names & BANNED


def test_gin_stays_a_folder_of_data():
    assert not list((ROOT / 'gin').rglob('*.py')), 'Python in gin/ would hide gin-config'


def test_only_one_file_reads_gin():
    readers = [
        name_of(path)
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8')))
        if (isinstance(node, ast.Import) and any(alias.name.split('.')[0] == 'gin' for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'gin')
    ]
    assert readers == ['t5flan/gin_syntax.py']


def test_every_module_has_a_docstring():
    for path in sources():
        assert ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))), name_of(path)
