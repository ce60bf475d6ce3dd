"""`t5flan lm_eval`: lm-evaluation-harness with the model `t5flan`; all arguments are lm-eval's own."""

import argparse
import sys

from t5flan.commands.arguments import Command


def run(arguments: argparse.Namespace) -> None:
    """Runs lm-eval's command line, after registering the model."""
    from lm_eval.__main__ import cli_evaluate

    import t5flan.evaluation.harness  # noqa: F401  (registers the model; says what to install if lm-eval is missing)

    ours, sys.argv = sys.argv, ['t5flan lm_eval', *arguments.foreign]
    try:
        cli_evaluate()
    finally:
        sys.argv = ours


COMMAND = Command(
    'lm_eval',
    "evaluates on lm-evaluation-harness's tasks; the arguments are lm_eval's, which `t5flan lm_eval run --help` lists",
    run,
    flags=(),
    example='t5flan lm_eval --model=t5flan --model_args=checkpoint=runs/mine --tasks=arc_easy --batch_size=8',
    foreign=True,
)
