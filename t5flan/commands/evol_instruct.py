"""`t5flan evol_instruct`: a model rewrites tasks into harder and rarer ones."""

import argparse

from t5flan.commands.arguments import COUNT, Command, Flag
from t5flan.commands.flags import CHECKPOINT, JSON, decoding_flags, read_decoding, read_run
from t5flan.commands.self_instruct import OUTPUT, PATIENCE, SEEDS, TASK_COUNT
from t5flan.decoding.config import CANDIDATES


def run(arguments: argparse.Namespace) -> None:
    """Rewrites tasks with Evol-Instruct."""
    decoding = read_decoding(read_run(arguments), arguments, 'evol_instruct', CANDIDATES)
    from t5flan.synthesis.evol_instruct import evol_instruct

    evol_instruct(
        arguments.checkpoint,
        arguments.output,
        count=arguments.count,
        seeds=arguments.seeds,
        depth=arguments.depth,
        decoding=decoding,
        patience=arguments.patience,
        step=arguments.step,
        json_file=arguments.json,
    )


COMMAND = Command(
    'evol_instruct',
    'rewrites tasks into harder and rarer ones with a checkpoint (Evol-Instruct): a file for DataConfig.chat',
    run,
    gin=True,
    example='t5flan evol_instruct --checkpoint=runs/mine --seeds=tasks.jsonl --count=200 --output=evolved.jsonl',
    runs_model=True,
    flags=(
        CHECKPOINT,
        OUTPUT,
        TASK_COUNT,
        SEEDS,
        Flag('--depth', 'rewrite a task at most N times (default: 4)', 'N', COUNT, 4),
        PATIENCE,
        *decoding_flags(CANDIDATES),
        JSON,
    ),
)
