"""`t5flan backtranslate`: a model writes the instructions that texts answer."""

import argparse

from t5flan.commands.arguments import COUNT, Command, Flag
from t5flan.commands.flags import CHECKPOINT, JSON, decoding_flags
from t5flan.commands.self_instruct import OUTPUT, PATIENCE, SEEDS, read_job
from t5flan.decoding.config import CANDIDATES


def run(arguments: argparse.Namespace) -> None:
    """Writes instructions for texts."""
    job = read_job(arguments, 'backtranslate')
    from t5flan.synthesis.backtranslate import backtranslate

    backtranslate(job, arguments.input, arguments.field, arguments.seeds, arguments.most_words)


COMMAND = Command(
    'backtranslate',
    'writes the instructions that texts answer with a checkpoint: a file for DataConfig.chat',
    run,
    gin=True,
    example="t5flan backtranslate --checkpoint=runs/mine --input='articles/*.jsonl' --output=instructions.jsonl",
    runs_model=True,
    flags=(
        CHECKPOINT,
        Flag('--input', 'files of rows in any format; may be given several times', 'GLOB', required=True, many=True),
        Flag('--field', 'field of the rows that holds the text (default: text)', 'NAME', default='text'),
        OUTPUT,
        Flag('--count', 'stop with N accepted instructions (default: read all texts)', 'N', COUNT),
        Flag('--most_words', 'reject longer texts (default: 300)', 'N', COUNT, 300),
        SEEDS,
        PATIENCE,
        *decoding_flags(CANDIDATES),
        JSON,
    ),
)
