"""Reading a command line: `t5flan COMMAND [--flag=VALUE]… [--gin_file=FILE]… [--gin.NAME=VALUE]…`."""

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from t5flan.errors import UsageError, nearest
from t5flan.version import __version__


@dataclasses.dataclass(frozen=True)
class Flag:
    """One `--name=VALUE` (or, without dashes, a word by its place)."""

    name: str
    help: str
    metavar: str = ''
    type: Callable[[str], Any] = str
    default: Any = None
    required: bool = False
    many: bool = False
    """May be given several times; its value is a list."""


@dataclasses.dataclass(frozen=True)
class Command:
    """A command: what it says of itself, what it takes, what it runs."""

    name: str
    summary: str
    run: Callable[[argparse.Namespace], None]
    flags: tuple[Flag, ...]
    gin: bool = False
    example: str = ''


def words(text: str) -> tuple[str, ...]:
    """'a,b' -> ('a', 'b'); '' -> ()."""
    return tuple(word.strip() for word in text.split(',') if word.strip())


class Answered(Exception):
    """--help or --version was asked and answered."""

    def __init__(self, code: int):
        super().__init__()
        self.code = code


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are our one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f'{message} (see `{self.prog} --help`)')

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise Answered(status)


def parse_arguments(argv: Sequence[str], commands: Mapping[str, Command]) -> tuple[Command, argparse.Namespace]:
    """The command and its arguments; `gin_file` and `gin` are lists where the command takes settings.

    Raises:
        UsageError: an unknown command or flag, a missing or malformed value.
    """
    argv = list(argv)
    if not argv or argv[0] in ('--help', '-h', 'help'):
        print(_overview(commands))
        raise Answered(0 if argv else 2)
    if argv[0] == '--version':
        print(f't5flan {__version__}')
        raise Answered(0)
    command = commands.get(argv[0])
    if command is None:
        what = 'flag' if argv[0].startswith('-') else 'command'
        meant = nearest(argv[0], commands)
        raise UsageError(
            f'there is no {what} {argv[0]}{f": did you mean {meant}?" if meant else ""} (see `t5flan --help`)'
        )
    rest, gin = _split_gin(argv[1:])
    _check_flags(command, rest, gin)
    arguments = _parser(command).parse_args(rest)
    arguments.gin = gin
    return command, arguments


def _split_gin(argv: list[str]) -> tuple[list[str], list[str]]:
    """Takes `--gin.NAME=VALUE` and `--gin.NAME VALUE` out of the arguments, as `NAME=VALUE`."""
    rest, gin = [], []
    words = iter(argv)
    for word in words:
        if not word.startswith('--gin.'):
            rest.append(word)
            continue
        if '=' not in word:
            value = next(words, None)
            if value is None or value.startswith('--'):
                raise UsageError(f'{word} has no value: write {word}=VALUE')
            word = f'{word}={value}'
        gin.append(word.removeprefix('--gin.'))
    return rest, gin


def _check_flags(command: Command, rest: Sequence[str], gin: Sequence[str]) -> None:
    known = [flag.name for flag in command.flags if flag.name.startswith('--')] + ['--help']
    known += ['--gin_file'] if command.gin else []
    if gin and not command.gin:
        raise UsageError(
            f'`t5flan {command.name}` takes no settings (--gin.{gin[0]}): it reads those of the checkpoint '
            f'(see `t5flan {command.name} --help`)'
        )
    for word in rest:
        name = word.partition('=')[0]
        if name.startswith('--') and len(name) > 2 and name not in known:
            meant = nearest(name, known)
            raise UsageError(
                f'`t5flan {command.name}` has no flag {name}{f": did you mean {meant}?" if meant else ""} '
                f'(see `t5flan {command.name} --help`)'
            )


def _parser(command: Command) -> _Parser:
    parser = _Parser(
        prog=f't5flan {command.name}',
        description=command.summary,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_epilog(command),
    )
    for flag in command.flags:
        options = {'help': flag.help, 'type': flag.type, 'default': flag.default, 'metavar': flag.metavar or None}
        if flag.type is bool:
            options = {'help': flag.help, 'action': 'store_true'}
        elif flag.many:
            options |= {'action': 'append'}
        if flag.name.startswith('--'):
            options['required'] = flag.required
        elif not flag.required:
            options['nargs'] = '?'
        parser.add_argument(flag.name, **options)
    if command.gin:
        parser.add_argument(
            '--gin_file',
            action='append',
            default=[],
            metavar='FILE',
            help='a gin file, here or among the packaged ones; may be given several times, the last wins',
        )
    return parser


def _overview(commands: Mapping[str, Command]) -> str:
    width = max(map(len, commands))
    lines = [
        'usage: t5flan COMMAND [--flag=VALUE]… [--gin_file=FILE]… [--gin.NAME=VALUE]…',
        '',
        'Text to a model that follows instructions.',
        '',
        'commands:',
    ]
    lines += [f'  {command.name:<{width}}  {command.summary}' for command in commands.values()]
    lines += [
        '',
        '`t5flan COMMAND --help` shows its flags. `t5flan quickstart` does everything once, in a few minutes.',
    ]
    return '\n'.join(lines)


def _epilog(command: Command) -> str:
    lines = ['example:', f'  {command.example}'] if command.example else []
    if command.gin:
        from t5flan import configurables
        from t5flan.config.gin_files import packaged_files

        files = [name for name in packaged_files() if not name.startswith('models/')]
        models = [Path(name).stem for name in packaged_files() if name.startswith('models/')]
        lines += [
            '',
            'settings:',
            '  --gin.MACRO=VALUE or --gin.CLASS.FIELD=VALUE, where CLASS is one of',
            *_wrapped(configurables.CONFIGURABLES),
            '',
            'packaged gin files:',
            *_wrapped(files),
            '  models/…:',
            *_wrapped(models),
        ]
    return '\n'.join(lines)


def _wrapped(words: Sequence[str]) -> list[str]:
    import textwrap

    return textwrap.wrap(', '.join(words), 100, initial_indent='    ', subsequent_indent='    ', break_on_hyphens=False)
