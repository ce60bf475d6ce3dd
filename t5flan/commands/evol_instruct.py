"""`t5flan evol_instruct`: a model rewrites tasks into harder and rarer ones."""

import argparse

from t5flan.commands.arguments import COUNT, Command, Flag
from t5flan.commands.flags import CHECKPOINT, JSON, decoding_flags
from t5flan.commands.self_instruct import OUTPUT, PATIENCE, SEEDS, TASK_COUNT, read_job
from t5flan.decoding.config import CANDIDATES


def run(arguments: argparse.Namespace) -> None:
    """Rewrites tasks with Evol-Instruct."""
    job = read_job(arguments, 'evol_instruct')
    from t5flan.synthesis.evol_instruct import evol_instruct

    evol_instruct(job, arguments.seeds, arguments.depth)


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
