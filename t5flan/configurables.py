"""All classes that gin can configure, and `parse()`, which reads gin files and bindings over them.

    settings = configurables.parse(['runs/finetune'], ['MIXTURE=practice', 'ModelConfig.dropout_rate=0.05'])
    model = settings.read(ModelConfig)

Nothing here imports JAX or TensorFlow: a wrong setting is reported before either is loaded. The file of an adapter's
method, which needs JAX, is imported when the method is named.
"""

import dataclasses
import re
from collections import ChainMap
from collections.abc import Iterable, Mapping
from typing import Any, cast

from t5flan import mesh
from t5flan.adapters.config import METHODS
from t5flan.config import renames
from t5flan.config.gin_files import exists
from t5flan.config.settings import Settings
from t5flan.data import config as data_config
from t5flan.data import corpus_config, instruction_config, mixture_config
from t5flan.data.config import DataConfig
from t5flan.decoding import config as decoding_config
from t5flan.errors import UserError
from t5flan.files import read_object
from t5flan.models import config as model_config
from t5flan.models.config import ModelConfig
from t5flan.training import config as training_config

_DATA_MODULES = (data_config, corpus_config, mixture_config, instruction_config)
_SETTINGS: dict[str, type] = {
    value.__name__: value
    for module in (model_config, *_DATA_MODULES, training_config, decoding_config, mesh)
    for value in vars(module).values()
    if dataclasses.is_dataclass(value) and isinstance(value, type) and value.__module__ == module.__name__
}
CONFIGURABLES: Mapping[str, type] = ChainMap(cast(Any, METHODS), _SETTINGS)
"""The dataclasses of every settings module and the methods of adapters, by the name that gin files use."""

RENAMED_CLASSES = {'Blend': 'Mixture'}
"""Old -> present names, understood for one release; each class lists its renamed fields in `RENAMED`."""

TRAINING: dict[str, type] = {
    'model': ModelConfig,
    'data': DataConfig,
    'run': training_config.RunConfig,
    'optimizer': training_config.OptimizerConfig,
    'loss': training_config.LossConfig,
    'mesh': mesh.MeshConfig,
    'checkpoints': training_config.CheckpointConfig,
    'evaluation': training_config.EvaluationConfig,
}
"""The settings of a training run: arguments of `training.trainer.train` and their classes."""


def training_settings(given: Settings) -> dict[str, Any]:
    """Reads the settings of a training run, as arguments of `training.trainer.train`.

    Raises:
        UsageError: a setting is missing or of the wrong type.
        UserError: a setting is out of range, or the format does not fit the model.
    """
    found = dict(zip(TRAINING, given.read_all(list(TRAINING.values()), 'train'), strict=True))
    needed, model = data_config.ARCHITECTURES[found['data'].format], found['model']
    if model.architecture != needed:
        problem = f'DataConfig.format={found["data"].format!r} needs a model of ModelConfig.architecture={needed!r}'
        raise UserError(f'{problem}, got {model.architecture!r}. Set one of them in your .gin.')
    parts, batch_size = found['optimizer'].microbatches, found['data'].batch_size
    if batch_size % parts:
        problem = f'OptimizerConfig.microbatches={parts} does not divide DataConfig.batch_size={batch_size}'
        raise UserError(f'{problem}. Set one of them in your .gin.')
    return found


def parse(gin_files: Iterable[str] = (), gin_bindings: Iterable[str] = (), stored: str | None = None) -> Settings:
    """Reads the `stored` config.gin, gin files, bindings (`NAME=value`), over all configurables; see `Settings`."""
    return Settings(gin_files, gin_bindings, _SETTINGS.values(), RENAMED_CLASSES, METHODS, stored)


def checkpoint_settings(folder: str) -> tuple[str, dict[type, dict[str, Any]]] | None:
    """The settings that a run takes from the checkpoint it starts from.

    Args:
        folder: a workdir, or one of its steps (DIR/checkpoints/1000).

    Returns:
        The path of t5flan.json and the settings by class, or None if `folder` is not a checkpoint.

    Raises:
        UserError: t5flan.json is not the description of a checkpoint.
    """
    candidates = (folder, re.sub(r'/checkpoints/\d+/?$', '', folder))
    root = next((root for root in candidates if exists(f'{root}/t5flan.json')), None)
    if root is None:
        return None
    path = f'{root}/t5flan.json'
    description = read_object(path, 'the description of a checkpoint')
    try:
        data = {'format': description['format'], 'vocabulary': f'{root}/vocabulary'}
        return path, {ModelConfig: renames.current_settings(ModelConfig, description['model']), DataConfig: data}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{path} is not the description of a checkpoint ({error})') from None


def feature_lengths(path: str) -> dict[str, int]:
    """The feature lengths in a t5flan.json; 512 of each if the checkpoint was converted and has none."""
    return read_object(path, 'the description of a checkpoint').get('feature_lengths') or {
        'inputs': 512,
        'targets': 512,
    }


def started_in(path: str) -> list[str]:
    """The folders in which the run of a t5flan.json was started, absolute and from the workdir; [] if unknown."""
    folders = read_object(path, 'the description of a checkpoint').get('started_in') or []
    return [folder for folder in folders if isinstance(folder, str)] if isinstance(folders, list) else []
