"""RunConfig.base_dtype='bfloat16': the base takes half of its memory, the adapter stays float32, the loss is close."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5flan import sharding as sharding_lib
from t5flan.adapters import adapter as adapters
from t5flan.adapters.methods.dora import Dora
from t5flan.adapters.methods.lora import Lora
from t5flan.errors import UserError
from t5flan.mesh import MeshConfig
from t5flan.models.parameters import named_parameters
from t5flan.training.config import LossConfig, OptimizerConfig, RunConfig
from t5flan.training.step import Trainer
from tests.adapters.properties import DECODER, ENCODER_DECODER, base_model, make_batch


def run(config, settings, base_dtype, steps=3):
    """(the state after some steps, the losses, the base as it was in memory at the start)."""
    sharding = sharding_lib.create_sharding(MeshConfig(), jax.devices()[:1])
    options = dict(steps=steps, adapter=settings, base_dtype=base_dtype)
    with sharding_lib.use(sharding):
        trainer = Trainer(config, OptimizerConfig('adamw', 1e-2), LossConfig(), RunConfig(**options), sharding)
        state = trainer.state_with(base_model(config))
        names = adapters.base_names(config)
        before = {name: np.asarray(x) for name, x in named_parameters(state.model).items() if name in names}
        losses = []
        for _ in range(steps):
            state, metrics = trainer.train_step(state, make_batch(config))
            losses.append(float(metrics['loss']))
    return state, losses, before


@pytest.mark.parametrize(
    ('config', 'settings'),
    [
        pytest.param(DECODER, Lora(rank=4), id='decoder'),
        pytest.param(ENCODER_DECODER, Dora(rank=2), id='encoder-decoder', marks=pytest.mark.slow),
    ],
)
def test_the_base_is_half_as_large_and_the_run_is_close(config, settings):
    state, losses, before = run(config, settings, 'bfloat16')
    full, full_losses, full_before = run(config, settings, 'float32')
    np.testing.assert_allclose(losses, full_losses, rtol=1e-2)
    assert losses[-1] < losses[0]
    bytes_of = lambda arrays: sum(x.nbytes for x in arrays.values())
    assert bytes_of(before) * 2 == bytes_of(full_before)
    after = named_parameters(state.model)
    for name, x in before.items():
        assert x.dtype == jnp.bfloat16
        np.testing.assert_array_equal(x.astype(np.float32), np.asarray(after[name], np.float32), err_msg=name)
        np.testing.assert_array_equal(x, full_before[name].astype(jnp.bfloat16), err_msg=name)
    trained = [*adapters.adapter_arrays(state.model).values(), *jax.tree.leaves(state.opt_state)]
    assert all(x.dtype != jnp.bfloat16 for x in trained)
    for x, y in zip(jax.tree.leaves(state.opt_state), jax.tree.leaves(full.opt_state), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
    merged = jax.eval_shape(adapters.merge, state.model)
    adapted = {name.replace('lora_a', 'kernel') for name in after if name.endswith('lora_a')}
    assert all(named_parameters(merged)[name].dtype == jnp.float32 for name in adapted) and adapted


def test_a_run_without_an_adapter_keeps_float32():
    with pytest.raises(UserError, match='RunConfig.base_dtype without RunConfig.adapter=.*bfloat16') as error:
        RunConfig(steps=1, base_dtype='bfloat16')
    assert '\n' not in str(error.value)
    with pytest.raises(UserError, match='RunConfig.base_dtype=.*float16'):
        RunConfig(steps=1, base_dtype='float16', adapter=Lora())
