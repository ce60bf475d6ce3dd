"""MkDocs hook: writes the reference of commands, gin settings and packaged gin files from the code.

The pages exist only while the site is built. A setting or a flag without a meaning stops the build.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Sequence
from functools import cache
from typing import Any

from t5flan.commands import COMMANDS
from t5flan.commands.arguments import Command, Flag
from t5flan.config import annotations, gin_syntax
from t5flan.config.gin_files import GIN_ROOT, packaged_files
from t5flan.configurables import CONFIGURABLES

SETTINGS = 'reference/settings.md'
WIDTH = 80
"""Characters of a line of code."""

# -- MkDocs events --------------------------------------------------------------------------------------------------


def on_files(files: Any, config: Any) -> Any:
    """Adds the generated pages to the site."""
    from mkdocs.exceptions import PluginError
    from mkdocs.structure.files import File

    try:
        pages = {
            'reference/commands.md': commands_page(),
            SETTINGS: settings_page(),
            'reference/gin_files.md': gin_files_page(),
        }
    except Undocumented as error:
        raise PluginError(str(error)) from None
    for uri, text in pages.items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """Keeps the table of contents of the settings page to the classes; each setting still has its own heading."""
    if page.file.src_uri == SETTINGS:
        for title in page.toc:
            for section in title.children:
                section.children.clear()
    return html


class Undocumented(Exception):
    """A setting or a flag has no meaning to print."""


# -- Commands -------------------------------------------------------------------------------------------------------


def commands_page() -> str:
    """Every command of `t5flan` with its flags."""
    lines = [
        '# Commands',
        '',
        '```',
        't5flan COMMAND [--flag=VALUE]... [--gin_file=FILE]... [--gin.NAME=VALUE]...',
        '```',
        '',
        'A command exits with 0 when it is done, 1 when it failed (with one line that says why), and 2 when the '
        'command line is wrong. Commands that take settings read gin files in order, then `--gin.NAME=VALUE`; the '
        'last value wins. [Settings](settings.md) lists every `NAME`, [Gin files](gin_files.md) the packaged files.',
        '',
        '| command | |',
        '|---|---|',
        *(f'| [`{name}`](#{name}) | {_cell(command.summary)} |' for name, command in COMMANDS.items()),
        '',
    ]
    for command in COMMANDS.values():
        lines += _command(command)
    return '\n'.join(lines)


def _command(command: Command) -> list[str]:
    rows = [_flag(command, flag) for flag in command.flags]
    if command.gin:
        rows += [
            '| `--gin_file=FILE` | a gin file, in the current folder or packaged; may be repeated |',
            '| `--gin.NAME=VALUE` | a [setting](settings.md) or a macro of a gin file; may be repeated |',
        ]
    lines = [f'## {command.name} {{ #{command.name} }}', '', _sentence(command.summary), '']
    lines += ['```bash', *_folded(command.example), '```', ''] if command.example else []
    return [*lines, '| flag | meaning |', '|---|---|', *rows, '']


def _flag(command: Command, flag: Flag) -> str:
    if not flag.help:
        raise Undocumented(f't5flan {command.name} {flag.name} has no help. Write it in t5flan/commands.')
    notes = ['required'] if flag.required else []
    notes += ['may be repeated'] if flag.many and 'several times' not in flag.help else []
    value = f'={flag.metavar}' if flag.name.startswith('--') and flag.metavar else ''
    end = f' ({"; ".join(notes)})' if notes else ''
    return f'| `{flag.name}{value}` | {_cell(flag.help)}{end} |'


# -- Settings -------------------------------------------------------------------------------------------------------


def settings_page() -> str:
    """Every class that gin can configure, with the type, default and meaning of each setting."""
    lines = [
        '# Settings',
        '',
        'A setting is a field of one of these classes: `CLASS.FIELD = VALUE` in a gin file, '
        '`--gin.CLASS.FIELD=VALUE` on the command line. A misspelt name stops the command, which names the nearest '
        'setting.',
        '',
        *(f'- [`{name}`](#{name}): {_escaped(_summary(cls))}' for name, cls in CONFIGURABLES.items()),
        '',
    ]
    for cls in CONFIGURABLES.values():
        lines += _settings_of(cls)
    return '\n'.join(lines)


def _settings_of(cls: type) -> list[str]:
    lines = [f'## {cls.__name__} {{ #{cls.__name__} }}', '', *_description(cls), '']
    found = meanings(cls)
    for field, annotation in annotations.fields(cls):
        if not found.get(field.name):
            raise Undocumented(
                f'{cls.__name__}.{field.name} has no meaning. Write a docstring after the field in {cls.__module__}.'
            )
        value = '**required**' if annotations.is_required(field) else f'default {_default(annotations.default(field))}'
        setting = f'{cls.__name__}.{field.name}'
        lines += [f'### `{setting}` {{ #{setting} }}', '', f'{_type(annotation)}, {value}', '{ .type }', '']
        lines += [_escaped(found[field.name]), '']
    return lines


def meanings(cls: type) -> dict[str, str]:
    """Field -> what it means: the docstring after the field, or its entry under `Attributes:` of the class."""
    node = _class_node(cls)
    found = _attributes(ast.get_docstring(node) or '')
    for statement, after in zip(node.body, node.body[1:]):
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and _literal(after):
            found[statement.target.id] = _literal(after)
    return {name: ' '.join(text.split()) for name, text in found.items()}


@cache
def _class_node(cls: type) -> ast.ClassDef:
    tree = ast.parse(inspect.getsource(inspect.getmodule(cls)))
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__)


def _literal(statement: ast.stmt) -> str:
    """The text of a statement that is nothing but a string."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return str(statement.value.value)
    return ''


def _attributes(docstring: str) -> dict[str, str]:
    """The entries of an `Attributes:` section; `b2, epsilon: …` describes both."""
    _, _, section = docstring.partition('\nAttributes:\n')
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if line and not line.startswith(' '):
            break
        entry = re.match(r' {4}(\w+(?:, \w+)*): (.*)', line)
        names = entry.group(1).split(', ') if entry else names
        for name in names:
            found[name] = entry.group(2) if entry else f'{found[name]} {line.strip()}'
    return found


def _description(cls: type) -> list[str]:
    """The class docstring without its `Attributes:`, its indented lines as blocks of gin."""
    text = (ast.get_docstring(_class_node(cls)) or '').partition('\nAttributes:\n')[0].rstrip()
    if not text:
        raise Undocumented(f'{cls.__name__} has no docstring. Write one in {cls.__module__}.')
    lines: list[str] = []
    for is_code, block in _blocks(text.splitlines()):
        body = textwrap.dedent('\n'.join(block)).strip('\n')
        if is_code:
            lines += ['', '```gin', body, '```', '']
        elif body.startswith('|'):
            lines += ['', body, '']
        else:
            lines.append(_escaped(body))
    return lines


def _blocks(lines: Sequence[str]) -> list[tuple[bool, list[str]]]:
    """Runs of lines: (indented?, lines). Tables stand alone."""
    blocks: list[tuple[bool, list[str]]] = []
    kind: tuple[bool, bool] | None = None
    for line in lines:
        now = kind if not line.strip() and kind else (line.startswith('    '), line.startswith('|'))
        if now != kind:
            blocks.append((now[0], []))
            kind = now
        blocks[-1][1].append(line)
    return blocks


def _summary(cls: type) -> str:
    return (ast.get_docstring(_class_node(cls)) or '').split('\n\n')[0].replace('\n', ' ')


def _type(annotation: Any) -> str:
    """An annotation in words, other configurable classes as links."""
    words = _escaped(annotations.describe(annotation))
    return re.sub(r'@(\w+)\(\)', lambda match: f'[`@{match[1]}()`](#{match[1]})', words)


def _default(value: Any) -> str:
    if type(value).__name__ in CONFIGURABLES:
        return f'[`{type(value).__name__}()`](#{type(value).__name__})'
    return f'`{gin_syntax.to_gin(value)}`'


# -- Gin files ------------------------------------------------------------------------------------------------------


def gin_files_page() -> str:
    """The packaged gin files, as their headers describe them."""
    lines = [
        '# Gin files',
        '',
        'These files come with t5flan. Name one without `.gin`: `--gin_file=runs/finetune`. A file in the current '
        'folder with the same path is found first, so a copy can be changed. `%NAME` in a file is a macro: '
        '`--gin.NAME=VALUE` sets it.',
    ]
    titles = {'runs': 'Recipes', 'recipes': 'Values by architecture', 'examples': 'Examples', 'models': 'Models'}
    for folder, title in titles.items():
        names = [name.removesuffix('.gin') for name in packaged_files() if name.startswith(f'{folder}/')]
        lines += ['', f'## {title}', '']
        if folder == 'models':
            lines += ['| file | |', '|---|---|']
            lines += [f'| `{name}` | {_cell(" ".join(_header(name)))} |' for name in names]
            continue
        for name in names:
            lines += [f'### `{name}`', '', *_recipe(_header(name)), '']
    return '\n'.join(lines) + '\n'


def _header(name: str) -> list[str]:
    """The comment at the top of a gin file, without `#`."""
    text = (GIN_ROOT / f'{name}.gin').read_text(encoding='utf-8').splitlines()
    header = text[: next((i for i, line in enumerate(text) if not line.startswith('#')), len(text))]
    if not header:
        raise Undocumented(f'gin/{name}.gin has no header. Begin the file with a comment that says what it is for.')
    return [line[1:].removeprefix(' ') for line in header]


def _recipe(header: Sequence[str]) -> list[str]:
    """A header's first lines, then its `Purpose:`, `Command:` ... as a list."""
    intro: list[str] = []
    entries: dict[str, list[str]] = {}
    into = intro
    for line in header:
        named = re.match(r'([A-Z]\w+):(\s+)(.*)', line)
        if named:
            into = entries[named[1]] = [' ' * len(named[1] + named[2]) + ' ' + named[3]]
        elif line.strip() or into is intro:
            into.append(line)
    lines = [_escaped(line) for line in intro]
    for name, text in entries.items():
        if name == 'Command':
            command = _folded(' '.join(line.strip() for line in text))
            lines += [f'- **{name}**:', '', '    ```bash', *(f'    {line}' for line in command), '    ```', '']
        else:
            lines += [f'- **{name}**:', *_nested(text)]
    return lines


def _nested(text: Sequence[str]) -> list[str]:
    """The lines of an entry as Markdown; those further to the right than the others become a list."""
    margin = min(len(line) - len(line.lstrip()) for line in text)
    lines: list[str] = []
    for line in text:
        is_item = len(line) - len(line.lstrip()) > margin
        was_item = bool(lines) and lines[-1].startswith('    - ')
        lines += [''] if lines and is_item != was_item else []
        lines.append(f'    {"- " if is_item else ""}{_escaped(line.strip())}')
    return [*lines, ''] if '' in lines else lines


def _folded(command: str) -> list[str]:
    """A command in lines of at most WIDTH characters where that is possible; a line ends before a flag."""
    lines = ['']
    for part in re.split(r' (?=--)', command):
        if lines[-1] and len(lines[-1]) + len(part) + 3 > WIDTH:
            lines[-1] += ' \\'
            lines.append(f'  {part}')
        else:
            lines[-1] += f' {part}' if lines[-1] else part
    return lines


# -- Markdown -------------------------------------------------------------------------------------------------------


def _escaped(text: str) -> str:
    """Plain text as Markdown: what stands between backticks stays, other special characters are escaped."""
    parts = re.split(r'(`[^`]+`)', text)
    return ''.join(part if part.startswith('`') else re.sub(r'([*_\[\]<|])', r'\\\1', part) for part in parts)


def _cell(text: str) -> str:
    return _escaped(' '.join(text.split()))


def _sentence(text: str) -> str:
    text = _escaped(text[:1].upper() + text[1:])
    return text if text.endswith('.') else f'{text}.'
