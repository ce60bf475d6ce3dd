"""`t5flan train`: trains a model, or resumes the run in the workdir."""

import argparse
import dataclasses
from typing import TYPE_CHECKING, Any

from t5flan.commands.arguments import COUNT_FROM_0, Command, Flag
from t5flan.commands.flags import (
    PROCESSES,
    SKIP_BROKEN,
    connect,
    files_of_run,
    initial_checkpoint,
    own_checkpoint,
    skip_broken,
    with_own_teacher,
)
from t5flan.commands.startup import register_tasks
from t5flan.errors import UsageError

if TYPE_CHECKING:
    from t5flan.config.settings import Settings
    from t5flan.evaluation.evaluator import GeneratedMetrics


def run(arguments: argparse.Namespace) -> None:
    """Trains a model, or resumes the run in the workdir; without a gin file, uses the run's own settings."""
    from t5flan import configurables
    from t5flan.config.gin_files import exists

    files = arguments.gin_file
    workdir = arguments.workdir.rstrip('/') or '/'
    stored = f'{workdir}/config.gin' if not files and exists(f'{workdir}/config.gin') else None
    if not files and not stored and not arguments.gin:
        raise UsageError(
            f'{workdir} has no run to resume, and no settings are given: name a run file, e.g. '
            '--gin_file=examples/tiny_stdlib_pretrain (see `t5flan train --help`)'
        )
    settings = configurables.parse(files, [*arguments.gin, *skip_broken(arguments)], stored)
    take_from_checkpoint(settings, workdir)
    values = configurables.training_settings(settings)
    connect(arguments, always=values['run'].multi_host)
    values['data'] = files_of_run(values['data'], workdir)
    if source := values['checkpoints'].initialize_from:
        values['checkpoints'] = dataclasses.replace(values['checkpoints'], initialize_from=own_checkpoint(source))
    values['loss'] = with_own_teacher(values['loss'])

    if register_tasks(data := values['data'], values['evaluation'].tasks):
        from t5flan.data.mixtures.registration import names_inside
        from t5flan.tasks.flan import mixtures as flan

        used = (data.mixture, *(stage.mixture for stage in data.stages), *data.mixed_in)
        flan.require_complete(names_inside(used, data.mixtures), data.flan_redistribute)
    from t5flan.training.trainer import train

    train(workdir, **values, gin=settings.operative_config(), generated=_generated, profile=arguments.profile)


def _generated(*settings: Any) -> 'GeneratedMetrics':
    """The metrics of generated text; what generates is imported only for runs that measure it."""
    from t5flan.evaluation.evaluator import GeneratedMetrics

    return GeneratedMetrics(*settings)


def take_from_checkpoint(settings: 'Settings', workdir: str) -> None:
    """Takes model, format and vocabulary from the workdir or the initial checkpoint, where gin does not set them.

    Raises:
        UserError: the initial checkpoint is not a checkpoint folder, or a required setting is missing.
    """
    from t5flan import configurables
    from t5flan.models.config import ModelConfig

    has_model = settings.binds(ModelConfig, 'architecture')
    found = configurables.checkpoint_settings(workdir) or _initial_settings(settings, has_model)
    path, values = found or ('', {})
    for kind, fields in values.items():
        if kind is not ModelConfig or not has_model:  # a model from gin is never mixed with one from a checkpoint
            settings.set_defaults(kind, fields, path)
    if settings.can_read(ModelConfig) and settings.read(ModelConfig).architecture == 'decoder_only':
        dropout = values[ModelConfig].get('dropout_rate', 0.0) if values else 0.0
        settings.use_recipe('recipes/finetune_decoder', instead_of='runs/finetune', values={'DROPOUT': dropout})


def _initial_settings(settings: 'Settings', has_model: bool) -> tuple[str, dict[type, dict[str, Any]]] | None:
    """The settings of the initial checkpoint, if there is one, and the path of its t5flan.json."""
    from t5flan import configurables
    from t5flan.data.config import DataConfig
    from t5flan.models.config import ModelConfig
    from t5flan.training.config import CheckpointConfig

    if not settings.can_read(CheckpointConfig):  # report all missing settings that no checkpoint can provide
        settings.set_defaults(DataConfig, {'vocabulary': 'that of the folder'}, '')
        kinds = configurables.TRAINING.values()
        settings.read_all([kind for kind in kinds if kind is not ModelConfig or has_model], 'train')
    source = settings.read(CheckpointConfig).initialize_from
    return None if source is None else initial_checkpoint(source)


PROFILE_HELP = 'traces this number of steps, writes DIR/profile and prints the time of each part of a step (default: 0)'
COMMAND = Command(
    'train',
    'trains a model, or resumes the run in DIR',
    run,
    gin=True,
    example='t5flan train --workdir=runs/mine --gin_file=runs/finetune --gin.MIXTURE=practice '
    '--gin.INITIALIZE_FROM=runs/pretrain',
    runs_model=True,
    flags=(
        Flag('--workdir', 'folder of checkpoints, metrics and settings; local or gs://', 'DIR', required=True),
        Flag('--profile', PROFILE_HELP, 'STEPS', COUNT_FROM_0, 0),
        SKIP_BROKEN,
        *PROCESSES,
    ),
)
