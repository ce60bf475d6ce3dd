"""`t5flan evaluate`: measures a checkpoint on held-out splits; tasks of its own files and modules are known again."""

import argparse

from t5flan.commands.arguments import Command, Flag, words
from t5flan.commands.flags import CHECKPOINT, DECODING, JSON, decoding
from t5flan.commands.startup import import_tensorflow
from t5flan.errors import UsageError, UserError


def run(arguments: argparse.Namespace) -> None:
    """Measures a checkpoint on held-out splits; tasks of its own files and modules are known again."""
    from t5flan import configurables
    from t5flan.config.gin_files import exists
    from t5flan.data.config import DataConfig, InstructionConfig

    found = configurables.checkpoint_settings(arguments.checkpoint)
    if found is None:
        raise UserError(
            f'{arguments.checkpoint} is no checkpoint folder (it has no t5flan.json): '
            'set --checkpoint to the workdir of a `t5flan train` run'
        )
    saved = found[0].replace('t5flan.json', 'config.gin')
    settings = configurables.parse([*([saved] if exists(saved) else []), *arguments.gin_file], arguments.gin)
    data = settings.read(DataConfig) if settings.can_read(DataConfig) else None
    tasks = arguments.tasks or ((data.mixture,) if data else ())
    if not tasks:
        raise UsageError('no task is named: write --tasks=NAME,NAME (`t5flan mixture` lists them)')

    import_tensorflow()
    from t5flan.evaluation.evaluator import evaluate
    from t5flan.tasks import register_all

    register_all(data)
    evaluate(
        arguments.checkpoint,
        tasks,
        split=arguments.split,
        limit=arguments.limit,
        predictions=arguments.predictions,
        json_file=arguments.json,
        instructions=data.instructions if data else settings.read(InstructionConfig),
        **decoding(arguments),
    )


COMMAND = Command(
    'evaluate',
    'measures a checkpoint on held-out splits: metrics as a table and as JSON',
    run,
    gin=True,
    example='t5flan evaluate --checkpoint=runs/mine --tasks=practice --limit=50',
    flags=(
        CHECKPOINT,
        Flag('--tasks', 'tasks and mixtures, with commas between; what the run was trained on', 'A,B', words),
        Flag('--split', 'of the tasks (validation)', 'NAME', default='validation'),
        Flag('--limit', 'the first so many examples of each task; all', 'N', int),
        *DECODING,
        Flag('--predictions', 'also write every row to FILE.jsonl', 'FILE'),
        JSON,
    ),
)
