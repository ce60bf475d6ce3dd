"""`t5flan score`: the metrics of a public benchmark from completions made anywhere."""

import argparse

from t5flan.commands.arguments import Command, Flag
from t5flan.commands.flags import JSON


def run(arguments: argparse.Namespace) -> None:
    """Scores a file of completions."""
    from t5flan.evaluation.benchmark_scores import score_file
    from t5flan.tasks.benchmarks import find

    score_file(find(arguments.benchmark), arguments.predictions, json_file=arguments.json, baseline=arguments.baseline)


COMMAND = Command(
    'score',
    'scores completions of a public benchmark: metrics as a table and as JSON',
    run,
    example='t5flan score --benchmark=bbh_cot --predictions=completions.jsonl --json=scores.json',
    runs_model=True,
    flags=(
        Flag('--benchmark', 'the benchmark they answer, e.g. bbh_cot', 'NAME', required=True),
        Flag(
            '--predictions',
            'rows with "task", "prediction" (a text, or a list of samples that vote) and "target"',
            'FILE',
            required=True,
        ),
        Flag('--baseline', 'also compare with these rows of another model, question by question', 'FILE'),
        JSON,
    ),
)
