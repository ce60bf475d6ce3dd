"""`t5flan rationales`: samples a model's rationales for a task and writes those that are kept; tasks of its own files are known again."""

import argparse

from t5flan.commands.arguments import Command, Flag
from t5flan.commands.flags import CHECKPOINT, JSON, SAMPLING, decoding
from t5flan.commands.startup import import_tensorflow


def run(arguments: argparse.Namespace) -> None:
    """Samples a model's rationales for a task and writes those that are kept; tasks of its own files are known again."""
    from t5flan import configurables
    from t5flan.config.gin_files import exists
    from t5flan.data.config import DataConfig

    found = configurables.checkpoint_settings(arguments.checkpoint)
    saved = found[0].replace('t5flan.json', 'config.gin') if found else ''
    settings = configurables.parse([*([saved] if saved and exists(saved) else []), *arguments.gin_file], arguments.gin)
    settings.offer(
        DataConfig,
        {
            'mixture': arguments.task,
            'batch_size': 1,
            'feature_lengths': {'inputs': 512, 'targets': 512},
            'vocabulary': 'bytes',
        },
        't5flan rationales',
    )
    data = settings.read(DataConfig, 'rationales')

    import_tensorflow()
    from t5flan.synthesis.rationales import rationales
    from t5flan.tasks import register_all
    from t5flan.tasks.cot import answer_words

    register_all(data)
    rationales(
        arguments.checkpoint,
        arguments.task,
        arguments.output,
        samples=arguments.samples,
        keep=arguments.keep,
        split=arguments.split,
        limit=arguments.limit,
        each=arguments.each,
        agreement=arguments.agreement,
        trigger=arguments.trigger,
        answer_words=answer_words(),
        json_file=arguments.json,
        **decoding(arguments),
    )


COMMAND = Command(
    'rationales',
    'samples rationales with a checkpoint, keeps those that reach the right answer: a new file for DataConfig.cot',
    run,
    gin=True,
    example='t5flan rationales --checkpoint=runs/mine --gin.DataConfig.cot=flan_v2/cot_data --task=cot_gsm8k '
    '--samples=8 --keep=right --output=gsm8k_sampled.tsv',
    flags=(
        CHECKPOINT,
        Flag('--task', 'whose questions are asked', 'NAME', required=True),
        Flag('--output', 'a .tsv or .jsonl; its provenance is written beside it', 'FILE', required=True),
        Flag('--samples', 'rationales drawn for each question (8)', 'N', int, 8),
        Flag(
            '--keep',
            "'right': the answer is the file's; 'vote': it is that of most draws (right)",
            'RULE',
            default='right',
        ),
        Flag('--agreement', 'for --keep=vote, the least share of the draws (0.5)', 'X', float, 0.5),
        Flag('--each', 'kept of a question at most (1)', 'N', int, 1),
        Flag('--split', 'of the task (train)', 'NAME', default='train'),
        Flag('--limit', 'the first so many questions; all', 'N', int),
        Flag(
            '--trigger',
            "asks for a rationale; '' adds nothing (InstructionConfig's first, where the task does not ask)",
            'TEXT',
        ),
        *SAMPLING,
        JSON,
    ),
)
