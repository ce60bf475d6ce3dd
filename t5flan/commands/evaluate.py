"""`t5flan evaluate`: evaluates a checkpoint on held-out splits, with the files and modules of its run registered."""

import argparse

from t5flan.commands.arguments import Command, Flag, words
from t5flan.commands.flags import CHECKPOINT, JSON, decoding_flags, read_data, read_decoding, read_run
from t5flan.commands.startup import import_tensorflow
from t5flan.errors import UsageError


def run(arguments: argparse.Namespace) -> None:
    """Evaluates a checkpoint on held-out splits."""
    from t5flan.data.config import DataConfig

    settings = read_run(arguments)
    if not arguments.tasks and not settings.binds(DataConfig, 'mixture'):
        raise UsageError('no task is given: set --tasks=NAME,NAME (`t5flan mixture` lists them)')
    data = read_data(settings, arguments.checkpoint, '-', 'evaluate')
    tasks = arguments.tasks or (data.mixture,)
    decoding = read_decoding(settings, arguments, 'evaluate')

    import_tensorflow()
    from t5flan.evaluation.evaluator import evaluate
    from t5flan.tasks import register_all

    register_all(data)
    evaluate(
        arguments.checkpoint,
        tasks,
        split=arguments.split,
        limit=arguments.limit,
        step=arguments.step,
        decoding=decoding,
        predictions=arguments.predictions,
        json_file=arguments.json,
        instructions=data.instructions,
        feature_lengths=data.feature_lengths,
    )


COMMAND = Command(
    'evaluate',
    'evaluates a checkpoint on held-out splits: metrics as a table and as JSON',
    run,
    gin=True,
    example='t5flan evaluate --checkpoint=runs/mine --tasks=practice --limit=50',
    flags=(
        CHECKPOINT,
        Flag('--tasks', 'tasks and mixtures, separated by commas (default: what the run trained on)', 'A,B', words),
        Flag('--split', 'split of the tasks (default: validation)', 'NAME', default='validation'),
        Flag('--limit', 'only the first N examples of each task (default: all)', 'N', int),
        *decoding_flags(),
        Flag('--predictions', 'also write every row to FILE, as JSON Lines', 'FILE'),
        JSON,
    ),
)
