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


COMMAND = Command(
    'vocabulary',
    'trains a SentencePiece vocabulary with sentinels and mode tokens',
    run,
    example="t5flan vocabulary --input='books/*.txt' --size=32000 --output=books.model",
    flags=(
        Flag('--input', '.txt or .jsonl files; may be given several times', 'GLOB', required=True, many=True),
        Flag('--size', 'all ids, sentinels and mode tokens among them', 'N', int, required=True),
        Flag('--output', 'the vocabulary; its description is written beside it as .json', 'F.model', required=True),
        Flag('--extra_ids', 'sentinels (100)', 'N', int, 100),
        Flag('--mode_tokens', 'with commas between ([NLU],[NLG],[S2S])', 'A,B', words, ('[NLU]', '[NLG]', '[S2S]')),
        Flag(
            '--fields',
            'of .jsonl files, with commas between (text,inputs,targets)',
            'A,B',
            words,
            ('text', 'inputs', 'targets'),
        ),
    ),
)
