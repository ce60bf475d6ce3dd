"""A checkpoint folder of a tiny model that was never trained, for what reads folders."""

from pathlib import Path

import jax.numpy as jnp

from t5flan.data.vocabulary.byte_level import ByteVocabulary
from t5flan.models.model import Model
from t5flan.training.checkpoints import VOCABULARY, Checkpoints, Description
from t5flan.training.config import CheckpointConfig
from t5flan.training.state import TrainState
from tests.models.small_models import ENCODER_DECODERS, small_model

LENGTHS = {'inputs': 24, 'targets': 12}


def byte_model(family: str = 't5_1_1', vocab_size: int = 260) -> Model:
    """A tiny model over bytes, with one id more than they need."""
    layers = {'num_decoder_layers': 1} | ({'num_encoder_layers': 1} if family in ENCODER_DECODERS else {})
    return small_model(family, vocab_size=vocab_size, **layers)


def save_folder(folder: Path, model: Model, format: str = 'encoder_decoder', steps: tuple[int, ...] = (4, 8)) -> Path:
    """Writes what `t5flan train` leaves: description, vocabulary, and a checkpoint at each of `steps`."""
    vocabulary = ByteVocabulary()
    vocabulary.save(folder / VOCABULARY)
    Description(
        model=model.config,
        format=format,
        feature_lengths=LENGTHS,
        data={},
        vocabulary={'size': vocabulary.vocab_size, 'fingerprint': vocabulary.fingerprint},
    ).write(folder)
    keeper = Checkpoints(folder, CheckpointConfig(keep=5))
    for step in steps:
        keeper.save(
            TrainState(step=jnp.int32(step), model=model, opt_state={'count': jnp.zeros(1, jnp.int32)}),
            {'seed': 0, 'position': {}},
        )
    keeper.close()
    return folder
