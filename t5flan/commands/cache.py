"""`t5flan cache`: prepares a task's or mixture's records offline."""

import argparse

from t5flan.commands.arguments import Command, Flag, words
from t5flan.commands.flags import JSON
from t5flan.commands.startup import import_tensorflow


def run(arguments: argparse.Namespace) -> None:
    """Prepares a task's or mixture's records offline."""
    from t5flan import configurables
    from t5flan.data.config import DataConfig

    settings = configurables.parse(
        arguments.gin_file,
        [
            *arguments.gin,
            f'DataConfig.mixture={arguments.name}',
            'DataConfig.cache=None',
            'DataConfig.stages=[]',
            'DataConfig.mixed_in={}',
        ],
    )
    settings.offer(DataConfig, {'batch_size': 1, 'feature_lengths': {'inputs': 512, 'targets': 512}}, 't5flan cache')
    data = settings.read(DataConfig, 'cache')

    import_tensorflow()
    from t5flan.corpora.cache import main
    from t5flan.tasks import register_all

    register_all(data)
    main(
        data,
        arguments.name,
        arguments.output,
        arguments.json,
        prepare=register_all,
        splits=arguments.splits or (),
        overwrite=arguments.overwrite,
        pipeline_options=arguments.pipeline_options or (),
    )


COMMAND = Command(
    'cache',
    "prepares a task's records offline (tokenized), by SeqIO's Beam pipeline: DataConfig.cache then reads them",
    run,
    gin=True,
    example='t5flan cache c4_ul2 --output=/data/cache --gin_file=runs/ul2 --gin.VOCABULARY=spiece.model',
    flags=(
        Flag('name', 'of a task, or of a mixture of such', 'NAME', required=True),
        Flag('--output', 'the folder to write', 'DIR', required=True),
        Flag('--splits', 'with commas between; all', 'A,B', words),
        Flag(
            '--pipeline_options',
            "Beam's, as --pipeline_options=--runner=DataflowRunner; may be given several times (runs on this machine)",
            'OPTION',
            many=True,
        ),
        Flag('--overwrite', 'makes it again where it is there', type=bool),
        JSON,
    ),
)
