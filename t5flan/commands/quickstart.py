"""`t5flan quickstart`: from nothing to a model that follows instructions."""

import argparse

from t5flan.commands.arguments import Command, Flag
from t5flan.commands.startup import import_tensorflow


def run(arguments: argparse.Namespace) -> None:
    """From nothing to a model that follows instructions."""
    import_tensorflow()
    from t5flan.quickstart import main
    from t5flan.tasks import register_all

    register_all()
    main(arguments.workdir, arguments.examples)


COMMAND = Command(
    'quickstart',
    'on any machine, from nothing: pretrains, instructs, evaluates, generates, reports',
    run,
    example='t5flan quickstart',
    flags=(
        Flag(
            '--workdir',
            'the folder of both runs and the report; an earlier quickstart in it is removed',
            'DIR',
            default='runs/quickstart',
        ),
        Flag('--examples', 'questions asked of each task (32)', 'N', int, 32),
    ),
)
