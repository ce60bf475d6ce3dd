"""Parses a command line: `t5flan COMMAND [--flag=VALUE]… [--gin_file=FILE]… [--gin.NAME=VALUE]…`."""

import argparse
import dataclasses
import os
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from t5flan.config.checks import Count, CountFrom0, ExtraIds, Limits, Positive, Seed, Share, limits_of
from t5flan.errors import UsageError, did_you_mean
from t5flan.version import __version__

COUNT, COUNT_FROM_0, SEED = limits_of(Count), limits_of(CountFrom0), limits_of(Seed)
EXTRA_IDS = limits_of(ExtraIds)
POSITIVE, SHARE = limits_of(Positive), limits_of(Share)


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag `--name=VALUE`, or a positional argument if `name` has no dashes."""

    name: str
    help: str
    """What it is, its unit, and its default as '(default: VALUE)'."""
    metavar: str = ''
    type: Callable[[str], Any] | Limits = str
    """Converts the text, or the numbers that it may be; `bool` makes a flag without a value."""
    default: Any = None
    required: bool = False
    many: bool = False
    """May be given several times; its value is a list, or None."""
    writes: str = ''
    """What it names, if the command writes it: a 'file', 'folder' or 'new folder' of one process at a time, or a
    'shared' file, which the command locks itself."""


@dataclasses.dataclass(frozen=True)
class Command:
    """A command: its help, its flags, and the function that it runs."""

    name: str
    summary: str
    run: Callable[[argparse.Namespace], None]
    flags: tuple[Flag, ...]
    gin: bool = False
    """Whether it takes --gin_file and --gin.NAME."""
    example: str = ''
    foreign: bool = False
    """Whether its arguments are those of another program; it gets them as `arguments.foreign`."""
    runs_model: bool = False
    """Whether it spends its time in a model; on a CPU, its process keeps freed memory."""


def words(text: str) -> tuple[str, ...]:
    """Splits at commas: 'a, b' -> ('a', 'b'); '' -> ()."""
    return tuple(word.strip() for word in text.split(',') if word.strip())


PATHS = ('DIR', 'FILE', 'WORKDIR', 'SRC', 'DST', 'F.model', 'F.jsonl')
"""The metavars of flags whose value is a path: `~` is the home folder, which no shell expands after '='."""


def path(text: str) -> str:
    """A path; an empty one comes from an unset variable of the shell and would be the current folder, or the root."""
    if not text.strip():
        raise argparse.ArgumentTypeError('the path is empty; is a variable of the shell unset?')
    return os.path.expanduser(text)


class Exit(Exception):
    """Raised when the command line is done, e.g. after --help or --version has been printed."""

    def __init__(self, code: int):
        super().__init__()
        self.code = code


class _Parser(argparse.ArgumentParser):
    """An argparse parser that raises instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f'{message} (see `{self.prog} --help`)')

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise Exit(status)


def parse_arguments(argv: Sequence[str], commands: Mapping[str, Command]) -> tuple[Command, argparse.Namespace]:
    """Returns the command and its arguments.

    The arguments have `gin`, a list of 'NAME=VALUE', and `gin_file`, a list, if the command takes settings. Those of a
    foreign command are a list, `foreign`.

    Raises:
        Exit: --help or --version has been printed.
        UsageError: an unknown command or flag, or a missing or malformed value.
    """
    argv = list(argv)
    if not argv or argv[0] in ('--help', '-h', 'help'):
        print(_overview(commands))
        raise Exit(0 if argv else 2)
    if argv[0] == '--version':
        print(f't5flan {__version__}')
        raise Exit(0)
    command = commands.get(argv[0])
    if command is None:
        what = 'flag' if argv[0].startswith('-') else 'command'
        raise UsageError(f'unknown {what} {argv[0]}{did_you_mean(argv[0], commands)} (see `t5flan --help`)')
    if command.foreign and argv[1:] not in ([], ['--help'], ['-h']):
        return command, argparse.Namespace(foreign=argv[1:], gin=[])
    rest, gin = _split_gin(argv[1:])
    _check_flags(command, rest, gin)
    if command.foreign:
        rest = ['--help']
    arguments = _parser(command).parse_args(rest)
    arguments.gin = gin
    for flag in command.flags:
        value = getattr(arguments, flag.name.lstrip('-'))
        if isinstance(flag.type, Limits) and value is not None and not flag.type.holds(value):
            raise UsageError(f'{flag.name}={value}, expected {flag.type.expected(value)}')
    return command, arguments


def _split_gin(argv: list[str]) -> tuple[list[str], list[str]]:
    """Separates `--gin.NAME=VALUE` and `--gin.NAME VALUE`, as 'NAME=VALUE', from the other arguments."""
    rest, gin = [], []
    remaining = iter(argv)
    for word in remaining:
        if not word.startswith('--gin.'):
            rest.append(word)
            continue
        if '=' not in word:
            value = next(remaining, None)
            if value is None or value.startswith('--'):
                raise UsageError(f'{word} has no value: write {word}=VALUE')
            word = f'{word}={value}'
        gin.append(word.removeprefix('--gin.'))
    return rest, gin


def _check_flags(command: Command, rest: Sequence[str], gin: Sequence[str]) -> None:
    known = [flag.name for flag in command.flags if flag.name.startswith('--')] + ['--help']
    known += ['--gin_file'] if command.gin else []
    see = f'(see `t5flan {command.name} --help`)'
    if gin and not command.gin:
        raise UsageError(f'`t5flan {command.name}` takes no gin settings, got --gin.{gin[0]} {see}')
    for word in rest:
        name = word.partition('=')[0]
        if name.startswith('--') and len(name) > 2 and name not in known:
            raise UsageError(f'`t5flan {command.name}` has no flag {name}{did_you_mean(name, known)} {see}')
    names = [word.partition('=')[0] for word in rest]
    for flag in command.flags:
        if flag.name.startswith('--') and not flag.many and names.count(flag.name) > 1:
            raise UsageError(f'{flag.name} is given {names.count(flag.name)} times, expected once {see}')


def _parser(command: Command) -> _Parser:
    parser = _Parser(
        prog=f't5flan {command.name}',
        description=command.summary,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_epilog(command),
    )
    for flag in command.flags:
        options: dict[str, Any]
        convert: Any = path if flag.metavar in PATHS and flag.type is str else flag.type
        if isinstance(flag.type, Limits):
            convert = int if flag.type.whole else float
        options = {
            'help': flag.help.replace('%', '%%'),
            'type': convert,
            'default': flag.default,
            'metavar': flag.metavar or None,
        }
        if flag.type is bool:
            options = {'help': flag.help.replace('%', '%%'), 'action': 'store_true'}
        elif flag.many:
            options |= {'action': 'append'}
        if flag.name.startswith('--'):
            options['required'] = flag.required
        elif not flag.required:
            options['nargs'] = '?'
        parser.add_argument(flag.name, **options)
    if command.gin:
        help_text = 'a gin file, in the current folder or packaged; may be given several times, later files win'
        options = {'action': 'append', 'default': [], 'type': path, 'metavar': 'FILE'}
        parser.add_argument('--gin_file', help=help_text, **options)
    return parser


def _overview(commands: Mapping[str, Command]) -> str:
    width = max(map(len, commands))
    summaries = '\n'.join(f'  {command.name:<{width}}  {command.summary}' for command in commands.values())
    return f"""usage: t5flan COMMAND [--flag=VALUE]… [--gin_file=FILE]… [--gin.NAME=VALUE]…

From text to an instruction-following model.

commands:
{summaries}

`t5flan COMMAND --help` lists its flags. `t5flan quickstart` runs every step once, in a few minutes."""


def _epilog(command: Command) -> str:
    lines = ['example:', f'  {command.example}'] if command.example else []
    if command.gin:
        from t5flan import configurables
        from t5flan.config.gin_files import packaged_files

        files = [name for name in packaged_files() if not name.startswith('models/')]
        models = [Path(name).stem for name in packaged_files() if name.startswith('models/')]
        lines += ['', 'settings:', '  --gin.MACRO=VALUE or --gin.CLASS.FIELD=VALUE, where CLASS is one of']
        lines += [_wrapped(configurables.CONFIGURABLES), '', 'packaged gin files:', _wrapped(files)]
        lines += ['  models/…:', _wrapped(models)]
    return '\n'.join(lines)


def _wrapped(names: Iterable[str]) -> str:
    indent = ' ' * 4
    return textwrap.fill(', '.join(names), 100, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
