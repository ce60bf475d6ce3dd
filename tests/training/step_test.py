"""A step has the same numbers in microbatches, on any mesh and after a restart; frozen parameters never change."""

import contextlib
import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from t5flan import sharding as sharding_lib
from t5flan.data.config import DataConfig
from t5flan.errors import UserError
from t5flan.mesh import MeshConfig
from t5flan.models.build import abstract_model, build_model
from t5flan.models.config import ModelConfig
from t5flan.models.parameters import logical_axes, named_parameters
from t5flan.training import step as step_lib
from t5flan.training.config import LossConfig, OptimizerConfig, RunConfig
from t5flan.training.optimizer import make_optimizer, state_axes
from t5flan.training.state import TrainState, create_state
from t5flan.training.step import loss_weights, make_eval_step, make_train_step
from tests.training.examples import DECODER, ENCODER_DECODER, make_batch, make_model

MODELS = {'encoder_decoder': ENCODER_DECODER, 'decoder': DECODER}
ADAFACTOR = OptimizerConfig(learning_rate=0.03, min_dim_to_factor=16)
LOSS = LossConfig()


@functools.cache
def made(config: ModelConfig, settings: OptimizerConfig, loss: LossConfig = LOSS, seed: int = 0):
    """(a new state, the jitted step) on one device."""
    optimizer = make_optimizer(settings, logical_axes(make_model(config)), 100)
    return create_state(make_model(config), optimizer), jax.jit(make_train_step(settings, loss, optimizer, seed))


def assert_trees_close(given, expected, rtol, atol):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), given, expected)


@pytest.mark.parametrize('name', MODELS)
def test_the_loss_falls_and_the_metrics_are_those_of_the_evaluation_step(name):
    config = MODELS[name]
    state, step = made(config, ADAFACTOR)
    batch = make_batch(config)
    sums = jax.jit(make_eval_step(LossConfig()))(state.model, batch)
    losses = []
    for _ in range(6):
        state, metrics = step(state, batch)
        losses.append(float(metrics['loss']))
        assert all(value.shape == () and value.dtype == jnp.float32 for value in metrics.values())
    assert losses[-1] < 0.8 * losses[0]
    np.testing.assert_allclose(losses[0], sums['loss'] / sums['tokens'], rtol=1e-5)
    assert sums['tokens'] == batch['decoder_loss_weights'].sum() and int(state.step) == 6
    np.testing.assert_allclose(metrics['learning_rate'], 0.03)


@pytest.mark.parametrize(
    'config, parts, normalize',
    [(DECODER, 2, True), pytest.param(ENCODER_DECODER, 8, False, marks=pytest.mark.slow)],
    ids=['decoder', 'encoder_decoder'],
)
def test_microbatches_equal_the_whole_batch(config, parts, normalize):
    """The mean is over the batch, not a mean of means, also with unequal weights."""
    settings = OptimizerConfig(name='adamw', learning_rate=0.01, clip_by_global_norm=0.5, epsilon=1e-3)
    loss, batch = LossConfig(normalize=normalize), make_batch(config)
    batch['decoder_loss_weights'][::2] *= 0.1
    state, whole = made(config, settings, loss)
    _, by_parts = made(config, dataclasses.replace(settings, microbatches=parts), loss)
    expected, metrics = whole(state, batch)
    given, given_metrics = by_parts(state, batch)
    assert_trees_close(given_metrics, metrics, 1e-5, 1e-6)
    assert_trees_close(given.model, expected.model, 1e-5, 1e-6)


def test_microbatches_that_do_not_divide_are_refused():
    state, step = made(ENCODER_DECODER, OptimizerConfig(microbatches=3))
    with pytest.raises(UserError, match='OptimizerConfig.microbatches=3 does not divide the batch of 8 rows'):
        jax.eval_shape(step, state, make_batch(ENCODER_DECODER))


def test_dropout_is_folded_from_seed_and_step_and_microbatch():
    config = dataclasses.replace(DECODER, dropout_rate=0.3)
    settings = OptimizerConfig(learning_rate=0.0, microbatches=2)  # the parameters do not move
    alone = {name: x[:4] for name, x in make_batch(DECODER).items()}
    twice = {name: np.repeat(x, 2, axis=0) for name, x in alone.items()}  # both microbatches have the same rows
    state, step = made(config, settings)
    after, first = step(state, twice)
    assert step(state, twice)[1]['loss'] == first['loss']
    assert step(after, twice)[1]['loss'] != first['loss']
    program = lambda seed: made(config, settings, seed=seed)[1].lower(state, twice).as_text()
    assert program(0) != program(1)
    single = made(config, dataclasses.replace(settings, microbatches=1))[1](state, alone)[1]
    assert single['loss'] != first['loss']  # they would be equal if both microbatches had the same dropout


def test_frozen_parameters_stay_bit_for_bit_and_cost_nothing():
    settings = dataclasses.replace(ADAFACTOR, weight_decay=0.1, freeze=('encoder/.*', 'token_embedder/.*'))
    batch = make_batch(ENCODER_DECODER)
    before, step = made(ENCODER_DECODER, settings)
    state = before
    for _ in range(2):
        state, _ = step(state, batch)
    new = named_parameters(state.model)
    for path, old in named_parameters(before.model).items():
        frozen = path.startswith(('encoder/', 'token_embedder/'))
        assert np.array_equal(old, new[path]) == frozen, path
    flops = lambda state, step: step.lower(state, batch).cost_analysis()['flops']
    assert flops(before, step) < 0.8 * flops(*made(ENCODER_DECODER, ADAFACTOR))


def test_a_batch_of_padding_changes_nothing_into_nan():
    state, step = made(ENCODER_DECODER, ADAFACTOR)
    state, metrics = step(state, jax.tree.map(np.zeros_like, make_batch(ENCODER_DECODER)))
    assert metrics['loss'] == 0 and metrics['tokens'] == 0
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(state))


def test_targets_without_weights_count_unless_they_are_padding():
    batch = {'decoder_target_tokens': np.array([[5, 1, 0], [7, 8, 9]])}
    np.testing.assert_array_equal(loss_weights(batch), [[1, 1, 0], [1, 1, 1]])
    given = loss_weights(batch | {'decoder_loss_weights': np.array([[0, 1, 0], [2, 0, 0]])})
    np.testing.assert_array_equal(given, [[0, 1, 0], [2, 0, 0]])
    assert given.dtype == jnp.float32


def test_the_state_has_its_shapes_without_values():
    optimizer = make_optimizer(ADAFACTOR, logical_axes(abstract_model(ENCODER_DECODER)), 100)
    abstract = jax.eval_shape(lambda model: create_state(model, optimizer), abstract_model(ENCODER_DECODER))
    step = make_train_step(ADAFACTOR, LossConfig(), optimizer, 0)
    state, _ = jax.eval_shape(step, abstract, make_batch(ENCODER_DECODER))
    assert jax.tree.structure(state) == jax.tree.structure(abstract)
    shapes = lambda tree: [(x.shape, x.dtype) for x in jax.tree.leaves(tree)]
    assert shapes(state) == shapes(abstract) == shapes(made(ENCODER_DECODER, ADAFACTOR)[0])
    assert state.step.shape == () and state.step.dtype == jnp.int32


def test_without_flax_graph_mode():
    """Flax's next default, under which modules are plain trees, compiles to the same program."""

    def program():
        optimizer = make_optimizer(ADAFACTOR, logical_axes(abstract_model(ENCODER_DECODER)), 100)
        state = jax.eval_shape(lambda: create_state(build_model(ENCODER_DECODER, jax.random.key(1)), optimizer))
        step = make_train_step(ADAFACTOR, LossConfig(), optimizer, 0)
        return jax.jit(step).lower(state, make_batch(ENCODER_DECODER)).as_text()

    expected = program()
    with nnx.set_graph_mode(False):
        assert program() == expected


TILED = dict(attention='chunked', remat='minimal')


slow = functools.partial(pytest.param, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    'config, mesh',
    [
        slow(ENCODER_DECODER, MeshConfig(data=8), id='data'),
        slow(ENCODER_DECODER, MeshConfig(data=1, fsdp=8), id='fsdp'),
        slow(ENCODER_DECODER, MeshConfig(data=2, tensor=4), id='tensor'),
        slow(ENCODER_DECODER, MeshConfig(data=2, fsdp=2, tensor=2), id='data, fsdp and tensor'),
        slow(ENCODER_DECODER, MeshConfig(data=2, context=2, tensor=2), id='data, context and tensor'),
        pytest.param(ENCODER_DECODER, MeshConfig(fsdp=2, context=2, tensor=2), id='fsdp, context and tensor'),
        slow(
            dataclasses.replace(ENCODER_DECODER, **TILED), MeshConfig(data=2, fsdp=2, context=2), id='context and fsdp'
        ),
        slow(dataclasses.replace(DECODER, **TILED), MeshConfig(data=2, context=2, tensor=2), id='context of a decoder'),
    ],
)
def test_eight_devices_compute_the_numbers_of_one(config, mesh):
    settings = dataclasses.replace(ADAFACTOR, clip_by_global_norm=1.0)
    batches = [make_batch(config, seed, rows=16) for seed in range(3)]
    loss = LossConfig(chunk_tokens=48)  # two chunks of each half of a row that is split
    state, step = made(config, settings, loss)
    expected = []
    for batch in batches:
        state, metrics = step(state, batch)
        expected.append(metrics)

    settings = dataclasses.replace(settings, microbatches=2)
    with sharding_lib.use(sharding_lib.create_sharding(mesh)) as sharding:
        axes = logical_axes(make_model(config))
        optimizer = make_optimizer(settings, axes, 100)
        fresh = create_state(make_model(config), optimizer)
        places = TrainState(
            sharding.replicated(),
            sharding_lib.tree_shardings(sharding, fresh.model, axes),
            sharding_lib.tree_shardings(sharding, fresh.opt_state, state_axes(fresh.opt_state, axes)),
        )
        sharded = jax.device_put(fresh, places)
        step = jax.jit(make_train_step(settings, loss, optimizer, 0), out_shardings=(places, None))
        for batch, metrics in zip(batches, expected, strict=True):
            sharded, given = step(sharded, sharding_lib.put_batch(sharding, batch, 16))
            assert_trees_close(given, metrics, 2e-5, 1e-6)
    assert_trees_close(sharded.model, state.model, 1e-4, 1e-5)


@pytest.mark.slow
def test_memory_of_long_rows_falls_with_the_number_of_devices_that_share_them():
    """Each of four devices has a quarter of every row, gathers only segment ids, and exchanges rows for heads."""
    config = dataclasses.replace(ENCODER_DECODER, attention='chunked', dropout_rate=0.1, emb_dim=64, vocab_size=512)
    whole = (('embed', None),)  # parameters, which would be gathered too
    meshes = (MeshConfig(data=1, context=parts, rules=whole) for parts in (1, 4))
    alone, shared = (compiled_for_long_rows(config, mesh) for mesh in meshes)
    ratio = shared.memory_analysis().temp_size_in_bytes / alone.memory_analysis().temp_size_in_bytes
    assert ratio < 0.3
    collectives = set(
        re.findall(r'= (\S+?)(?:{.*?})? (all-gather|collective-permute|reduce-scatter)\(', shared.as_text())
    )
    assert collectives == {('s32[1,2048]', 'all-gather')}
    assert ' all-to-all(' in shared.as_text()


def compiled_for_long_rows(config, mesh):
    """The step of one packed row of 2,048 tokens in and 2,048 out."""
    with sharding_lib.use(sharding_lib.create_sharding(mesh, jax.devices()[: mesh.context])) as sharding:
        axes = logical_axes(abstract_model(config))
        optimizer = make_optimizer(ADAFACTOR, axes, 100)
        state = jax.eval_shape(lambda model: create_state(model, optimizer), abstract_model(config))
        state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.replicated()), state)
        names = [
            f'{side}_{name}' for side in ('encoder', 'decoder') for name in ('input_tokens', 'segment_ids', 'positions')
        ]
        tokens = jax.ShapeDtypeStruct((1, 2048), jnp.int32, sharding=sharding.named(('batch', 'length')))
        batch = dict.fromkeys([*names, 'decoder_target_tokens'], tokens)
        step = make_train_step(ADAFACTOR, LossConfig(chunk_tokens=1024), optimizer, 0)
        return jax.jit(step).lower(state, batch).compile()


def new_trainer() -> step_lib.Trainer:
    sharding = sharding_lib.create_sharding(MeshConfig())
    return step_lib.Trainer(ENCODER_DECODER, ADAFACTOR, LOSS, RunConfig(steps=1), sharding)


def test_the_batch_has_the_features_of_the_pipeline():
    data = DataConfig('practice', 8, {'targets': 32}, 'bytes', format='causal_lm')
    batch = step_lib.abstract_batch(data, sharding_lib.create_sharding(MeshConfig()))
    assert batch['decoder_target_tokens'].shape == (8, 32) and 'encoder_input_tokens' not in batch
    assert batch['decoder_loss_weights'].dtype == np.float32
    assert batch['decoder_target_tokens'].sharding.shard_shape((8, 32)) == (1, 32)


@pytest.mark.slow
def test_a_step_that_is_compiled_while_the_state_is_drawn_is_the_same():
    results = []
    for early in (False, True):
        trainer = new_trainer()
        batch = sharding_lib.put_batch(trainer.sharding, make_batch(ENCODER_DECODER, rows=8), 8)
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), batch)
        with trainer.compiling(shapes) if early else contextlib.nullcontext():
            state = trainer.new_state()
        assert isinstance(trainer.train_step, jax.stages.Compiled) == early
        assert 'HloModule' in trainer.compiled_text(batch)
        results.append(jax.device_get(trainer.train_step(state, batch)))
    jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.slow
def test_a_new_state_has_the_same_bits_at_both_levels_of_optimization(monkeypatch):
    """On a CPU the program that draws it is compiled at level 1, unless XLA_FLAGS names a level."""
    monkeypatch.setenv('XLA_FLAGS', '')
    assert (
        step_lib._once_options('cpu') == {'xla_backend_optimization_level': 1} and step_lib._once_options('tpu') is None
    )
    states = []
    for level in (1, 2):
        monkeypatch.setattr(step_lib, '_once_options', lambda _, level=level: {'xla_backend_optimization_level': level})
        states.append(jax.device_get(new_trainer().new_state()))
    jax.tree.map(np.testing.assert_array_equal, *states)
    monkeypatch.undo()
    monkeypatch.setenv('XLA_FLAGS', '--xla_backend_optimization_level=0')
    assert step_lib._once_options('cpu') is None
