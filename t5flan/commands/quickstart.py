"""`t5flan quickstart`: pretrains, finetunes and evaluates a tiny model from nothing."""

import argparse

from t5flan.commands.arguments import COUNT, Command, Flag
from t5flan.commands.startup import register_tasks


def run(arguments: argparse.Namespace) -> None:
    """Pretrains, finetunes and evaluates a tiny model from nothing."""
    from t5flan.files import locks
    from t5flan.quickstart import main

    register_tasks(None)
    with locks.hold_file(arguments.workdir.rstrip('/'), '--workdir'):
        main(arguments.workdir, arguments.examples)


WORKDIR_HELP = 'folder of both runs and the report; replaces an earlier quickstart (default: runs/quickstart)'
COMMAND = Command(
    'quickstart',
    'runs every step on any machine: pretrains, instruction-finetunes, evaluates, generates, reports',
    run,
    example='t5flan quickstart',
    runs_model=True,
    flags=(
        Flag('--workdir', WORKDIR_HELP, 'DIR', default='runs/quickstart'),
        Flag('--examples', 'questions per task in the evaluation (default: 32)', 'N', COUNT, 32),
    ),
)
