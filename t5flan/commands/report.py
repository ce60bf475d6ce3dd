"""`t5flan report`: writes the HTML page of a run."""

import argparse

from t5flan.commands.arguments import Command, Flag


def run(arguments: argparse.Namespace) -> None:
    """Writes the HTML page of a run."""
    from t5flan.reporting.run_report import report

    print(report(arguments.workdir, arguments.output))


COMMAND = Command(
    'report',
    'writes a self-contained HTML page of a run: curves, tables, sample predictions',
    run,
    example='t5flan report runs/mine',
    flags=(
        Flag('workdir', 'the workdir of a `t5flan train` run', 'WORKDIR', required=True),
        Flag('--output', 'page to write (default: WORKDIR/report.html)', 'FILE', writes='file'),
    ),
)
