"""`t5flan convert`: writes a checkpoint of one format as one of another."""

import argparse
from typing import Any

from t5flan.commands.arguments import Command, Flag
from t5flan.errors import UsageError


def run(arguments: argparse.Namespace) -> None:
    """Writes a checkpoint of one format as one of another."""
    from t5flan import configurables
    from t5flan.config.gin_files import packaged_files
    from t5flan.conversion.convert import FORMATS, main
    from t5flan.models.config import ModelConfig

    forms = {name: getattr(arguments, name) for name in ('from', 'to')}
    for name, form in forms.items():
        if form not in FORMATS:
            raise UsageError(f'--{name}={form} is no format: expected one of {", ".join(FORMATS)}')
    if arguments.dtype not in (None, 'float32', 'bfloat16', 'float16'):
        raise UsageError(f'--dtype={arguments.dtype} is not one of float32, bfloat16, float16')
    given = configurables.parse(arguments.gin_file, arguments.gin)

    def settings(found: dict[str, Any]) -> ModelConfig:
        given.offer(ModelConfig, found, arguments.SRC)
        return given.read(ModelConfig, 'convert')

    def known_models() -> list[ModelConfig]:
        return [
            configurables.parse([name]).read(ModelConfig) for name in packaged_files() if name.startswith('models/')
        ]

    main(
        arguments.SRC,
        arguments.DST,
        forms['from'],
        forms['to'],
        vocabulary=arguments.vocabulary,
        dtype=arguments.dtype,
        settings=settings,
        known_models=known_models,
        allow_nan=arguments.allow_nan,
        check=arguments.check,
        logits=arguments.logits,
    )


COMMAND = Command(
    'convert',
    'writes a checkpoint of Hugging Face, T5X or t5flan as one of another',
    run,
    gin=True,
    example='t5flan convert --from=hf --to=t5flan flan-t5-small runs/flan-t5-small',
    flags=(
        Flag(
            'SRC', 'a folder of save_pretrained, a checkpoint of T5X (also gs://), or a workdir', 'SRC', required=True
        ),
        Flag('DST', 'the new folder', 'DST', required=True),
        Flag('--from', 'the format of SRC: hf, t5x or t5flan', 'FORMAT', required=True),
        Flag('--to', 'the format of DST', 'FORMAT', required=True),
        Flag('--vocabulary', "a SentencePiece model, or 'bytes', where SRC brings none", 'F.model'),
        Flag('--dtype', 'rounds to float32, bfloat16 or float16; each array keeps its own', 'NAME'),
        Flag('--check', 'afterwards reads both and compares every number; alone if DST is there already', type=bool),
        Flag('--logits', "also runs transformers' model and ours (needs torch and transformers)", type=bool),
        Flag('--allow_nan', 'copies NaN too', type=bool),
    ),
)
