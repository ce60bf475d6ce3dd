"""What a run writes about itself into its workdir, and the check that a workdir belongs to the run."""

import dataclasses
import json
import os

from etils import epath

from t5flan.data.config import DataConfig
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError
from t5flan.files import write_whole
from t5flan.models.config import ModelConfig
from t5flan.training import checkpoints

RUN_FIELDS = ('dtype', 'dropout_rate', 'scan_layers', 'remat', 'attention')
"""Fields of ModelConfig that say how a model runs; they do not change the meaning of its parameters."""


def describe(model: ModelConfig, data: DataConfig, vocabulary: Vocabulary) -> checkpoints.Description:
    """The description of a run for its checkpoint folder."""
    order = ['mixture', 'batch_size', 'split', 'seed', 'shuffle', 'pack', 'too_long', 'concatenate']
    order += ['denoisers', 'mixtures', 'stages', 'mixed_in']
    settings = json.loads(json.dumps(dataclasses.asdict(data)))  # as they read back from the file
    return checkpoints.Description(
        model=model,
        format=data.format,
        feature_lengths=dict(data.feature_lengths),
        vocabulary={'size': vocabulary.vocab_size, 'fingerprint': vocabulary.fingerprint},
        data={name: settings[name] for name in order}
        | {'streams': data.stream_count}
        | {f'instructions.{name}': value for name, value in settings['instructions'].items()},
    )


def check_workdir(workdir: str, new: checkpoints.Description) -> None:
    """Requires the run in `workdir`, if there is one, to have this model, vocabulary and data order.

    Raises:
        UserError: the first setting that differs.
    """
    if checkpoints.latest_step(workdir) is None:
        return
    old = checkpoints.read_description(workdir)
    fields, given = old.model.to_dict(), new.model.to_dict()
    pairs = [(f'ModelConfig.{name}', fields[name], given[name]) for name in fields if name not in RUN_FIELDS]
    pairs += [(f'DataConfig.{name}', getattr(old, name), getattr(new, name)) for name in ('format', 'feature_lengths')]
    pairs += [(f'DataConfig.{name}', value, new.data.get(name)) for name, value in old.data.items()]
    pairs += [('DataConfig.vocabulary', old.vocabulary['fingerprint'], new.vocabulary['fingerprint'])]
    for setting, before, now in pairs:
        if before != now:
            fix = 'start a new --workdir (CheckpointConfig.initialize_from starts it from this one)'
            problem = f'{workdir} holds a run with {setting}={before}, given is {now}'
            raise UserError(f'{problem}. Set it back, or {fix}.')


def write_description(workdir: str, description: checkpoints.Description, vocabulary: Vocabulary, gin: str) -> None:
    """Writes t5flan.json, config.gin and the vocabulary."""
    root = epath.Path(workdir)
    here = os.getcwd()
    if '://' not in os.fspath(root):
        description = dataclasses.replace(description, started_in=(here, os.path.relpath(here, root)))
    vocabulary.save(root / checkpoints.VOCABULARY)
    write_whole(root / 'config.gin', gin)
    description.write(root)
