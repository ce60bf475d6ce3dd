"""`t5flan infer`: continues prompts, or every row of a file."""

import argparse

from t5flan.commands.arguments import Command, Flag
from t5flan.commands.flags import CHECKPOINT, DECODING, JSON, decoding


def run(arguments: argparse.Namespace) -> None:
    """Continues prompts, or every row of a file."""
    from t5flan.evaluation.inference import infer

    infer(
        arguments.checkpoint,
        prompts=arguments.prompt or (),
        input=arguments.input,
        output=arguments.output,
        field=arguments.field,
        control=arguments.control or (),
        json_file=arguments.json,
        **decoding(arguments),
    )


COMMAND = Command(
    'infer',
    'writes what a model answers to prompts, or to every row of a file; goes on where it was stopped',
    run,
    example='t5flan infer --checkpoint=runs/mine --prompt="What is 3 plus 4?"',
    flags=(
        CHECKPOINT,
        Flag('--prompt', 'a text to answer; may be given several times', 'TEXT', many=True),
        Flag('--input', 'a .jsonl, or any text file, a prompt a line', 'FILE'),
        Flag('--output', 'a .jsonl: the rows of the input with their predictions', 'FILE'),
        Flag('--field', 'of a .jsonl, that holds the prompt (inputs)', 'NAME', default='inputs'),
        Flag(
            '--control',
            "a control or mode token in front of every prompt, as '[TOX_LOW]'; may be given several times",
            'TOKEN',
            many=True,
        ),
        *DECODING,
        JSON,
    ),
)
