"""`t5flan mixture`: shows what a task or mixture holds; without a name, which there are."""

import argparse
import dataclasses

from t5flan.commands.arguments import Command, Flag
from t5flan.commands.flags import JSON, SKIP_BROKEN, skip_broken
from t5flan.commands.startup import import_tensorflow
from t5flan.files import write_json


def run(arguments: argparse.Namespace) -> None:
    """Shows what a task or mixture holds; without a name, which there are."""
    from t5flan import configurables
    from t5flan.data.config import DataConfig

    # A name is shown by itself, whatever the run file mixes with it or after it.
    named = (
        [f'DataConfig.mixture={arguments.name}', 'DataConfig.stages=[]', 'DataConfig.mixed_in={}']
        if arguments.name
        else []
    )
    settings = configurables.parse(arguments.gin_file, [*arguments.gin, *named, *skip_broken(arguments)])
    shown = {'mixture': '-', 'batch_size': 1, 'feature_lengths': {'inputs': 512, 'targets': 512}, 'vocabulary': 'bytes'}
    is_list = not settings.gives(DataConfig, 'mixture')
    if not settings.gives(DataConfig, 'vocabulary'):
        shown['mode_tokens'] = ('[NLU]', '[NLG]', '[S2S]')
    settings.offer(DataConfig, shown, 't5flan mixture')
    data = settings.read(DataConfig, 'mixture')

    import_tensorflow()
    from t5flan.reporting.mixture_report import main as describe
    from t5flan.tasks import register_all, ul2
    from t5flan.tasks.text import STDLIB_DOCS

    register_all(data)
    if data.mixture in {**ul2.denoisers(), **data.denoisers}:  # of no corpus: shown on the text that is always there
        data = dataclasses.replace(data, mixture=f'{STDLIB_DOCS}_{data.mixture}')
    if is_list:
        _list_mixtures(arguments.json)
    else:
        describe(data, arguments.json, arguments.sample, arguments.examples)


def _list_mixtures(json_path: str | None) -> None:
    import seqio

    names = {'mixtures': sorted(seqio.MixtureRegistry.names()), 'tasks': sorted(seqio.TaskRegistry.names())}
    for kind, found in names.items():
        print(f'{kind}:', *found, sep='\n  ')
    if json_path:
        write_json(json_path, names)


COMMAND = Command(
    'mixture',
    "shows a task's or mixture's rates, caps, lengths, variants and examples, before anything is trained",
    run,
    gin=True,
    example='t5flan mixture practice',
    flags=(
        Flag('name', 'of a task or mixture; without it, all names are listed', 'NAME'),
        Flag(
            '--sample', 'examples of each task that are measured (100; fewer of many tasks; 0 reads nothing)', 'N', int
        ),
        Flag('--examples', 'examples shown (3; of a mixture of denoisers one of each)', 'N', int),
        SKIP_BROKEN,
        JSON,
    ),
)
