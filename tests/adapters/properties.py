"""What has to hold for every method, as functions of its settings, and the small models it is tested on."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5flan import sharding as sharding_lib
from t5flan.adapters import adapter as adapters
from t5flan.adapters.config import Adapter
from t5flan.conversion.adapters import folder as adapter_folder
from t5flan.mesh import MeshConfig
from t5flan.models.build import build_model
from t5flan.models.config import ModelConfig
from t5flan.models.parameters import named_parameters, parameter_count
from t5flan.training.config import LossConfig, OptimizerConfig, RunConfig
from t5flan.training.state import TrainState
from t5flan.training.step import Trainer
from tests.saved_model import byte_model
from tests.training.examples import ENCODER_DECODER, SIZES

DECODER = ModelConfig(architecture='encoder_decoder', num_encoder_layers=2, **SIZES)
DECODER = ModelConfig(
    architecture='decoder_only', position='rope', num_kv_heads=2, tie_embeddings=True, scale_attention=True, **SIZES
)
both_models = pytest.mark.parametrize('config', [ENCODER_DECODER, DECODER], ids=['encoder-decoder', 'decoder'])


def make_batch(config: ModelConfig, seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    names = ['decoder_input_tokens', 'decoder_target_tokens']
    names += ['encoder_input_tokens'] * (config.architecture == 'encoder_decoder')
    return {name: jnp.asarray(rng.integers(2, config.vocab_size, (4, 10)), jnp.int32) for name in names}


def base_model(config: ModelConfig) -> Any:
    return jax.tree.map(jnp.copy, _base_model(config))  # a trainer donates it


@functools.cache
def _base_model(config: ModelConfig) -> Any:
    return jax.jit(lambda: build_model(config, jax.random.key(0)))()


def moved(model: Any) -> Any:
    """The model with random numbers added to its adapter, as after training."""
    arrays = adapters.adapter_arrays(model)
    keys = jax.random.split(jax.random.key(5), len(arrays))
    return adapters.with_arrays(
        model, {name: x + 0.1 * jax.random.normal(k, x.shape) for (name, x), k in zip(arrays.items(), keys)}
    )


def write_adapter(folder: Path, base: Path | str, settings: Adapter, seed: int = 0) -> str:
    """A folder with an adapter of random numbers, of a `byte_model` in the folder `base`."""
    model = moved(adapters.apply(byte_model(), settings, jax.random.key(seed)))
    folder.mkdir(parents=True)
    arrays = {name: np.asarray(x) for name, x in adapters.adapter_arrays(model).items()}
    adapter_folder.write(folder, str(base), settings, arrays, {})
    return str(folder)


def logits(model: Any, batch: Any) -> np.ndarray:
    return np.asarray(jax.jit(lambda model: model(batch))(model))


def trained(
    config: ModelConfig, settings: Adapter, steps: int = 3, microbatches: int = 1, resumed_after: int | None = None
) -> tuple[Any, TrainState, list[dict[str, jax.Array]]]:
    """(the base, the state after some steps, the metrics of each), from the trainer that runs use.

    `resumed_after` this many steps, only what a checkpoint holds is kept of the state.
    """
    optimizer = OptimizerConfig(name='adamw', learning_rate=1e-2, microbatches=microbatches)
    with sharding_lib.use(sharding_lib.create_sharding(MeshConfig(data=1), jax.devices()[:1])) as sharding:
        trainer = Trainer(config, optimizer, LossConfig(), RunConfig(steps=steps, adapter=settings), sharding)
        state = trainer.state_with(base_model(config))
        metrics = []
        for step in range(steps):
            if step == resumed_after:
                saved = jax.device_get(trainer.saved(state))
                model = adapters.with_arrays(
                    trainer.state_with(base_model(config)).model, named_parameters(saved.model)
                )
                state = dataclasses.replace(saved, model=model)
            state, found = trainer.train_step(state, make_batch(config))
            metrics.append(found)
    return base_model(config), state, metrics


# -- Properties -----------------------------------------------------------------------------------------------------


def check_a_new_one_changes_nothing(config: ModelConfig, settings: Adapter, tolerance: float = 0.0) -> None:
    """The outputs of a new adapter are the base's, up to `tolerance` relative to the largest logit."""
    base, batch = base_model(config), make_batch(config)
    model = adapters.apply(base, settings, jax.random.key(1))
    before, after = logits(base, batch), logits(model, batch)
    np.testing.assert_allclose(after, before, atol=tolerance * np.abs(before).max(), rtol=0)
    assert adapters.adapter_arrays(model) and not adapters.adapter_arrays(base)


def check_it_is_trained_alone(config: ModelConfig, settings: Adapter, copies: int = 2) -> None:
    """Training changes every array of the adapter and no bit of the base; the optimizer holds `copies` of them."""
    base, state, _ = trained(config, settings)
    after = named_parameters(state.model)
    for name, before in named_parameters(base).items():
        np.testing.assert_array_equal(before, after[name], err_msg=name)
    new = adapters.adapter_arrays(adapters.apply(base, settings, jax.random.key(0)))
    assert all(np.any(np.asarray(after[name]) != np.asarray(x)) for name, x in new.items()), 'a part was not trained'
    moments = parameter_count(state.opt_state)
    assert moments <= copies * parameter_count(new) + copies, 'the optimizer holds more than the moments of the adapter'


def check_merged_equals_unmerged(config: ModelConfig, settings: Adapter) -> None:
    """The plain model with the adapter in its kernels computes the same."""
    base, batch = base_model(config), make_batch(config)
    model = moved(adapters.apply(base, settings, jax.random.key(1)))
    adapted, plain = logits(model, batch), logits(adapters.merge(model), batch)
    assert np.abs(adapted - logits(base, batch)).max() > 0.01
    np.testing.assert_allclose(adapted, plain, atol=1e-5 * np.abs(adapted).max(), rtol=0)


def check_scanned_equals_unrolled(settings: Adapter) -> None:
    """Training with a loop over the layers gives the same adapter."""
    _, scanned, _ = trained(DECODER, settings)
    _, unrolled, _ = trained(dataclasses.replace(DECODER, scan_layers=False), settings)
    expected = adapters.adapter_arrays(unrolled.model)
    for name, x in adapters.adapter_arrays(scanned.model).items():
        np.testing.assert_allclose(x, expected[name], atol=1e-5, err_msg=name)


def check_a_resumed_run_has_the_same_bits(config: ModelConfig, settings: Adapter, steps: int = 4) -> None:
    """Training goes on from what a checkpoint holds as if it had never stopped."""
    _, whole, _ = trained(config, settings, steps)
    _, resumed, _ = trained(config, settings, steps, resumed_after=steps // 2)
    for x, y in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def check_decoding_equals_a_forward_pass(config: ModelConfig, model: Any) -> None:
    """Logits token by token are those of the whole sequence."""
    batch = make_batch(config)
    tokens_BT = batch['decoder_input_tokens'].at[:, 0].set(0)
    expected = logits(model, batch | {'decoder_input_tokens': tokens_BT})

    @jax.jit
    def decode(model):
        found, cache = model.start_cache(batch['encoder_input_tokens'], 4)
        steps = [found]
        for t in range(1, 4):
            found, cache = model.decode_step(cache, tokens_BT[:, t : t + 1])
            steps.append(found)
        return jnp.stack(steps, axis=1)

    np.testing.assert_allclose(decode(model), expected[:, :4], atol=1e-4)
