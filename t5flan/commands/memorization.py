"""`t5flan memorization`: makes canaries, or tells how much of a text a checkpoint writes down again."""

import argparse

from t5flan.commands.arguments import Command, Flag, words
from t5flan.commands.flags import JSON
from t5flan.errors import UsageError
from t5flan.files import write_json


def run(arguments: argparse.Namespace) -> None:
    """Makes canaries, or tells how much of a text a checkpoint writes down again."""
    from t5flan.evaluation.memorization import make_canaries, memorization, table

    if bool(arguments.make_canaries) == bool(arguments.checkpoint):
        raise UsageError('give either --make_canaries=F.jsonl or --checkpoint=DIR with --input=GLOB')
    if arguments.make_canaries:
        repeats = [int(number) if number.isdigit() else 0 for number in arguments.repeats]
        rows = make_canaries(arguments.make_canaries, repeats, arguments.count, seed=arguments.seed)
        print(
            f'{arguments.make_canaries}: {rows:,} rows; train with it among TextFiles.train, then probe it with --group=repeats'
        )
        return
    if not arguments.input:
        raise UsageError('--input=GLOB is missing: the text whose continuation is asked for')
    found = memorization(
        arguments.checkpoint,
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
    )
    print(*table(found), sep='\n')
    if arguments.json:
        write_json(arguments.json, found)


COMMAND = Command(
    'memorization',
    'tells how much of a text a model continues word for word; makes canaries to plant',
    run,
    example="t5flan memorization --checkpoint=runs/mine --input='books/*.txt' --control='[S2S]'",
    flags=(
        Flag('--checkpoint', 'the workdir of a run, or one of its steps', 'DIR'),
        Flag('--input', '.txt or .jsonl files, seen in training or not; may be given several times', 'GLOB', many=True),
        Flag('--field', 'of .jsonl files, that holds the text (text)', 'NAME', default='text'),
        Flag(
            '--unit',
            'what is one text in a .txt file: document, paragraph or line (paragraph)',
            'UNIT',
            default='paragraph',
        ),
        Flag('--group', 'a field of .jsonl files: results for each of its values', 'NAME'),
        Flag('--prefix', 'tokens shown (50)', 'N', int, 50),
        Flag('--length', 'tokens to go on with (50)', 'N', int, 50),
        Flag('--limit', 'texts at most (500)', 'N', int, 500),
        Flag(
            '--control', "a mode or control token in front, as '[S2S]'; may be given several times", 'TOKEN', many=True
        ),
        Flag('--step', 'the checkpoint of this step; the latest', 'N', int),
        Flag('--batch_size', 'rows at a time (32)', 'N', int, 32),
        Flag('--make_canaries', 'instead: writes random texts to be planted in training text', 'F.jsonl'),
        Flag('--repeats', 'of canaries, how often each is written (1,10,100)', 'A,B', words, ('1', '10', '100')),
        Flag('--count', 'canaries for each number of repeats (20)', 'N', int, 20),
        Flag('--seed', 'decides the canaries (0)', 'N', int, 0),
        JSON,
    ),
)
