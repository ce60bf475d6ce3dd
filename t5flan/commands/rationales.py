"""`t5flan rationales`: samples rationales for a task, with the files and modules of the checkpoint's run registered."""

import argparse
from typing import Any

from t5flan.commands.arguments import COUNT, COUNT_FROM_0, SHARE, Command, Flag
from t5flan.commands.flags import CHECKPOINT, JSON, decoding_flags, read_data, read_decoding, read_run
from t5flan.commands.startup import register_tasks
from t5flan.decoding.config import SAMPLING
from t5flan.errors import UsageError


def run(arguments: argparse.Namespace) -> None:
    """Samples a model's rationales for a task and writes those that pass the filter."""
    if arguments.trigger == '':
        raise UsageError('--trigger is empty, expected a sentence; is a variable of the shell unset?')
    settings = read_run(arguments)
    data = read_data(settings, arguments.checkpoint, arguments.task, 'rationales')
    decoding = read_decoding(settings, arguments, 'rationales', SAMPLING)

    register_tasks(data)
    from t5flan.synthesis.rationales import Choice, Filters, rationales
    from t5flan.tasks.cot import answer_words, open_rows

    solved: list[Any] = []
    if given := arguments.exemplars:
        rows = open_rows({'train': given, 'validation': given}, 'train', None)
        solved = [rows[i] for i in range(len(rows))]
    filters = Filters(arguments.min_words, arguments.max_words, arguments.repetition, arguments.copying)
    choice = Choice(arguments.keep, arguments.each, arguments.agreement, filters, arguments.score)
    rationales(
        arguments.checkpoint,
        arguments.task,
        arguments.output,
        choice=choice,
        split=arguments.split,
        limit=arguments.limit,
        trigger=arguments.trigger,
        answer_words=answer_words(),
        exemplars=solved,
        draws=arguments.draws,
        step=arguments.step,
        decoding=decoding,
        json_file=arguments.json,
    )


COMMAND = Command(
    'rationales',
    'samples rationales with a checkpoint, keeps those that reach the right answer: a new file for DataConfig.cot',
    run,
    gin=True,
    example='t5flan rationales --checkpoint=runs/mine --gin.DataConfig.cot=flan_v2/cot_data --task=cot_gsm8k '
    '--samples=8 --keep=right --output=gsm8k_sampled.tsv',
    runs_model=True,
    flags=(
        CHECKPOINT,
        Flag('--task', 'the task whose questions are used', 'NAME', required=True),
        Flag(
            '--output',
            'a .tsv or .jsonl file; its provenance is written beside it',
            'FILE',
            required=True,
            writes='shared',
        ),
        Flag('--samples', f'rationales sampled for each question (default: {SAMPLING.num_samples})', 'N', int),
        Flag('--keep', "'right' answers, or the most frequent by 'vote' (default: right)", 'RULE', default='right'),
        Flag('--agreement', 'smallest share of the samples for --keep=vote (default: 0.5)', 'X', SHARE, 0.5),
        Flag('--each', 'keep at most N rationales of a question (default: 1)', 'N', COUNT, 1),
        Flag('--split', 'split of the task (default: train)', 'NAME', default='train'),
        Flag('--limit', 'only the first N questions (default: all)', 'N', COUNT),
        Flag('--trigger', "sentence that asks for a rationale (default: InstructionConfig's, if needed)", 'TEXT'),
        Flag('--exemplars', 'solved questions put before each prompt: a .tsv or .jsonl of DataConfig.cot', 'FILE'),
        Flag('--min_words', 'reject shorter rationales (default: 3)', 'N', COUNT_FROM_0, 3),
        Flag('--max_words', 'reject longer rationales (default: 400)', 'N', COUNT, 400),
        Flag('--repetition', 'largest share of 4-word runs that repeat an earlier one (default: 0.5)', 'X', SHARE, 0.5),
        Flag('--copying', 'largest share of 5-word runs copied from the question (default: 0.8)', 'X', SHARE, 0.8),
        Flag('--score', "add each kept rationale's log-likelihood by the model, nats per token (.jsonl)", type=bool),
        Flag('--draws', 'also write every draw and what became of it', 'FILE', writes='file'),
        *decoding_flags(SAMPLING),
        JSON,
    ),
)
