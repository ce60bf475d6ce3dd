"""`t5flan self_instruct`: a model makes new tasks from a few seed tasks."""

import argparse
from typing import TYPE_CHECKING

from t5flan.commands.arguments import COUNT, Command, Flag
from t5flan.commands.flags import CHECKPOINT, JSON, decoding_flags, read_decoding, read_run
from t5flan.decoding.config import CANDIDATES

if TYPE_CHECKING:
    from t5flan.synthesis.loop import Job

SEEDS = Flag('--seeds', 'a file of tasks to start from: instruction, instances (default: 26 packaged ones)', 'FILE')
TASK_COUNT = Flag('--count', 'stop with N accepted tasks (default: 200)', 'N', COUNT, 200)
OUTPUT = Flag('--output', 'a .jsonl file; its provenance is written beside it', 'FILE', required=True, writes='shared')
PATIENCE = Flag(
    '--patience',
    'stop when fewer than one in a hundred candidates of N rounds were accepted (default: 5)',
    'N',
    COUNT,
    5,
)


def run(arguments: argparse.Namespace) -> None:
    """Makes tasks with Self-Instruct."""
    job = read_job(arguments, 'self_instruct')
    from t5flan.synthesis.self_instruct import self_instruct

    self_instruct(job, arguments.seeds)


def read_job(arguments: argparse.Namespace, command: str) -> 'Job':
    """What the flags of a command that makes tasks say of the model, the rows and the end."""
    decoding = read_decoding(read_run(arguments), arguments, command, CANDIDATES)
    from t5flan.synthesis.loop import Job

    return Job(
        arguments.checkpoint,
        arguments.output,
        count=arguments.count,
        decoding=decoding,
        patience=arguments.patience,
        step=arguments.step,
        json_file=arguments.json,
    )


COMMAND = Command(
    'self_instruct',
    'makes new tasks from a few seed tasks with a checkpoint (Self-Instruct): a file for DataConfig.chat',
    run,
    gin=True,
    example='t5flan self_instruct --checkpoint=runs/mine --count=200 --output=new_tasks.jsonl',
    runs_model=True,
    flags=(CHECKPOINT, OUTPUT, TASK_COUNT, SEEDS, PATIENCE, *decoding_flags(CANDIDATES), JSON),
)
