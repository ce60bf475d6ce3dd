"""`t5flan infer`: continues prompts, or every row of a file, a data set or a task; several jobs may share the rows."""

import argparse
import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from t5flan.commands.arguments import COUNT, Command, Flag, words
from t5flan.commands.flags import (
    ADAPTER,
    ADAPTERS,
    CHECKPOINT,
    CONTROL,
    JSON,
    PROCESSES,
    connect,
    decoding_flags,
    own_checkpoint,
    read_adapters,
    read_data,
    read_decoding,
    read_run,
)
from t5flan.commands.startup import register_tasks
from t5flan.errors import UsageError
from t5flan.files import to_path

if TYPE_CHECKING:
    from t5flan.config.settings import Settings

_OF_TASK = ('split', 'limit')


def run(arguments: argparse.Namespace) -> None:
    """Continues prompts, or every row of a file; or merges the files of several jobs."""
    from t5flan import configurables
    from t5flan.evaluation.inference import ALL, converse, infer
    from t5flan.evaluation.row_files import read_part

    if arguments.merge is not None:
        _merge(arguments)
        return
    _check(arguments)
    adapters = read_adapters(arguments)
    shard = ALL if arguments.shard is None else read_part(arguments.shard)
    connect(arguments, always=arguments.multi_host)  # before anything runs in JAX
    settings = read_run(arguments) if arguments.task else configurables.parse(arguments.gin_file, arguments.gin)
    decoding = read_decoding(settings, arguments, 'infer')
    arguments.checkpoint = own_checkpoint(arguments.checkpoint)
    if arguments.chat and not (arguments.prompt or arguments.input or arguments.task):
        for flag in ('output', 'control', 'json', 'shard', 'adapters'):
            if getattr(arguments, flag):
                raise UsageError(f'--{flag} needs --prompt or --input; --chat alone is a conversation in the terminal')
        converse(arguments.checkpoint, step=arguments.step, decoding=decoding)
        return
    given = _task_prompts(arguments, settings) if arguments.task else {'input': arguments.input}
    infer(
        arguments.checkpoint,
        prompts=arguments.prompt or (),
        output=arguments.output,
        field=arguments.field,
        control=arguments.control or (),
        step=arguments.step,
        decoding=decoding,
        json_file=arguments.json,
        chat=arguments.chat,
        shard=shard,
        adapters=adapters,
        adapter=arguments.adapter,
        **given,
    )


def _check(arguments: argparse.Namespace) -> None:
    if not arguments.checkpoint:
        raise UsageError('no checkpoint is given: set --checkpoint=DIR (or --merge=FILE, which needs none)')
    if arguments.task and arguments.input:
        raise UsageError('--task and --input both give the rows. Remove one of them')
    if not arguments.task:
        for name in _OF_TASK:
            if getattr(arguments, name) is not None:
                raise UsageError(f'--{name} is of --task. Remove it')
        for binding in arguments.gin:
            name = binding.partition('=')[0]
            if '.' in name and not name.startswith('Decoding.'):
                raise UsageError(f'`t5flan infer` takes no --gin.{name}: it reads only Decoding, and the checkpoint')
    if not (arguments.input or arguments.task):
        for name in ('shard', 'multi_host', 'coordinator'):
            if getattr(arguments, name):
                raise UsageError(f'--{name} divides the rows of --input or --task. Set one of them, or remove it')


def _task_prompts(arguments: argparse.Namespace, settings: 'Settings') -> dict[str, Any]:
    """The rows of SeqIO tasks, worded as the checkpoint's own settings say: arguments of `infer`."""
    data = read_data(settings, arguments.checkpoint, '-', 'infer')
    register_tasks(data, arguments.task)
    from t5flan.evaluation.evaluator import prompt_format_of, task_prompts

    read = functools.partial(
        task_prompts,
        tasks=arguments.task,
        split=arguments.split or 'validation',
        limit=arguments.limit,
        instructions=data.instructions,
        feature_lengths=data.feature_lengths,
    )
    return {'input': read, 'prompt_format': prompt_format_of(data.instructions)}


def _merge(arguments: argparse.Namespace) -> None:
    for name in (
        'checkpoint',
        'prompt',
        'input',
        'task',
        'shard',
        'json',
        'multi_host',
        'coordinator',
        'adapters',
        'adapter',
    ):
        if getattr(arguments, name):
            raise UsageError(f'--merge only puts files together: it takes --output, not --{name}')
    from t5flan.evaluation.row_files import merge

    target = to_path(arguments.output or arguments.merge)
    print(f'{target}: {merge(to_path(arguments.merge), target)} rows')


COMMAND = Command(
    'infer',
    'continues prompts, or every row of a file or task; resumes where it was stopped; jobs may share the rows',
    run,
    gin=True,
    example='t5flan infer --checkpoint=runs/mine --prompt="What is 3 plus 4?"',
    runs_model=True,
    flags=(
        dataclasses.replace(CHECKPOINT, required=False),
        Flag('--prompt', 'a text to continue; may be given several times', 'TEXT', many=True),
        Flag(
            '--input',
            'rows (.jsonl, .json, .csv, .tsv, .parquet), a data set (hf:NAME), or a text file of a prompt per line',
            'FILE',
        ),
        Flag('--task', 'instead of --input: SeqIO tasks and mixtures, separated by commas', 'A,B', words),
        Flag('--split', 'with --task: split of the tasks (default: validation)', 'NAME'),
        Flag('--limit', 'with --task: only the first N examples of each task (default: all)', 'N', COUNT),
        Flag('--output', 'a .jsonl file: the rows of the input with their predictions', 'FILE', writes='shared'),
        Flag('--field', 'field of the rows that holds the prompt (default: inputs)', 'NAME', default='inputs'),
        Flag(
            '--shard',
            'job I of N (from 0) answers rows I, I+N, I+2N, ... in a file of its own beside --output; the last job to '
            'finish merges the files into --output',
            'I/N',
        ),
        Flag('--multi_host', 'the processes of this job, which the cluster starts, divide its rows further', type=bool),
        *PROCESSES,
        Flag('--merge', 'merge the files that jobs with --output=FILE wrote, into --output (default: FILE)', 'FILE'),
        Flag('--chat', "word each prompt with the tokenizer's chat template; alone, talk in the terminal", type=bool),
        CONTROL,
        dataclasses.replace(ADAPTERS, help=f"{ADAPTERS.help}; a row's field 'adapter' names its own"),
        dataclasses.replace(ADAPTER, help='the adapter of prompts, and of rows without this field (default: none)'),
        *decoding_flags(),
        Flag('--samples', 'samples of each prompt, all written with their scores (default: 1)', 'N', int),
        JSON,
    ),
)
