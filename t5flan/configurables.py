"""Every class that gin can configure, and `parse()`, which knows them all.

    settings = configurables.parse(['runs/finetune'], ['MIXTURE=practice', 'ModelConfig.dropout_rate=0.05'])
    model = settings.read(ModelConfig)

Nothing here imports JAX or TensorFlow: a wrong setting is reported before either is loaded.
"""

import dataclasses
import json
import re
from collections.abc import Iterable
from typing import Any

from t5flan import mesh
from t5flan.config import settings
from t5flan.config.gin_files import exists, read_text
from t5flan.data import config as data_config
from t5flan.data import corpus_config
from t5flan.data.config import DataConfig
from t5flan.decoding import config as decoding_config
from t5flan.errors import UserError
from t5flan.models import config as model_config
from t5flan.models.config import ModelConfig
from t5flan.training import config as training_config

CONFIGURABLES: dict[str, type] = {
    value.__name__: value
    for module in (model_config, data_config, corpus_config, training_config, decoding_config, mesh)
    for value in vars(module).values()
    if dataclasses.is_dataclass(value) and isinstance(value, type) and value.__module__ == module.__name__
}
"""Every dataclass of the rooms' config.py, by the name gin knows it by."""

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


def training_settings(given: settings.Settings) -> dict[str, Any]:
    """Reads the settings of a training run, as arguments of `training.trainer.train`."""
    return dict(zip(TRAINING, given.read_all(list(TRAINING.values()), 'train'), strict=True))


def parse(gin_files: Iterable[str] = (), gin_bindings: Iterable[str] = ()) -> settings.Settings:
    """Reads gin files, then bindings (`NAME=value`), over all configurables; see `config.settings.parse`."""
    return settings.parse(gin_files, gin_bindings, CONFIGURABLES.values())


def checkpoint_settings(folder: str) -> tuple[str, dict[type, dict[str, Any]]] | None:
    """What a checkpoint folder says of its model, as settings of a run that starts from it; None if it is none.

    Args:
        folder: a workdir, or one of its steps (DIR/checkpoints/1000).
    """
    root = next(
        (root for root in (folder, re.sub(r'/checkpoints/\d+/?$', '', folder)) if exists(f'{root}/t5flan.json')), None
    )
    if root is None:
        return None
    path = f'{root}/t5flan.json'
    text = read_text(path)
    try:
        description = json.loads(text)
        return path, {
            ModelConfig: description['model'],
            DataConfig: {'format': description['format'], 'vocabulary': f'{root}/vocabulary'},
        }
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} is not the description of a checkpoint ({error})') from None
