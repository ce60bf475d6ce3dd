"""A checkpoint folder with a tiny untrained model, for tests that read folders."""

from pathlib import Path

import jax.numpy as jnp

from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.models.model import Model
from t5flan.training.checkpoints import VOCABULARY, CheckpointManager, Description
from t5flan.training.config import CheckpointConfig
from t5flan.training.state import TrainState
from tests.models.small_models import ENCODER_DECODERS, small_model

LENGTHS = {'inputs': 24, 'targets': 12}


def byte_model(family: str = 't5_1_1', vocab_size: int = 260) -> Model:
    """A tiny model over bytes, whose vocabulary has one unused id."""
    layers = {'num_decoder_layers': 1} | ({'num_encoder_layers': 1} if family in ENCODER_DECODERS else {})
    return small_model(family, vocab_size=vocab_size, **layers)


def save_folder(folder: Path, model: Model, format: str = 'encoder_decoder', steps: tuple[int, ...] = (4, 8)) -> Path:
    """Writes the files of `t5flan train`: description, vocabulary, and a checkpoint at each of `steps`."""
    vocabulary = ByteVocabulary()
    vocabulary.save(folder / VOCABULARY)
    fields = {'size': vocabulary.vocab_size, 'fingerprint': vocabulary.fingerprint}
    Description(model=model.config, format=format, feature_lengths=LENGTHS, vocabulary=fields).write(folder)
    manager = CheckpointManager(folder, CheckpointConfig(keep=5))
    for step in steps:
        state = TrainState(step=jnp.int32(step), model=model, opt_state={'count': jnp.zeros(1, jnp.int32)})
        manager.save(state, {'seed': 0, 'position': {}})
    manager.close()
    return folder
