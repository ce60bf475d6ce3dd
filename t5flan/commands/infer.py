"""`t5flan infer`: continues prompts, or every row of a file."""

import argparse

from t5flan.commands.arguments import Command, Flag
from t5flan.commands.flags import CHECKPOINT, CONTROL, JSON, decoding_flags, own_checkpoint, read_decoding
from t5flan.errors import UsageError


def run(arguments: argparse.Namespace) -> None:
    """Continues prompts, or every row of a file."""
    from t5flan import configurables
    from t5flan.evaluation.inference import converse, infer

    settings = configurables.parse(arguments.gin_file, arguments.gin)
    for binding in arguments.gin:
        name = binding.partition('=')[0]
        if '.' in name and not name.startswith('Decoding.'):
            raise UsageError(f'`t5flan infer` takes no --gin.{name}: it reads only Decoding, and the checkpoint')
    decoding = read_decoding(settings, arguments, 'infer')
    arguments.checkpoint = own_checkpoint(arguments.checkpoint)
    if arguments.chat and not (arguments.prompt or arguments.input):
        for flag in ('output', 'control', 'json'):
            if getattr(arguments, flag):
                raise UsageError(f'--{flag} needs --prompt or --input; --chat alone is a conversation in the terminal')
        converse(arguments.checkpoint, step=arguments.step, decoding=decoding)
        return
    infer(
        arguments.checkpoint,
        prompts=arguments.prompt or (),
        input=arguments.input,
        output=arguments.output,
        field=arguments.field,
        control=arguments.control or (),
        step=arguments.step,
        decoding=decoding,
        json_file=arguments.json,
        chat=arguments.chat,
    )


COMMAND = Command(
    'infer',
    'continues prompts, or every row of a file; resumes where it was stopped',
    run,
    gin=True,
    example='t5flan infer --checkpoint=runs/mine --prompt="What is 3 plus 4?"',
    flags=(
        CHECKPOINT,
        Flag('--prompt', 'a text to continue; may be given several times', 'TEXT', many=True),
        Flag('--input', 'rows (.jsonl, .json, .csv, .tsv, .parquet), or a text file of a prompt per line', 'FILE'),
        Flag('--output', 'a .jsonl file: the rows of the input with their predictions', 'FILE'),
        Flag('--field', 'field of the rows that holds the prompt (default: inputs)', 'NAME', default='inputs'),
        Flag('--chat', "word each prompt with the tokenizer's chat template; alone, talk in the terminal", type=bool),
        CONTROL,
        *decoding_flags(),
        JSON,
    ),
)
