"""Builds a model from its configuration: with values, or as shapes only."""

import jax

from t5flan.models.config import ModelConfig
from t5flan.models.decoder_only import DecoderOnly
from t5flan.models.encoder_decoder import EncoderDecoder
from t5flan.models.model import Model
from t5flan.models.parameters import Scope

_ARCHITECTURES = {'encoder_decoder': EncoderDecoder, 'decoder_only': DecoderOnly}


def build_model(config: ModelConfig, key: jax.Array) -> Model:
    """A model with new float32 parameters: a pure function, so jit it with output shardings to create them in place."""
    return _ARCHITECTURES[config.architecture](config, Scope(key))


def abstract_model(config: ModelConfig) -> Model:
    """The same tree with `jax.ShapeDtypeStruct` for arrays; takes no memory."""
    return jax.eval_shape(lambda: build_model(config, jax.random.key(0)))
