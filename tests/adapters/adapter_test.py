"""t5flan/adapters: a new adapter changes no output, trains alone, and merges into the kernels without a difference."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5flan.adapters import adapter as adapters
from t5flan.adapters.methods.dora import Dora
from t5flan.adapters.methods.ia3 import Ia3
from t5flan.adapters.methods.lora import Lora
from t5flan.adapters.methods.prefix_tuning import PrefixTuning
from t5flan.adapters.methods.prompt_tuning import PromptTuning
from t5flan.errors import UserError
from t5flan.models.build import build_model
from t5flan.models.config import ModelConfig
from t5flan.models.parameters import logical_axes, named_parameters, parameter_count
from t5flan.training.config import LossConfig, OptimizerConfig
from t5flan.training.optimizer import make_optimizer
from t5flan.training.state import create_state
from t5flan.training.step import make_train_step

SIZES = dict(vocab_size=64, emb_dim=32, num_heads=4, head_dim=8, mlp_dim=48, num_decoder_layers=2, dtype='float32')
ENCODER_DECODER = ModelConfig(architecture='encoder_decoder', num_encoder_layers=2, **SIZES)
DECODER = ModelConfig(
    architecture='decoder_only', position='rope', num_kv_heads=2, tie_embeddings=True, scale_attention=True, **SIZES
)
EVERY_KERNEL = ('.*/kernel',)
METHODS = {
    'lora': Lora(rank=4),
    'lora everywhere': Lora(
        rank=3, rslora=True, targets=EVERY_KERNEL, rank_pattern={'.*/wo/kernel': 5}, alpha_pattern={'.*/out/kernel': 2}
    ),
}
METHODS |= {'dora': Dora(rank=3, targets=['.*attention/out/kernel', '.*/wi_0/kernel']), 'ia3': Ia3()}
both_models = pytest.mark.parametrize('config', [ENCODER_DECODER, DECODER], ids=['encoder-decoder', 'decoder'])


def _quick_lora(methods):
    """All methods as parameters, of which only LoRA is in the quick suite."""
    slow = {True: (), False: pytest.mark.slow}
    return [pytest.param(settings, id=name, marks=slow[name == 'lora']) for name, settings in methods.items()]


TRAINED = {name: METHODS[name] for name in ('lora', 'dora', 'ia3')}
trained_methods = pytest.mark.parametrize('settings', _quick_lora(TRAINED))
every_method = pytest.mark.parametrize('settings', METHODS.values(), ids=METHODS.keys())
lora_quickly = pytest.mark.parametrize('settings', _quick_lora(METHODS))


def make_batch(config: ModelConfig, seed: int = 0) -> dict[str, jax.Array]:
    rng = np.random.default_rng(seed)
    names = ['decoder_input_tokens', 'decoder_target_tokens']
    names += ['encoder_input_tokens'] * (config.architecture == 'encoder_decoder')
    return {name: jnp.asarray(rng.integers(2, config.vocab_size, (4, 10)), jnp.int32) for name in names}


def base_model(config: ModelConfig):
    return jax.jit(lambda: build_model(config, jax.random.key(0)))()


def moved(model):
    """The model with random numbers added to its adapter, as after training."""
    arrays = adapters.adapter_arrays(model)
    keys = jax.random.split(jax.random.key(5), len(arrays))
    return adapters.with_arrays(
        model, {name: x + 0.1 * jax.random.normal(k, x.shape) for (name, x), k in zip(arrays.items(), keys)}
    )


def trained(config: ModelConfig, settings, steps: int = 3):
    """(the base, the state after some steps, the optimizer)."""
    base = base_model(config)
    model = adapters.apply(base, settings, jax.random.key(1))
    optimizer_config = OptimizerConfig(name='adamw', learning_rate=1e-2)
    optimizer = make_optimizer(optimizer_config, logical_axes(model), steps, adapters.base_names(config))
    step = jax.jit(make_train_step(optimizer_config, LossConfig(), optimizer, seed=0))
    state = create_state(model, optimizer)
    for _ in range(steps):
        state, _ = step(state, make_batch(config))
    return base, state, optimizer


@every_method
@both_models
def test_a_new_adapter_leaves_the_outputs_unchanged(config, settings):
    base = base_model(config)
    model = adapters.apply(base, settings, jax.random.key(1))
    batch = make_batch(config)
    before, after = (np.asarray(jax.jit(lambda m: m(batch))(m)) for m in (base, model))
    tolerance = 1e-6 * np.abs(before).max() if isinstance(settings, Dora) else 0  # it divides lengths by themselves
    np.testing.assert_allclose(after, before, atol=tolerance, rtol=0)
    assert adapters.adapter_arrays(model) and not adapters.adapter_arrays(base)


@trained_methods
@both_models
def test_only_the_adapter_is_trained(config, settings):
    base, state, _ = trained(config, settings)
    after = named_parameters(state.model)
    for name, before in named_parameters(base).items():
        np.testing.assert_array_equal(before, after[name], err_msg=name)
    new = adapters.adapter_arrays(adapters.apply(base, settings, jax.random.key(1)))
    assert all(np.any(np.asarray(after[name]) != np.asarray(x)) for name, x in new.items()), 'a part was not trained'
    moments = parameter_count(state.opt_state)
    assert moments <= 2 * parameter_count(new) + 2, 'the optimizer holds more than the moments of the adapter'


@pytest.mark.slow
@pytest.mark.parametrize('settings', [PromptTuning(tokens=3), PrefixTuning(tokens=3)], ids=['prompt', 'prefix'])
def test_a_prompt_or_prefix_is_trained_alone(settings):
    base, state, _ = trained(ENCODER_DECODER, settings)
    after = named_parameters(state.model)
    for name, before in named_parameters(base).items():
        np.testing.assert_array_equal(before, after[name], err_msg=name)
    new = adapters.adapter_arrays(adapters.apply(base, settings, jax.random.key(1)))
    assert len(new) == 1 and all(np.all(np.asarray(after[name]) != np.asarray(x)) for name, x in new.items())
    with pytest.raises(UserError, match='needs an encoder-decoder, but the model is decoder_only'):
        adapters.apply(base_model(DECODER), settings, jax.random.key(1))


@pytest.mark.parametrize('settings', [PromptTuning(tokens=3), PrefixTuning(tokens=3)], ids=['prompt', 'prefix'])
def test_decoding_reads_the_prompt_or_prefix_as_a_forward_pass_does(settings):
    model = adapters.apply(base_model(ENCODER_DECODER), settings, jax.random.key(1))
    batch = make_batch(ENCODER_DECODER)
    tokens_BT = batch['decoder_input_tokens'].at[:, 0].set(0)
    expected = jax.jit(lambda model: model(batch | {'decoder_input_tokens': tokens_BT}))(model)

    @jax.jit
    def decode(model):
        logits, cache = model.start_cache(batch['encoder_input_tokens'], 4)
        found = [logits]
        for t in range(1, 4):
            logits, cache = model.decode_step(cache, tokens_BT[:, t : t + 1])
            found.append(logits)
        return jnp.stack(found, axis=1)

    np.testing.assert_allclose(decode(model), expected[:, :4], atol=1e-4)


@lora_quickly
@both_models
def test_merged_equals_unmerged(config, settings):
    model = moved(adapters.apply(base_model(config), settings, jax.random.key(1)))
    batch = make_batch(config)
    adapted, plain = jax.jit(lambda m: m(batch))(model), jax.jit(lambda m: m(batch))(adapters.merge(model))
    assert np.abs(np.asarray(adapted) - np.asarray(jax.jit(lambda m: m(batch))(base_model(config)))).max() > 0.01
    np.testing.assert_allclose(adapted, plain, atol=1e-5 * np.abs(adapted).max(), rtol=0)


@pytest.mark.slow
@trained_methods
def test_scanned_equals_unrolled(settings):
    _, scanned, _ = trained(DECODER, settings)
    _, unrolled, _ = trained(dataclasses.replace(DECODER, scan_layers=False), settings)
    unrolled_arrays = adapters.adapter_arrays(unrolled.model)
    for name, x in adapters.adapter_arrays(scanned.model).items():
        np.testing.assert_allclose(x, unrolled_arrays[name], atol=1e-5, err_msg=name)


@pytest.mark.slow
@both_models
def test_a_step_of_lora_computes_no_gradient_of_the_base(config):
    """A full step takes about three times the forward pass; without gradients of the kernels, about two."""

    def flops(trained_settings) -> float:
        unrolled = dataclasses.replace(config, scan_layers=False, remat='none', mlp_dim=512, vocab_size=1024)
        model = build_model(unrolled, jax.random.key(0))
        frozen = frozenset()
        if trained_settings is not None:
            model = adapters.apply(model, trained_settings, jax.random.key(1))
            frozen = adapters.base_names(unrolled)
        optimizer_config = OptimizerConfig(name='adamw')
        optimizer = make_optimizer(optimizer_config, logical_axes(model), 1, frozen)
        step = jax.jit(make_train_step(optimizer_config, LossConfig(chunk_tokens=10_000), optimizer, seed=0))
        return step.lower(create_state(model, optimizer), make_batch(config)).compile().cost_analysis()['flops']

    assert flops(Lora(rank=2)) < 0.72 * flops(None)


def test_a_fingerprint_depends_on_every_bit_and_its_place():
    model = base_model(DECODER)
    name = 'decoder/layers/mlp/wo/kernel'
    arrays = dict(named_parameters(model))
    changed = {
        'one bit': arrays[name].at[1, 2, 3].set(np.nextafter(arrays[name][1, 2, 3], 2)),
        'two numbers swapped': arrays[name].at[0, 0, :2].set(arrays[name][0, 0, 1::-1]),
    }
    known = adapters.fingerprint(model)
    assert known == adapters.fingerprint(base_model(DECODER))
    for what, array in changed.items():
        leaves = [array if path == name else leaf for path, leaf in arrays.items()]
        assert adapters.fingerprint(jax.tree.unflatten(jax.tree.structure(model), leaves)) != known, what


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        (dict(targets=['.*attention/q/kernel']), 'Lora.targets contains .* nearest are .*attention/.*/kernel'),
        (dict(rank=33), r'Lora.rank=33, but .* is a matrix of 32 x 32, expected a rank of 32 or less'),
        (dict(rank=0), 'Lora.rank=0, expected an integer of 1 or more'),
        (dict(alpha=0), 'Lora.alpha=0, expected a number above 0'),
        (dict(rank_pattern={'(': 2}), 'not a regular expression'),
    ],
)
def test_wrong_settings_are_one_clear_line(settings, words):
    with pytest.raises(UserError, match=words) as error:
        adapters.apply(base_model(ENCODER_DECODER), Lora(**settings), jax.random.key(0))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('settings', [PromptTuning(tokens=3), PrefixTuning(tokens=3)], ids=['prompt', 'prefix'])
def test_a_prompt_or_prefix_of_a_decoder_is_refused(settings):
    with pytest.raises(
        UserError, match=f'{type(settings).__name__} needs an encoder-decoder, but the model is decoder'
    ):
        adapters.apply(base_model(DECODER), settings, jax.random.key(0))
