"""`t5flan memorization`: makes canaries, or measures how much of a text a checkpoint reproduces."""

import argparse

from t5flan.commands.arguments import COUNT, COUNT_FROM_0, SEED, Command, Flag, words
from t5flan.commands.flags import CONTROL, JSON, STEP, own_checkpoint
from t5flan.data.corpus_config import TEXT_UNITS
from t5flan.errors import UsageError
from t5flan.files import write_json


def run(arguments: argparse.Namespace) -> None:
    """Makes canaries, or measures how much of a text a checkpoint reproduces."""
    from t5flan.evaluation.memorization import make_canaries, memorization, table

    if bool(arguments.make_canaries) == bool(arguments.checkpoint):
        raise UsageError('set either --make_canaries=F.jsonl or --checkpoint=DIR with --input=GLOB')
    if arguments.make_canaries:
        repeats = [int(number) if number.isdigit() else 0 for number in arguments.repeats]
        rows = make_canaries(arguments.make_canaries, repeats, arguments.count, seed=arguments.seed)
        print(f'{arguments.make_canaries}: {rows:,} rows. Add it to TextFiles.train, then test it with --input')
        return
    if arguments.unit not in TEXT_UNITS:
        raise UsageError(f'--unit={arguments.unit} is not one of {", ".join(TEXT_UNITS)}')
    if not arguments.input:
        raise UsageError('--input=GLOB is missing: the text to continue')
    found = memorization(
        own_checkpoint(arguments.checkpoint),
        arguments.input,
        field=arguments.field,
        unit=arguments.unit,
        group=arguments.group,
        prefix=arguments.prefix,
        length=arguments.length,
        limit=arguments.limit,
        control=arguments.control or (),
        step=arguments.step,
        batch_size=arguments.batch_size,
        references=arguments.references,
    )
    print(*table(found), sep='\n')
    if arguments.json:
        write_json(arguments.json, found)


COMMAND = Command(
    'memorization',
    'measures how much of a text a model continues word for word; makes canaries to plant',
    run,
    example="t5flan memorization --checkpoint=runs/mine --input='books/*.txt' --control='[S2S]'",
    runs_model=True,
    flags=(
        Flag('--checkpoint', 'the workdir of a run, or one of its steps', 'DIR'),
        Flag('--input', '.txt or .jsonl files, seen in training or not; may be given several times', 'GLOB', many=True),
        Flag('--field', 'field of the .jsonl rows that holds the text (default: text)', 'NAME', default='text'),
        Flag(
            '--unit',
            'what counts as one text in a .txt file: document, paragraph or line (default: paragraph)',
            'UNIT',
            default='paragraph',
        ),
        Flag(
            '--group',
            "a field of the .jsonl rows: also report results for each of its values (default: 'repeats' of canaries)",
            'NAME',
        ),
        Flag('--prefix', 'tokens of the prompt (default: 50)', 'N', COUNT, 50),
        Flag('--length', 'tokens to continue with (default: 50)', 'N', COUNT, 50),
        Flag('--limit', 'at most N texts (default: 500)', 'N', COUNT, 500),
        CONTROL,
        STEP,
        Flag('--batch_size', 'prompts decoded together (default: 32)', 'N', COUNT, 32),
        Flag(
            '--references',
            'canaries only: also report their exposure, beside N random texts; 200 is plenty (default: 0)',
            'N',
            COUNT_FROM_0,
            0,
        ),
        Flag('--make_canaries', 'instead, write random texts to plant in training text', 'F.jsonl', writes='file'),
        Flag('--repeats', 'how often canaries are repeated (default: 1,10,100)', 'A,B', words, ('1', '10', '100')),
        Flag('--count', 'canaries for each number of repeats (default: 20)', 'N', COUNT, 20),
        Flag('--seed', 'seed of the canaries (default: 0)', 'N', SEED, 0),
        JSON,
    ),
)
