"""`t5flan adapt`: builds an encoder-decoder from a decoder."""

import argparse

from t5flan.commands.arguments import EXTRA_IDS, Command, Flag, words
from t5flan.commands.flags import own_checkpoint
from t5flan.errors import UsageError


def run(arguments: argparse.Namespace) -> None:
    """Builds an encoder-decoder from a decoder."""
    if arguments.attention not in ('merged', 'cross'):
        raise UsageError(f'--attention={arguments.attention} is not one of merged, cross')
    from t5flan.conversion.adaptation.adapt import FRESH, main

    if arguments.fresh not in FRESH:
        raise UsageError(f'--fresh={arguments.fresh} is not one of {", ".join(FRESH)}')

    main(
        own_checkpoint(getattr(arguments, 'from')),
        arguments.DST,
        encoder_from=arguments.encoder_from and own_checkpoint(arguments.encoder_from),
        attention=arguments.attention,
        encoder_layers=arguments.encoder_layers,
        decoder_layers=arguments.decoder_layers,
        fresh=arguments.fresh,
        add_tokens=[f'<extra_id_{k}>' for k in range(arguments.add_sentinels)] + [*(arguments.add_tokens or ())],
    )


ATTENTION_HELP = (
    "merged: the decoder's self-attention reads the encoder too; cross: each layer gets cross-attention, a copy of its "
    'self-attention (default: merged)'
)
LAYERS_HELP = 'layers of the %s: N of them in even steps, or their numbers, such as 0,1,2 (default: all)'
FRESH_HELP = (
    "encoder or decoder: that stack's layers are drawn anew; all: every parameter, as of a new model, to compare with "
    '(default: none)'
)
COMMAND = Command(
    'adapt',
    'builds an encoder-decoder from a decoder, whose blocks both its stacks copy',
    run,
    example='t5flan adapt --from=hf:HuggingFaceTB/SmolLM2-135M --attention=merged smollm2-encoder-decoder',
    flags=(
        Flag('DST', 'new folder to write', 'DST', required=True, writes='new folder'),
        Flag(
            '--from',
            'the decoder: a workdir, a Hugging Face folder, hf:OWNER/NAME or a GGUF file',
            'DIR',
            required=True,
        ),
        Flag(
            '--encoder_from',
            'another decoder with the same vocabulary, for the encoder (default: that of --from)',
            'DIR',
        ),
        Flag('--attention', ATTENTION_HELP, 'KIND', default='merged'),
        Flag('--encoder_layers', LAYERS_HELP % 'encoder', 'LAYERS'),
        Flag('--decoder_layers', LAYERS_HELP % 'decoder', 'LAYERS'),
        Flag('--fresh', FRESH_HELP, 'WHAT', default='none'),
        Flag('--add_tokens', 'add tokens, separated by commas, with rows of the embedding: [NLU],[NLG]', 'A,B', words),
        Flag('--add_sentinels', 'add the sentinels <extra_id_0> to <extra_id_N-1> (default: 0)', 'N', EXTRA_IDS, 0),
    ),
)
