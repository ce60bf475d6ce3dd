"""`t5flan train`: trains, or goes on where the workdir stopped, with its own settings where no gin file is given."""

import argparse
from collections.abc import Sequence
from typing import Any

from t5flan.commands.arguments import Command, Flag
from t5flan.commands.flags import SKIP_BROKEN, skip_broken
from t5flan.commands.startup import import_tensorflow
from t5flan.errors import UsageError, UserError


def run(arguments: argparse.Namespace) -> None:
    """Trains, or goes on where the workdir stopped, with its own settings where no gin file is given."""
    from t5flan import configurables
    from t5flan.config.gin_files import exists
    from t5flan.data.config import DataConfig
    from t5flan.mesh import MeshConfig
    from t5flan.models.config import ModelConfig
    from t5flan.training.config import CheckpointConfig, EvaluationConfig, LossConfig, OptimizerConfig, RunConfig

    files = arguments.gin_file
    workdir = arguments.workdir.rstrip('/') or '/'
    if not files and exists(f'{workdir}/config.gin'):
        files = [f'{workdir}/config.gin']
    if not files and not arguments.gin:
        raise UsageError(
            f'{workdir} holds no run to go on with, and no settings are given: name a run file, as '
            '--gin_file=examples/tiny_stdlib_pretrain (see `t5flan train --help`)'
        )
    kinds = {
        'model': ModelConfig,
        'data': DataConfig,
        'run': RunConfig,
        'optimizer': OptimizerConfig,
        'loss': LossConfig,
        'mesh': MeshConfig,
        'checkpoints': CheckpointConfig,
        'evaluation': EvaluationConfig,
    }
    settings = configurables.parse(files, [*arguments.gin, *skip_broken(arguments)])
    _take_from_checkpoint(settings, workdir, list(kinds.values()))
    values = dict(zip(kinds, settings.read_all(list(kinds.values()), 'train'), strict=True))

    import_tensorflow()
    from t5flan.tasks import register_all
    from t5flan.training.trainer import train

    register_all(values['data'])
    train(workdir, **values, gin=settings.operative_config())


def _take_from_checkpoint(settings: Any, workdir: str, kinds: Sequence[type]) -> None:
    """Model, format and vocabulary of this workdir, or of the folder that the run starts from, where gin gives none.

    Raises:
        UserError: the folder to start from is none, or is a setting that is not given.
    """
    from t5flan import configurables
    from t5flan.data.config import DataConfig
    from t5flan.models.config import ModelConfig
    from t5flan.training.config import CheckpointConfig

    has_model = settings.gives(ModelConfig, 'architecture')
    found = configurables.checkpoint_settings(workdir)
    if found is None:
        if not settings.can_read(CheckpointConfig):  # the rest will come from the folder that is not given
            settings.offer(DataConfig, {'vocabulary': 'that of the folder'}, '')
            settings.read_all([kind for kind in kinds if kind is not ModelConfig or has_model], 'train')
        source = settings.read(CheckpointConfig).initialize_from
        if source is None:
            return
        found = configurables.checkpoint_settings(source)
        if found is None:
            raise UserError(
                f'CheckpointConfig.initialize_from={source} is no checkpoint folder (it has no t5flan.json): '
                'set it to the workdir of a `t5flan train` run'
            )
    path, values = found
    for kind, fields in values.items():
        if kind is not ModelConfig or not has_model:  # a model is taken whole or not at all
            settings.offer(kind, fields, path)


COMMAND = Command(
    'train',
    'trains a model, or goes on where DIR stopped',
    run,
    gin=True,
    example='t5flan train --workdir=runs/mine --gin_file=runs/finetune --gin.MIXTURE=practice '
    '--gin.INITIALIZE_FROM=runs/pretrain',
    flags=(
        Flag(
            '--workdir', 'the folder of the run: checkpoints, metrics, settings; local or gs://', 'DIR', required=True
        ),
        SKIP_BROKEN,
    ),
)
