"""The command line: `t5flan COMMAND [--flag=VALUE]… [--gin_file=FILE]… [--gin.NAME=VALUE]…`, or `python -m t5flan …`.

A command checks flags and settings before it imports JAX or TensorFlow, so that `--help` and mistakes answer at once.
Exit codes: 0 done, 1 failed with one clear line, 2 wrong usage.
"""

import argparse
import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import t5flan
from t5flan.errors import UsageError, UserError, nearest


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


JSON = Flag('--json', 'also write the table to FILE as JSON', 'FILE')
CHECKPOINT = Flag('--checkpoint', 'the workdir of a `t5flan train` run, or one of its steps: DIR/checkpoints/1000', 'DIR', required=True)


def console() -> NoReturn:
    """What the installed `t5flan` runs."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors='replace')  # a terminal that cannot show a letter is no reason to fail
    sys.exit(main(sys.argv[1:]))


def main(argv: Sequence[str]) -> int:
    """Runs one command and returns the exit code."""
    try:
        command, arguments = parse_arguments(argv)
        prepare_surroundings()
        command.run(arguments)
        sys.stdout.flush()
        return 0
    except _Answered as answered:
        return answered.code
    except UserError as error:
        print(f't5flan: {_one_line(error)}', file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except BrokenPipeError:  # the reader of our output (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.strerror is None:  # not the operating system's own word: a fault of ours
            raise
        where = f': {error.filename}' if error.filename is not None else ''
        print(f't5flan: {error.strerror}{where}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nt5flan: stopped', file=sys.stderr)
        return 1


class _Answered(Exception):
    """--help or --version was asked and answered."""

    def __init__(self, code: int):
        super().__init__()
        self.code = code


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())


def prepare_surroundings() -> None:
    """What JAX and TensorFlow read from the environment when a command imports them; what is set already stays."""
    cache = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 't5flan' / 'jax'
    defaults = {
        'JAX_COMPILATION_CACHE_DIR': str(cache),  # a second start of the same run compiles nothing
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
        'TF_CPP_MIN_LOG_LEVEL': '3',  # TensorFlow reads data here; its start-up notes are no news
        'TF_ENABLE_ONEDNN_OPTS': '0',
        'GRPC_VERBOSITY': 'ERROR',
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    import absl.logging

    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax warns of what is as it should be


def import_tensorflow() -> None:
    """Imports TensorFlow without its start-up notes (they come before its log level is read) and keeps it off the GPUs.

    TensorFlow reads data here; a GPU's memory is JAX's.
    """
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as notes:
        os.dup2(notes.fileno(), 2)
        try:
            import tensorflow as tf
            import tensorflow_text  # noqa: F401  SeqIO's, as talkative

            tf.config.set_visible_devices([], 'GPU')
        except BaseException:
            notes.seek(0)
            os.write(screen, notes.read())
            raise
        finally:
            os.dup2(screen, 2)
            os.close(screen)


# -- Reading the command line ---------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are our one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f'{message} (see `{self.prog} --help`)')

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise _Answered(status)


def parse_arguments(argv: Sequence[str]) -> tuple[Command, argparse.Namespace]:
    """The command and its arguments; `gin_file` and `gin` are lists where the command takes settings.

    Raises:
      UsageError: an unknown command or flag, a missing or malformed value.
    """
    argv = list(argv)
    if not argv or argv[0] in ('--help', '-h', 'help'):
        print(_overview())
        raise _Answered(0 if argv else 2)
    if argv[0] == '--version':
        print(f't5flan {t5flan.__version__}')
        raise _Answered(0)
    command = COMMANDS.get(argv[0])
    if command is None:
        what = 'flag' if argv[0].startswith('-') else 'command'
        meant = nearest(argv[0], COMMANDS)
        raise UsageError(f'there is no {what} {argv[0]}{f": did you mean {meant}?" if meant else ""} (see `t5flan --help`)')
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
        raise UsageError(f'`t5flan {command.name}` takes no settings (--gin.{gin[0]}): it reads those of the checkpoint '
                         f'(see `t5flan {command.name} --help`)')
    for word in rest:
        name = word.partition('=')[0]
        if name.startswith('--') and len(name) > 2 and name not in known:
            meant = nearest(name, known)
            raise UsageError(f'`t5flan {command.name}` has no flag {name}{f": did you mean {meant}?" if meant else ""} '
                             f'(see `t5flan {command.name} --help`)')


def _parser(command: Command) -> _Parser:
    parser = _Parser(prog=f't5flan {command.name}', description=command.summary, allow_abbrev=False,
                     formatter_class=argparse.RawDescriptionHelpFormatter, epilog=_epilog(command))
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
        parser.add_argument('--gin_file', action='append', default=[], metavar='FILE',
                            help='a gin file, here or among the packaged ones; may be given several times, the last wins')
    return parser


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = ['usage: t5flan COMMAND [--flag=VALUE]… [--gin_file=FILE]… [--gin.NAME=VALUE]…', '',
             'Text to a model that follows instructions.', '', 'commands:']
    lines += [f'  {command.name:<{width}}  {command.summary}' for command in COMMANDS.values()]
    lines += ['', '`t5flan COMMAND --help` shows its flags. `t5flan quickstart` does everything once, in a few minutes.']
    return '\n'.join(lines)


def _epilog(command: Command) -> str:
    lines = ['example:', f'  {command.example}'] if command.example else []
    if command.gin:
        from t5flan import config

        files = [name for name in config.packaged_files() if not name.startswith('models/')]
        models = [Path(name).stem for name in config.packaged_files() if name.startswith('models/')]
        lines += ['', 'settings:', '  --gin.MACRO=VALUE or --gin.CLASS.FIELD=VALUE, where CLASS is one of',
                  *_wrapped(config.CONFIGURABLES), '', 'packaged gin files:', *_wrapped(files), '  models/…:', *_wrapped(models)]
    return '\n'.join(lines)


def _wrapped(words: Sequence[str]) -> list[str]:
    import textwrap

    return textwrap.wrap(', '.join(words), 100, initial_indent='    ', subsequent_indent='    ', break_on_hyphens=False)


# -- Commands: each imports what it needs when it runs --------------------------------------------------------------


def train(arguments: argparse.Namespace) -> None:
    """Trains, or goes on where the workdir stopped, with its own settings where no gin file is given."""
    from t5flan import config
    from t5flan.data.config import DataConfig
    from t5flan.models.config import ModelConfig
    from t5flan.training.config import (CheckpointConfig, EvaluationConfig, LossConfig, MeshConfig, OptimizerConfig,
                                        RunConfig)

    files = arguments.gin_file
    workdir = arguments.workdir.rstrip('/') or '/'
    if not files and config.exists(f'{workdir}/config.gin'):
        files = [f'{workdir}/config.gin']
    if not files and not arguments.gin:
        raise UsageError(f'{workdir} holds no run to go on with, and no settings are given: name a run file, as '
                         '--gin_file=examples/tiny_stdlib_pretrain (see `t5flan train --help`)')
    kinds = {'model': ModelConfig, 'data': DataConfig, 'run': RunConfig, 'optimizer': OptimizerConfig, 'loss': LossConfig,
             'mesh': MeshConfig, 'checkpoints': CheckpointConfig, 'evaluation': EvaluationConfig}
    settings = config.parse(files, arguments.gin)
    _take_from_checkpoint(settings, workdir, list(kinds.values()))
    values = dict(zip(kinds, settings.read_all(list(kinds.values()), 'train'), strict=True))

    import_tensorflow()
    from t5flan.tasks import register_all
    from t5flan.train import train as run

    register_all(values['data'])
    run(workdir, **values, gin=settings.operative_config())


def _take_from_checkpoint(settings: Any, workdir: str, kinds: Sequence[type]) -> None:
    """Model, format and vocabulary of this workdir, or of the folder that the run starts from, where gin gives none.

    Raises:
      UserError: the folder to start from is none, or is a setting that is not given.
    """
    from t5flan import config
    from t5flan.data.config import DataConfig
    from t5flan.models.config import ModelConfig
    from t5flan.training.config import CheckpointConfig

    has_model = settings.gives(ModelConfig, 'architecture')
    found = config.checkpoint_settings(workdir)
    if found is None:
        if not settings.can_read(CheckpointConfig):  # the rest will come from the folder that is not given
            settings.offer(DataConfig, {'vocabulary': 'that of the folder'}, '')
            settings.read_all([kind for kind in kinds if kind is not ModelConfig or has_model], 'train')
        source = settings.read(CheckpointConfig).initialize_from
        if source is None:
            return
        found = config.checkpoint_settings(source)
        if found is None:
            raise UserError(f'CheckpointConfig.initialize_from={source} is no checkpoint folder (it has no t5flan.json): '
                            'set it to the workdir of a `t5flan train` run')
    path, values = found
    for kind, fields in values.items():
        if kind is not ModelConfig or not has_model:  # a model is taken whole or not at all
            settings.offer(kind, fields, path)


def quickstart(arguments: argparse.Namespace) -> None:
    """From nothing to a model that follows instructions."""
    import_tensorflow()
    from t5flan.quickstart import main as run
    from t5flan.tasks import register_all

    register_all()
    run(arguments.workdir, arguments.examples)


def mixture(arguments: argparse.Namespace) -> None:
    """Shows what a task or mixture holds; without a name, which there are."""
    from t5flan import config
    from t5flan.data.config import DataConfig

    named = [f'DataConfig.mixture={arguments.name}'] if arguments.name else []
    settings = config.parse(arguments.gin_file, [*arguments.gin, *named])
    shown = {'mixture': '-', 'batch_size': 1, 'feature_lengths': {'inputs': 512, 'targets': 512}, 'vocabulary': 'bytes'}
    is_list = not settings.gives(DataConfig, 'mixture')
    settings.offer(DataConfig, shown, 't5flan mixture')
    data = settings.read(DataConfig, 'mixture')

    import_tensorflow()
    from t5flan.data.describe import main as describe
    from t5flan.tasks import register_all

    register_all(data)
    if is_list:
        _list_mixtures(arguments.json)
    else:
        describe(data, arguments.json, arguments.sample, arguments.examples)


def evaluate(arguments: argparse.Namespace) -> None:
    """Measures a checkpoint on held-out splits; tasks of its own files and modules are known again."""
    from t5flan import config
    from t5flan.data.config import DataConfig

    found = config.checkpoint_settings(arguments.checkpoint)
    if found is None:
        raise UserError(f'{arguments.checkpoint} is no checkpoint folder (it has no t5flan.json): '
                        'set --checkpoint to the workdir of a `t5flan train` run')
    saved = found[0].replace('t5flan.json', 'config.gin')
    settings = config.parse([*([saved] if config.exists(saved) else []), *arguments.gin_file], arguments.gin)
    data = settings.read(DataConfig) if settings.can_read(DataConfig) else None
    tasks = arguments.tasks or ((data.mixture,) if data else ())
    if not tasks:
        raise UsageError('no task is named: write --tasks=NAME,NAME (`t5flan mixture` lists them)')

    import_tensorflow()
    from t5flan.evaluate import evaluate as run
    from t5flan.tasks import register_all

    register_all(data)
    run(arguments.checkpoint, tasks, split=arguments.split, limit=arguments.limit, predictions=arguments.predictions,
        json_file=arguments.json, **_decoding(arguments))


def infer(arguments: argparse.Namespace) -> None:
    """Continues prompts, or every row of a file."""
    from t5flan.infer import infer as run

    run(arguments.checkpoint, prompts=arguments.prompt or (), input=arguments.input, output=arguments.output,
        field=arguments.field, json_file=arguments.json, **_decoding(arguments))


def _decoding(arguments: argparse.Namespace) -> dict[str, Any]:
    return {flag.name[2:]: getattr(arguments, flag.name[2:]) for flag in DECODING}


def report(arguments: argparse.Namespace) -> None:
    """Writes the page of a run."""
    from t5flan.report import report as run

    run(arguments.workdir, arguments.output)


def _list_mixtures(json_path: str | None) -> None:
    import json

    import seqio

    names = {'mixtures': sorted(seqio.MixtureRegistry.names()), 'tasks': sorted(seqio.TaskRegistry.names())}
    for kind, found in names.items():
        print(f'{kind}:', *found, sep='\n  ')
    if json_path:
        Path(json_path).write_text(json.dumps(names, indent=1) + '\n', encoding='utf-8')


def vocabulary(arguments: argparse.Namespace) -> None:
    """Trains a SentencePiece vocabulary."""
    from t5flan.data.vocabulary_training import train_vocabulary

    trained = train_vocabulary(arguments.input, arguments.size, arguments.output, arguments.extra_ids,
                               arguments.mode_tokens, arguments.fields)
    print(f'{arguments.output}: {trained.vocab_size:,} ids; set --gin.VOCABULARY={arguments.output} and '
          f'--gin.ModelConfig.vocab_size={-(-trained.vocab_size // 128) * 128} or more')


DECODING = (
    Flag('--step', 'the checkpoint of this step; the latest', 'N', int),
    Flag('--max_new_tokens', 'the longest answer; the length of targets in training', 'N', int),
    Flag('--temperature', '0 takes the likeliest token; above it draws (0)', 'X', float, 0.0),
    Flag('--top_k', 'draws among the K likeliest tokens; 0 among all (0)', 'K', int, 0),
    Flag('--top_p', 'draws among the likeliest tokens that make up this share (1)', 'X', float, 1.0),
    Flag('--seed', 'decides what is drawn (0)', 'N', int, 0),
    Flag('--batch_size', 'rows at a time (32)', 'N', int, 32),
)

COMMANDS: dict[str, Command] = {command.name: command for command in (
    Command('quickstart', 'on any machine, from nothing: pretrains, instructs, evaluates, generates, reports', quickstart,
            example='t5flan quickstart',
            flags=(Flag('--workdir', 'the folder of both runs and the report; an earlier quickstart in it is removed', 'DIR',
                        default='runs/quickstart'),
                   Flag('--examples', 'questions asked of each task (32)', 'N', int, 32))),
    Command('train', 'trains a model, or goes on where DIR stopped', train, gin=True,
            example='t5flan train --workdir=runs/mine --gin_file=runs/finetune --gin.MIXTURE=practice '
                    '--gin.INITIALIZE_FROM=runs/pretrain',
            flags=(Flag('--workdir', 'the folder of the run: checkpoints, metrics, settings; local or gs://', 'DIR', required=True),)),
    Command('evaluate', 'measures a checkpoint on held-out splits: metrics as a table and as JSON', evaluate, gin=True,
            example='t5flan evaluate --checkpoint=runs/mine --tasks=practice --limit=50',
            flags=(CHECKPOINT, Flag('--tasks', 'tasks and mixtures, with commas between; what the run was trained on', 'A,B', words),
                   Flag('--split', 'of the tasks (validation)', 'NAME', default='validation'),
                   Flag('--limit', 'the first so many examples of each task; all', 'N', int), *DECODING,
                   Flag('--predictions', 'also write every row to FILE.jsonl', 'FILE'), JSON)),
    Command('infer', 'writes what a model answers to prompts, or to every row of a file; goes on where it was stopped', infer,
            example='t5flan infer --checkpoint=runs/mine --prompt="What is 3 plus 4?"',
            flags=(CHECKPOINT, Flag('--prompt', 'a text to answer; may be given several times', 'TEXT', many=True),
                   Flag('--input', 'a .jsonl, or any text file, a prompt a line', 'FILE'),
                   Flag('--output', 'a .jsonl: the rows of the input with their predictions', 'FILE'),
                   Flag('--field', 'of a .jsonl, that holds the prompt (inputs)', 'NAME', default='inputs'), *DECODING, JSON)),
    Command('report', 'writes one self-contained HTML page of a run: curves, tables, sample predictions', report,
            example='t5flan report runs/mine',
            flags=(Flag('workdir', 'of a `t5flan train` run', 'WORKDIR', required=True),
                   Flag('--output', 'the page; WORKDIR/report.html', 'FILE'))),
    Command('mixture', "shows a task's or mixture's rates, counts, lengths and a few examples, before anything is trained", mixture,
            gin=True, example='t5flan mixture practice',
            flags=(Flag('name', 'of a task or mixture; without it, all names are listed', 'NAME'),
                   Flag('--sample', 'examples of each task that lengths are measured on (100)', 'N', int, 100),
                   Flag('--examples', 'examples shown (3)', 'N', int, 3), JSON)),
    Command('vocabulary', 'trains a SentencePiece vocabulary with sentinels and mode tokens', vocabulary,
            example="t5flan vocabulary --input='books/*.txt' --size=32000 --output=books.model",
            flags=(Flag('--input', '.txt or .jsonl files; may be given several times', 'GLOB', required=True, many=True),
                   Flag('--size', 'all ids, sentinels and mode tokens among them', 'N', int, required=True),
                   Flag('--output', 'the vocabulary; its description is written beside it as .json', 'F.model', required=True),
                   Flag('--extra_ids', 'sentinels (100)', 'N', int, 100),
                   Flag('--mode_tokens', 'with commas between ([NLU],[NLG],[S2S])', 'A,B', words, ('[NLU]', '[NLG]', '[S2S]')),
                   Flag('--fields', 'of .jsonl files, with commas between (text,inputs,targets)', 'A,B', words,
                        ('text', 'inputs', 'targets')))),
)}


if __name__ == '__main__':
    console()
