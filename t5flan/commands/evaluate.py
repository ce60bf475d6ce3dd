"""`t5flan evaluate`: evaluates a checkpoint on held-out splits, with the files and modules of its run registered.

With --benchmark, it asks the checkpoint the questions of public benchmarks instead. Several processes share the work.
"""

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from t5flan.commands.arguments import COUNT, Command, Flag, words
from t5flan.commands.flags import (
    ADAPTER,
    ADAPTERS,
    CHECKPOINT,
    JSON,
    PROCESSES,
    connect,
    decoding_flags,
    read_adapters,
    read_data,
    read_decoding,
    read_run,
)
from t5flan.commands.startup import hold_file, register_tasks
from t5flan.errors import UsageError

if TYPE_CHECKING:
    from t5flan.config.settings import Settings


def run(arguments: argparse.Namespace) -> None:
    """Evaluates a checkpoint on held-out splits or on public benchmarks."""
    if bool(arguments.benchmark) != bool(arguments.benchmark_dir):
        raise UsageError('--benchmark=NAME,NAME and --benchmark_dir=DIR go together')
    for name in () if arguments.benchmark else ('prompt_length', 'samples'):
        if getattr(arguments, name) is not None:
            raise UsageError(f'--{name} is of --benchmark; held-out splits have their own. Remove it')
    adapter = _adapter(arguments)
    several = connect(arguments, always=arguments.multi_host)  # before anything runs in JAX
    with _held_json(arguments.json, several):
        if arguments.benchmark:
            _run_benchmarks(arguments, adapter)
        else:
            _run_tasks(arguments, adapter)


def _held_json(path: str | None, several: bool) -> contextlib.AbstractContextManager[None]:
    """Holds the file of results, which only the first of several processes writes."""
    if path is not None and several:
        import jax

        if jax.process_index():
            return contextlib.nullcontext()
    return hold_file(path, '--json')


def _adapter(arguments: argparse.Namespace) -> str | None:
    """The folder that --adapter names."""
    found = read_adapters(arguments)
    if found and arguments.adapter is None:
        raise UsageError(f'--adapters has {", ".join(found)}, of which every row has one. Set --adapter=NAME')
    return found[arguments.adapter] if found else None


def _run_tasks(arguments: argparse.Namespace, adapter: str | None) -> None:
    from t5flan.data.config import DataConfig

    settings = read_run(arguments)
    if not arguments.tasks and not settings.binds(DataConfig, 'mixture'):
        raise UsageError('no task is given: set --tasks=NAME,NAME (`t5flan mixture` lists them)')
    data = read_data(settings, arguments.checkpoint, '-', 'evaluate')
    tasks = arguments.tasks or (data.mixture,)
    decoding = read_decoding(settings, arguments, 'evaluate')

    register_tasks(data, tasks)
    steps = _steps(arguments, settings)
    from t5flan.evaluation.evaluator import evaluate

    evaluate(
        arguments.checkpoint,
        tasks,
        split=arguments.split,
        limit=arguments.limit,
        step=arguments.step,
        steps=steps,
        decoding=decoding,
        predictions=arguments.predictions,
        json_file=arguments.json,
        instructions=data.instructions,
        feature_lengths=data.feature_lengths,
        adapter=adapter,
    )


def _steps(arguments: argparse.Namespace, settings: 'Settings') -> 'Iterator[int] | None':
    """The steps of --steps, by the settings of the run; None without that flag."""
    if arguments.steps is None:
        return None
    if arguments.step is not None:
        raise UsageError('--step and --steps both choose checkpoints. Remove one of them')
    from t5flan.evaluation.steps import chosen_steps
    from t5flan.training.config import CheckpointConfig, EvaluationConfig

    config = settings.read(CheckpointConfig).resolved(settings.read(EvaluationConfig).every > 0)
    return chosen_steps(arguments.checkpoint, arguments.steps, config)


def _run_benchmarks(arguments: argparse.Namespace, adapter: str | None) -> None:
    from t5flan.tasks.benchmarks import find

    benchmarks = [find(name) for name in arguments.benchmark]
    settings = read_run(arguments)
    decoding = read_decoding(settings, arguments, 'evaluate')
    steps = _steps(arguments, settings)
    from t5flan.evaluation.benchmarks import evaluate_benchmarks

    evaluate_benchmarks(
        arguments.checkpoint,
        benchmarks,
        arguments.benchmark_dir,
        tasks=arguments.tasks or (),
        limit=arguments.limit,
        step=arguments.step,
        steps=steps,
        decoding=decoding,
        prompt_length=arguments.prompt_length,
        predictions=arguments.predictions,
        json_file=arguments.json,
        adapter=adapter,
    )


COMMAND = Command(
    'evaluate',
    'evaluates a checkpoint on held-out splits or public benchmarks: metrics as a table and as JSON',
    run,
    gin=True,
    example='t5flan evaluate --checkpoint=runs/mine --tasks=practice --limit=50',
    runs_model=True,
    flags=(
        CHECKPOINT,
        Flag('--tasks', 'tasks and mixtures, separated by commas (default: what the run trained on)', 'A,B', words),
        Flag(
            '--benchmark', 'public benchmarks, e.g. bbh_direct,mmlu_direct; --tasks then selects of them', 'A,B', words
        ),
        Flag('--benchmark_dir', 'the folder with the files of their releases', 'DIR'),
        Flag('--split', 'split of the tasks (default: validation)', 'NAME', default='validation'),
        Flag('--limit', 'only the first N examples of each task (default: all)', 'N', COUNT),
        Flag(
            '--steps',
            'checkpoints to evaluate: latest, best (by CheckpointConfig.best_metric), all, or steps N,N',
            'latest|best|all|N,N',
        ),
        ADAPTERS,
        ADAPTER,
        *decoding_flags(),
        Flag(
            '--samples', 'with --benchmark: samples of each question, which vote on its answer (default: 1)', 'N', int
        ),
        Flag(
            '--prompt_length',
            'with --benchmark: tokens of a prompt; exemplars are left out of longer ones (default: as in training)',
            'N',
            COUNT,
        ),
        Flag(
            '--predictions',
            'also write every row to FILE, as JSON Lines; the same command resumes from it',
            'FILE',
            writes='shared',
        ),
        dataclasses.replace(
            JSON, help='also write the result to FILE as JSON; steps and tasks in it are not repeated', writes='shared'
        ),
        Flag(
            '--multi_host',
            'the processes of this job, which the cluster starts, share the examples; the first one writes the results',
            type=bool,
        ),
        *PROCESSES,
    ),
)
