"""`t5flan cache`: tokenizes a task's or mixture's records offline."""

import argparse

from t5flan.commands.arguments import Command, Flag, words
from t5flan.commands.flags import JSON
from t5flan.commands.startup import import_tensorflow


def run(arguments: argparse.Namespace) -> None:
    """Tokenizes a task's or mixture's records offline."""
    from t5flan import configurables
    from t5flan.data.config import DataConfig

    # Cache the given name itself, whatever the run file mixes with it.
    named = [f'DataConfig.mixture={arguments.name}', 'DataConfig.stages=[]', 'DataConfig.mixed_in={}']
    settings = configurables.parse(arguments.gin_file, [*arguments.gin, *named, 'DataConfig.cache=None'])
    settings.set_defaults(
        DataConfig, {'batch_size': 1, 'feature_lengths': {'inputs': 512, 'targets': 512}}, 't5flan cache'
    )
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


OPTIONS_HELP = (
    'an option of Beam, e.g. --pipeline_options=--runner=DataflowRunner; may be given several times '
    '(default: run on this machine)'
)
COMMAND = Command(
    'cache',
    "tokenizes a task's records offline with SeqIO's Beam pipeline; DataConfig.cache reads them in training",
    run,
    gin=True,
    example='t5flan cache c4_ul2 --output=/data/cache --gin_file=runs/ul2 --gin.VOCABULARY=spiece.model',
    flags=(
        Flag('name', 'a task or mixture', 'NAME', required=True),
        Flag('--output', 'folder to write', 'DIR', required=True, writes='folder'),
        Flag('--splits', 'splits, separated by commas (default: all)', 'A,B', words),
        Flag('--pipeline_options', OPTIONS_HELP, 'OPTION', many=True),
        Flag('--overwrite', 'cache tasks again that are already cached', type=bool),
        JSON,
    ),
)
