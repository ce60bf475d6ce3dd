"""`t5flan convert`: converts a checkpoint from one format to another."""

import argparse
import contextlib
from typing import Any

from t5flan.commands.arguments import COUNT, EXTRA_IDS, Command, Flag, words
from t5flan.commands.flags import own_checkpoint
from t5flan.errors import UsageError


def run(arguments: argparse.Namespace) -> None:
    """Converts a checkpoint from one format to another."""
    from t5flan import configurables
    from t5flan.config.gin_files import packaged_files
    from t5flan.conversion.convert import FORMATS, GGUF, PEFT, main
    from t5flan.files.buckets import fetched, sent
    from t5flan.models.config import ModelConfig

    formats = [getattr(arguments, name) for name in ('from', 'to')]
    for name, value, known in zip(('from', 'to'), formats, ((*FORMATS, PEFT, GGUF), (*FORMATS, PEFT))):
        if value not in known:
            raise UsageError(f'--{name}={value} is not one of {", ".join(known)}')
    if arguments.dtype not in (None, 'float32', 'bfloat16', 'float16'):
        raise UsageError(f'--dtype={arguments.dtype} is not one of float32, bfloat16, float16')
    _check_adapters(arguments, *formats)
    if 'peft' in formats and (arguments.check or arguments.logits):
        raise UsageError('--check and --logits compare whole models, but --from or --to is peft')
    if arguments.rank is not None and formats != ['t5flan', 't5flan']:
        raise UsageError(f'--rank={arguments.rank} is for an adapter of DyLora: set --from=t5flan --to=t5flan')
    given = configurables.parse(arguments.gin_file, arguments.gin)

    def settings(found: dict[str, Any]) -> ModelConfig:
        given.set_defaults(ModelConfig, found, arguments.SRC)
        return given.read(ModelConfig, 'convert')

    def known_models() -> list[ModelConfig]:
        models = (name for name in packaged_files() if name.startswith('models/'))
        return [configurables.parse([name]).read(ModelConfig) for name in models]

    with sent(arguments.DST, ('t5flan.json', 'config.json')) as target, contextlib.ExitStack() as stack:
        by_tensorstore = formats[0] in ('t5flan', 't5x')  # they are read where they are
        source = arguments.SRC if by_tensorstore else stack.enter_context(fetched(arguments.SRC))
        main(
            source,
            target,
            *formats,
            vocabulary=arguments.vocabulary,
            dtype=arguments.dtype,
            settings=settings,
            known_models=known_models,
            allow_nan=arguments.allow_nan,
            check=arguments.check,
            logits=arguments.logits,
            base=arguments.base and own_checkpoint(arguments.base),
            merge=arguments.merge,
            rank=arguments.rank,
            combine=arguments.combine,
            add_tokens=[f'<extra_id_{k}>' for k in range(arguments.add_sentinels)] + [*(arguments.add_tokens or ())],
        )


def _check_adapters(arguments: argparse.Namespace, from_: str, to: str) -> None:
    """Requires the flags of adapters to have an effect."""
    if arguments.combine is None:
        if from_ != 'peft' and (arguments.base or arguments.merge):
            raise UsageError(f'--base and --merge are for an adapter of PEFT, but --from={from_}')
        return
    from t5flan.adapters.combine import CONVENTIONS

    if arguments.combine not in CONVENTIONS:
        raise UsageError(f'--combine={arguments.combine} is not one of {", ".join(CONVENTIONS)}')
    if from_ != 't5flan' or arguments.base:
        raise UsageError('--combine reads adapters of t5flan, which name their base. Set --from=t5flan, without --base')
    if to != 't5flan' and not arguments.merge:
        raise UsageError(f'--combine writes an adapter of t5flan, but --to={to}. Set --to=t5flan, or --merge')
    if not arguments.merge and (arguments.dtype or arguments.add_tokens or arguments.add_sentinels or arguments.check):
        raise UsageError('--dtype, --add_tokens, --add_sentinels and --check are for whole models. Set --merge')


SOURCE_HELP = (
    'a Hugging Face folder (save_pretrained), a T5X checkpoint (local or gs://), a t5flan workdir, a GGUF file, or an '
    'adapter'
)
COMMAND = Command(
    'convert',
    'converts checkpoints between Hugging Face, T5X and t5flan, and from GGUF',
    run,
    gin=True,
    example='t5flan convert --from=hf --to=t5flan flan-t5-small runs/flan-t5-small',
    flags=(
        Flag('SRC', SOURCE_HELP, 'SRC', required=True),
        Flag('DST', 'new folder to write', 'DST', required=True, writes='new folder'),
        Flag('--from', 'format of SRC: hf, t5x, t5flan, peft or gguf', 'FORMAT', required=True),
        Flag('--to', 'format of DST: hf, t5x, t5flan or peft', 'FORMAT', required=True),
        Flag('--vocabulary', "a SentencePiece model, or 'bytes' (default: the one in SRC)", 'F.model'),
        Flag('--dtype', "round to float32, bfloat16 or float16 (default: keep each array's type)", 'NAME'),
        Flag('--add_tokens', 'add tokens, separated by commas, with rows of the embedding: [NLU],[NLG]', 'A,B', words),
        Flag('--add_sentinels', 'add the sentinels <extra_id_0> to <extra_id_N-1> (default: 0)', 'N', EXTRA_IDS, 0),
        Flag('--check', 'compare every number of SRC and DST afterwards; if DST exists, only compare', type=bool),
        Flag('--logits', 'also compare logits with transformers (needs torch and transformers)', type=bool),
        Flag(
            '--base',
            'the model that an adapter of PEFT belongs to: a workdir, a Hugging Face folder or a GGUF file',
            'DIR',
        ),
        Flag('--rank', 'write an adapter of DyLora as one of Lora with this rank', 'N', COUNT),
        Flag(
            '--combine',
            "SRC is adapters with weights, 'DIR:0.7,DIR:0.3': write their sum, 'cat' (exact, ranks add up) or 'linear'",
            'HOW',
        ),
        Flag('--merge', 'write an adapter of PEFT, or the sum of --combine, merged into its base', type=bool),
        Flag('--allow_nan', 'convert arrays that contain NaN', type=bool),
    ),
)
