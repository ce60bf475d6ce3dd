"""Schedules, AdamW, decay, clipping and freezing, on parameters small enough to follow by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5flan.errors import UserError
from t5flan.models.parameters import named_parameters, path_name
from t5flan.training.config import OptimizerConfig
from t5flan.training.optimizer import make_optimizer, make_schedule, state_axes, with_parameters

MODEL = {
    'encoder': {'layers': {'mlp': {'wi': {'kernel': jnp.ones((2, 160, 130))}}, 'norm': {'scale': jnp.ones((2, 160))}}},
    'token_embedder': {'embedding': jnp.full((140, 160), 2.0)},
}
AXES = {
    'encoder': {
        'layers': {'mlp': {'wi': {'kernel': ('layers', 'embed', 'mlp')}}, 'norm': {'scale': ('layers', 'embed')}}
    },
    'token_embedder': {'embedding': ('vocab', 'embed')},
}
GRADIENTS = jax.tree.map(lambda x: jnp.full_like(x, 0.5), MODEL)


def updated(config: OptimizerConfig, steps: int = 1):
    """The model after a number of updates by the same gradients."""
    optimizer = make_optimizer(config, AXES, 100)

    @jax.jit
    def run(model):
        state = optimizer.init(model)
        gradients = optimizer.trained_parameters(GRADIENTS)
        for _ in range(steps):
            parameters = optimizer.trained_parameters(model)
            updates, state = optimizer.transformation.update(gradients, state, parameters)
            model = with_parameters(model, optax.apply_updates(parameters, updates))
        return model

    return run(MODEL)


def rates(steps, **settings):
    schedule = make_schedule(OptimizerConfig(**settings), total_steps=100)
    return [float(schedule(step)) for step in steps]


def test_constant_warms_up_and_stays():
    np.testing.assert_allclose(rates([0, 1, 3, 4, 50], learning_rate=2.0, warmup_steps=4), [0.5, 1.0, 2.0, 2.0, 2.0])
    assert rates([0, 99], learning_rate=2.0) == [2.0, 2.0]


def test_rsqrt_is_t5():
    """T5's recipe, base 1 and warm-up 10,000: 0.01 for 10,000 steps, then 1 / sqrt(step)."""
    given = rates([0, 9_999, 10_000, 40_000], learning_rate=1.0, schedule='rsqrt', warmup_steps=10_000)
    np.testing.assert_allclose(given, [0.01, 0.01, 0.01, 0.005], rtol=1e-6)
    np.testing.assert_allclose(rates([0, 1, 4], learning_rate=1.0, schedule='rsqrt'), [1.0, 1.0, 0.5], rtol=1e-6)


def test_linear_and_cosine_decay_to_their_final_ratio():
    settings = dict(learning_rate=1.0, warmup_steps=20, final_ratio=0.2)
    np.testing.assert_allclose(
        rates([9, 20, 60, 100, 500], schedule='linear', **settings), [0.5, 1, 0.6, 0.2, 0.2], rtol=1e-6
    )
    quarter = 0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2
    np.testing.assert_allclose(
        rates([9, 40, 60, 100, 500], schedule='cosine', **settings), [0.5, quarter, 0.6, 0.2, 0.2], rtol=1e-6
    )
    np.testing.assert_allclose(rates([30, 50], learning_rate=1.0, schedule='linear', decay_steps=40), [0.25, 0.0])


def test_a_schedule_that_ends_within_its_warmup_is_refused():
    with pytest.raises(UserError, match='OptimizerConfig.warmup_steps'):
        make_schedule(OptimizerConfig(schedule='cosine', warmup_steps=100), total_steps=100)


def test_adamw_is_optax():
    config = OptimizerConfig(name='adamw', learning_rate=0.01, b1=0.8, b2=0.95, weight_decay=0.1)
    optimizer = optax.adamw(0.01, 0.8, 0.95, weight_decay=0.1)
    state, expected = optimizer.init(MODEL), MODEL
    for _ in range(3):
        updates, state = optimizer.update(GRADIENTS, state, expected)
        expected = optax.apply_updates(expected, updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updated(config, 3), expected)


def test_weight_decay_is_palms_with_exponent_two_and_skips_no_weight_decay():
    settings = dict(learning_rate=0.1, schedule='constant')
    plain = updated(OptimizerConfig(**settings))
    decayed = updated(
        OptimizerConfig(weight_decay=1.0, weight_decay_lr_exponent=2.0, no_weight_decay=('.*/scale',), **settings)
    )
    taken = jax.tree.map(lambda a, b: float(jnp.mean(a - b)), plain, decayed)
    np.testing.assert_allclose(taken['token_embedder']['embedding'], 0.01 * 2.0, rtol=1e-4)
    np.testing.assert_allclose(taken['encoder']['layers']['mlp']['wi']['kernel'], 0.01, rtol=1e-4)
    assert taken['encoder']['layers']['norm']['scale'] == 0


def test_gradients_are_clipped_by_their_global_norm_before_the_optimizer():
    norm = float(optax.global_norm(GRADIENTS))

    def second_moment(clip):
        optimizer = make_optimizer(OptimizerConfig(clip_by_global_norm=clip), AXES, 100)
        _, state = optimizer.transformation.update(GRADIENTS, optimizer.init(MODEL), MODEL)
        return next(leaf for name, leaf in named_parameters(state).items() if name.endswith('scale/v'))

    np.testing.assert_allclose(second_moment(norm / 10), second_moment(None) / 100, rtol=1e-5)
    np.testing.assert_array_equal(second_moment(norm * 10), second_moment(None))


def test_frozen_parameters_are_not_in_the_optimizer_and_do_not_move():
    config = OptimizerConfig(freeze=('encoder/.*',), weight_decay=0.1)
    optimizer = make_optimizer(config, AXES, 100)
    assert optimizer.trained == {'token_embedder/embedding'}
    assert not [name for name in named_parameters(optimizer.init(MODEL)) if 'encoder' in name.split('/')]
    after = updated(config)
    jax.tree.map(np.testing.assert_array_equal, after['encoder'], MODEL['encoder'])
    assert np.all(after['token_embedder']['embedding'] != 2.0)


@pytest.mark.parametrize('field', ['freeze', 'no_weight_decay'])
def test_a_pattern_that_matches_nothing_is_answered_with_the_nearest_names(field):
    with pytest.raises(UserError, match=f'OptimizerConfig.{field} contains .encodr/.*nearest are encoder/') as error:
        make_optimizer(OptimizerConfig(**{field: ('token_embedder/.*', 'encodr/.*')}), AXES, 100)
    assert '\n' not in str(error.value)


def test_freezing_everything_is_refused():
    with pytest.raises(UserError, match=r'OptimizerConfig.freeze=\[.*every parameter'):
        make_optimizer(OptimizerConfig(freeze=('.*',)), AXES, 100)


@pytest.mark.parametrize(
    'config',
    [
        OptimizerConfig(),
        OptimizerConfig(b1=0.9, factored=False),
        OptimizerConfig(name='adamw', clip_by_global_norm=1.0),
        OptimizerConfig(weight_decay=0.1, freeze=('encoder/.*',)),
    ],
)
def test_every_array_of_the_state_has_the_axes_of_its_parameter(config):
    state = jax.eval_shape(make_optimizer(config, AXES, 100).init, MODEL)
    axes = state_axes(state, AXES)
    sizes = {'layers': 2, 'embed': 160, 'mlp': 130, 'vocab': 140}
    jax.tree.map(lambda x, names: np.testing.assert_equal(x.shape, tuple(sizes[name] for name in names)), state, axes)


def test_factored_moments_drop_the_axes_they_average_over():
    state = jax.eval_shape(make_optimizer(OptimizerConfig(), AXES, 100).init, MODEL)
    leaves = jax.tree_util.tree_leaves_with_path(
        state_axes(state, AXES),
        is_leaf=lambda x: isinstance(x, tuple) and all(isinstance(name, str) for name in x) and x != (),
    )
    axes = {'/'.join(path_name(path).split('/')[2:]): names for path, names in leaves}
    assert axes['encoder/layers/mlp/wi/kernel/v_row'] == ('layers', 'embed')
    assert axes['encoder/layers/mlp/wi/kernel/v_col'] == ('layers', 'mlp')
    assert axes['encoder/layers/norm/scale/v'] == ('layers', 'embed')
    assert axes['token_embedder/embedding/v_col'] == ('vocab',)
