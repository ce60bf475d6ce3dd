"""`t5flan vocabulary`: trains a SentencePiece vocabulary."""

import argparse

from t5flan.commands.arguments import Command, Flag, words


def run(arguments: argparse.Namespace) -> None:
    """Trains a SentencePiece vocabulary."""
    from t5flan.data.vocabulary.training import train_vocabulary

    trained = train_vocabulary(
        arguments.input, arguments.size, arguments.output, arguments.extra_ids, arguments.mode_tokens, arguments.fields
    )
    print(
        f'{arguments.output}: {trained.vocab_size:,} ids; set --gin.VOCABULARY={arguments.output} and '
        f'--gin.ModelConfig.vocab_size={-(-trained.vocab_size // 128) * 128} or more'
    )


FIELDS = ('text', 'inputs', 'targets')
FIELDS_HELP = 'fields of the .jsonl rows to read, separated by commas (default: text,inputs,targets)'
MODE_TOKENS = ('[NLU]', '[NLG]', '[S2S]')
COMMAND = Command(
    'vocabulary',
    'trains a SentencePiece vocabulary with sentinels and mode tokens',
    run,
    example="t5flan vocabulary --input='books/*.txt' --size=32000 --output=books.model",
    flags=(
        Flag('--input', '.txt or .jsonl files; may be given several times', 'GLOB', required=True, many=True),
        Flag('--size', 'number of ids, including sentinels and mode tokens', 'N', int, required=True),
        Flag(
            '--output',
            'vocabulary file; its description is written beside it as .json',
            'F.model',
            required=True,
            writes='file',
        ),
        Flag('--extra_ids', 'number of sentinels (default: 100)', 'N', int, 100),
        Flag('--mode_tokens', 'separated by commas (default: [NLU],[NLG],[S2S])', 'A,B', words, MODE_TOKENS),
        Flag('--fields', FIELDS_HELP, 'A,B', words, FIELDS),
    ),
)
