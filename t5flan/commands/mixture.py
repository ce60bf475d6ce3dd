"""`t5flan mixture`: shows the contents of a task or mixture; without a name, lists all of them."""

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from t5flan.commands.arguments import COUNT_FROM_0, Command, Flag
from t5flan.commands.flags import JSON, SKIP_BROKEN, files_of_run, skip_broken, take_from_initial_checkpoint
from t5flan.commands.startup import import_tensorflow, register_tasks
from t5flan.files import write_json

if TYPE_CHECKING:
    from t5flan.data.config import DataConfig


def run(arguments: argparse.Namespace) -> None:
    """Shows the contents of a task or mixture; without a name, lists all of them."""
    from t5flan import configurables
    from t5flan.data.config import DataConfig

    named = []
    if arguments.name:  # show the given name itself, whatever the run file mixes with it
        named = [f'DataConfig.mixture={arguments.name}', 'DataConfig.stages=[]', 'DataConfig.mixed_in={}']
        arguments.gin = [one for one in arguments.gin if not one.startswith('MIXTURE=')]  # of a copied train command
    settings = configurables.parse(arguments.gin_file, [*arguments.gin, *named, *skip_broken(arguments)])
    only_list = not settings.binds(DataConfig, 'mixture')
    source = take_from_initial_checkpoint(settings)
    defaults: dict[str, Any] = {'batch_size': 1, 'feature_lengths': {'inputs': 512, 'targets': 512}}
    defaults |= {'mixture': '-', 'vocabulary': 'bytes'}
    if not settings.binds(DataConfig, 'vocabulary'):
        defaults['mode_tokens'] = ('[NLU]', '[NLG]', '[S2S]')
    settings.set_defaults(DataConfig, defaults, 't5flan mixture')
    data = settings.read(DataConfig, 'mixture')
    if source is not None:
        data = files_of_run(data, source)

    if only_list:
        _list_names(data, arguments.json)
        return
    from t5flan.tasks import ul2
    from t5flan.tasks.text import STDLIB_DOCS

    if data.mixture in {**ul2.denoisers(), **data.denoisers}:  # has no corpus: show it on one that always exists
        data = dataclasses.replace(data, mixture=f'{STDLIB_DOCS}_{data.mixture}')
    register_tasks(data)
    from t5flan.reporting.mixture_report import main
    from t5flan.tasks.flan.mixtures import parts

    main(data, arguments.json, arguments.sample, arguments.examples, source, submixtures=parts(data.mixture))


def _list_names(data: 'DataConfig', json_path: str | None) -> None:
    import_tensorflow()
    import seqio

    from t5flan.tasks import register_all

    register_all(data)
    names = {'mixtures': sorted(seqio.MixtureRegistry.names()), 'tasks': sorted(seqio.TaskRegistry.names())}
    for kind, found in names.items():
        print(f'{kind}:', *found, sep='\n  ')
    if json_path:
        write_json(json_path, names)


SAMPLE_HELP = 'examples of each task to measure; 0 reads none (default: 100, fewer if there are many tasks)'
COMMAND = Command(
    'mixture',
    "shows a task's or mixture's rates, caps, lengths, variants and examples before training",
    run,
    gin=True,
    example='t5flan mixture practice',
    flags=(
        Flag('name', 'a task or mixture (default: list all names)', 'NAME'),
        Flag('--sample', SAMPLE_HELP, 'N', COUNT_FROM_0),
        Flag('--examples', 'examples to show (default: 3, or one of each denoiser)', 'N', COUNT_FROM_0),
        SKIP_BROKEN,
        JSON,
    ),
)
