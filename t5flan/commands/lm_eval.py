"""`t5flan lm_eval`: lm-evaluation-harness with the model `t5flan`; all arguments are lm-eval's own."""

import argparse

from t5flan.commands.arguments import Command


def run(arguments: argparse.Namespace) -> None:
    """Runs lm-eval's command line with the model registered."""
    from t5flan.evaluation.harness import command_line

    command_line(arguments.foreign)


COMMAND = Command(
    'lm_eval',
    "evaluates on lm-evaluation-harness's tasks; the arguments are lm_eval's, which `t5flan lm_eval run --help` lists",
    run,
    runs_model=True,
    flags=(),
    example='t5flan lm_eval --model=t5flan --model_args=checkpoint=runs/mine --tasks=arc_easy --batch_size=8',
    foreign=True,
)
