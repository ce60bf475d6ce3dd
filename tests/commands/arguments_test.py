"""Parsing a command line: help responds at once, mistakes are one line with exit code 2."""

import re
import shlex
import subprocess
import sys
import time

import pytest

from t5flan.commands import COMMANDS
from t5flan.commands.arguments import Command, Flag, parse_arguments, words
from t5flan.errors import UsageError

HEAVY = ('jax', 'jaxlib', 'flax', 'optax', 'orbax', 'tensorflow', 'seqio', 'numpy', 'matplotlib')


def fastest(*argv: str, times: int = 5) -> float:
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        subprocess.run([sys.executable, *argv], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


# -- Help -----------------------------------------------------------------------------------------------------------


def test_help_lists_every_command(cli):
    code, out, err = cli('--help')
    assert code == 0 and err == ''
    for name, command in COMMANDS.items():
        assert f'\n  {name} ' in out and command.summary in out
    assert cli()[0] == 2 and cli()[1] == out
    assert cli('--version')[1].startswith('t5flan 0.')


@pytest.mark.parametrize('name', COMMANDS)
def test_help_of_a_command_shows_its_flags_and_an_example(cli, name):
    code, out, _ = cli(name, '--help')
    command = COMMANDS[name]
    assert code == 0
    for flag in command.flags:
        assert (flag.name if flag.name.startswith('--') else flag.metavar) in out
    assert command.example.startswith(f't5flan {name}') and command.example in out
    assert ('--gin_file' in out) == command.gin and ('models/…' in out) == command.gin


@pytest.mark.parametrize('name', COMMANDS)
def test_help_states_the_default_of_each_flag(name):
    for flag in COMMANDS[name].flags:
        if flag.default not in (None, '', ()):
            default = ','.join(flag.default) if isinstance(flag.default, tuple) else flag.default
            assert f'(default: {default})' in flag.help, flag


@pytest.mark.parametrize('name', COMMANDS)
def test_the_example_of_a_command_parses(name):
    command, arguments = parse_arguments(shlex.split(COMMANDS[name].example)[1:], COMMANDS)
    assert command is COMMANDS[name] and isinstance(arguments.gin, list)


def test_help_and_mistakes_import_nothing_heavy():
    lines = [
        [],
        *([name, '--help'] for name in COMMANDS),
        ['trian'],
        ['train', '--workdri=x'],
        ['train', '--workdir=/nonexistent/x'],
        ['train', '--workdir=/nonexistent/x', '--gin_file=runs/finetune'],
        ['train', '--workdir=/nonexistent/x', '--gin.NAME=3'],
    ]
    code = (
        f'import sys; from t5flan.__main__ import main; codes = [main(line) for line in {lines!r}];'
        f'print(codes, [m for m in {HEAVY!r} if m in sys.modules])'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f'{[2] + [0] * len(COMMANDS) + [2] * 5} []'


def test_help_responds_at_once():
    """Within half a second if Python itself starts in 25 ms, and in proportion on a slower machine."""
    start = fastest('-c', 'pass')
    for argv in (['--help'], ['train', '--help']):
        assert fastest('-m', 't5flan', *argv) < max(0.5, 20 * start)


# -- Mistakes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'argv, expected',
    [
        (['trian'], 'unknown command trian; did you mean train? (see `t5flan --help`)'),
        (['--workdir=x'], 'unknown flag --workdir=x'),
        (
            ['train', '--workdri=x'],
            '`t5flan train` has no flag --workdri; did you mean --workdir? (see `t5flan train --help`)',
        ),
        (['train', '--work=x'], '`t5flan train` has no flag --work'),  # an abbreviation breaks when a flag is added
        (['train'], 'the following arguments are required: --workdir'),
        (['train', '--workdir'], 'argument --workdir: expected one argument'),
        (['train', '--workdir=x', 'y'], 'unrecognized arguments: y'),
        (['train', '--workdir=x', '--gin.STEPS'], '--gin.STEPS has no value: write --gin.STEPS=VALUE'),
        (['train', '--workdir=x', '--gin.STEPS', '--gin.B=1'], '--gin.STEPS has no value'),
        (['train', '--workdir=/nonexistent', '--gin_file=runs/pretrian'], 'did you mean runs/pretrain.gin?'),
        (['vocabulary', '--gin.STEPS=1'], '`t5flan vocabulary` takes no gin settings, got --gin.STEPS=1'),
        (['vocabulary', '--input=a', '--output=b.model', '--size=many'], "argument --size: invalid int value: 'many'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(cli, argv, expected):
    code, out, err = cli(*argv)
    assert code == 2 and out == '' and err.startswith('t5flan: ') and expected in err
    assert err.count('\n') == 1


# -- Values ---------------------------------------------------------------------------------------------------------


def test_words():
    assert words('a, b') == ('a', 'b') and words('') == words(' , ') == ()


def test_values_of_flags_and_gin(monkeypatch):
    flags = (
        Flag('name', ''),
        Flag('--workdir', '', required=True),
        Flag('--count', '', type=int, default=3),
        Flag('--input', '', many=True),
        Flag('--fields', '', type=words, default=()),
        Flag('--all', '', type=bool),
    )
    monkeypatch.setitem(COMMANDS, 'try', Command('try', '', lambda _: None, flags, gin=True))
    line = (
        'try practice --workdir "a b" --gin.STEPS 3 --gin_file x --gin.A/FileTask.name=b=c --gin_file=y --input=1 '
        '--input 2 "--fields=a, b" --all'
    )
    _, a = parse_arguments(shlex.split(line), COMMANDS)
    assert (a.name, a.workdir, a.count, a.gin_file) == ('practice', 'a b', 3, ['x', 'y'])
    assert a.gin == ['STEPS=3', 'A/FileTask.name=b=c']
    assert (a.input, a.fields, a.all) == (['1', '2'], ('a', 'b'), True)
    _, a = parse_arguments(['try', '--workdir=w', '--gin.RATE=-1'], COMMANDS)
    assert (a.name, a.input, a.fields, a.all, a.gin) == (None, None, (), False, ['RATE=-1'])


@pytest.mark.parametrize(
    'line, message',
    [
        ('infer --checkpoint=a --step=1 --step=2', '--step is given 2 times, expected once'),
        ('train --workdir=a --workdir b', '--workdir is given 2 times'),
        ('infer --checkpoint=a --chat --chat', '--chat is given 2 times'),
        ('deduplicate --input=a --output=b.jsonl --threshold=1.5', '--threshold=1.5, expected a number above 0 and at'),
        ('deduplicate --input=a --output=b.jsonl --ngram=-1', '--ngram=-1, expected an integer of 1 or more'),
        ('convert a b --from=hf --to=hf --add_sentinels=2000000', 'expected an integer from 0 to 1000000'),
    ],
)
def test_flags_twice_or_out_of_their_limits(line, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_arguments(line.split(), COMMANDS)


def test_flags_of_lists_may_be_given_twice():
    _, arguments = parse_arguments(['infer', '--checkpoint=a', '--prompt=b', '--prompt=c'], COMMANDS)
    assert arguments.prompt == ['b', 'c']
