"""`t5flan vocabulary`: trains a SentencePiece vocabulary."""

import argparse

from t5flan.commands.arguments import EXTRA_IDS, POSITIVE, Command, Flag, words
from t5flan.commands.flags import JSON
from t5flan.config.checks import Limits
from t5flan.files import write_json


def run(arguments: argparse.Namespace) -> None:
    """Trains a SentencePiece vocabulary."""
    from t5flan.data.vocabulary.coverage import report, report_lines
    from t5flan.data.vocabulary.loading import load_vocabulary
    from t5flan.data.vocabulary.training import find_languages, train_vocabulary

    before = load_vocabulary(arguments.compare) if arguments.compare else None
    trained = train_vocabulary(
        arguments.input,
        arguments.size,
        arguments.output,
        arguments.extra_ids,
        arguments.mode_tokens,
        arguments.fields,
        alpha=arguments.alpha,
        character_coverage=arguments.character_coverage,
        split_digits=not arguments.no_split_digits,
    )
    found = report(trained, find_languages(arguments.input), arguments.fields, arguments.alpha, before)
    print(*report_lines(found), sep='\n')
    if arguments.json:
        write_json(arguments.json, found)
    print(
        f'{arguments.output}: {trained.vocab_size:,} ids; set --gin.VOCABULARY={arguments.output} and '
        f'--gin.ModelConfig.vocab_size={-(-trained.vocab_size // 128) * 128} or more'
    )


FIELDS = ('text', 'inputs', 'targets')
FIELDS_HELP = 'fields of the .jsonl rows to read, separated by commas (default: text,inputs,targets)'
SIZE_HELP = 'number of ids, including sentinels and mode tokens'
ALPHA_HELP = 'a language of n bytes gets a share of n**alpha; mT5 takes 0.3 (default: 1.0)'
MODE_TOKENS = ('[NLU]', '[NLG]', '[S2S]')
COMMAND = Command(
    'vocabulary',
    'trains a SentencePiece vocabulary with sentinels and mode tokens',
    run,
    example="t5flan vocabulary --input='books/*.txt' --size=32000 --output=books.model",
    flags=(
        Flag(
            '--input',
            '.txt or .jsonl files; given several times, each is a language, which NAME=GLOB names',
            'GLOB',
            required=True,
            many=True,
        ),
        Flag(
            '--size',
            'number of ids, including sentinels and mode tokens',
            'N',
            Limits(1, 2**24, whole=True),
            required=True,
        ),
        Flag(
            '--output',
            'vocabulary file; its description is written beside it as .json',
            'F.model',
            required=True,
            writes='file',
        ),
        Flag('--extra_ids', 'number of sentinels (default: 100)', 'N', EXTRA_IDS, 100),
        Flag('--mode_tokens', 'separated by commas (default: [NLU],[NLG],[S2S])', 'A,B', words, MODE_TOKENS),
        Flag('--fields', FIELDS_HELP, 'A,B', words, FIELDS),
        Flag(
            '--alpha',
            'a language of n bytes gets a share of n**alpha; mT5 takes 0.3 (default: 1.0)',
            'X',
            POSITIVE,
            1.0,
        ),
        Flag(
            '--character_coverage',
            'share of the characters that get a piece, the others become bytes; mT5 takes 0.99999 (default: 0.9995)',
            'X',
            Limits(0, 1, above=True),
            0.9995,
        ),
        Flag('--no_split_digits', 'numbers may be pieces; otherwise each digit is one', type=bool),
        Flag('--compare', "another vocabulary in the report: a .model, a folder, or 'bytes'", 'VOCABULARY'),
        JSON,
    ),
)
