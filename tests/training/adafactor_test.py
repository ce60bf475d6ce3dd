"""Adafactor is T5X's, and a stack of layers is updated as its layers would be alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5flan.errors import UserError
from t5flan.training.adafactor import adafactor, axis_groups, moment_axes
from t5flan.training.config import OptimizerConfig

RATE = lambda step: 0.01 / (1.0 + step)


def run(parameters, gradients, axes, **settings):
    """Parameters after one update for each tree of gradients, and the last state."""
    return jitted_run(axes, tuple(settings.items()))(parameters, gradients)


@functools.cache
def jitted_run(axes, settings):
    optimizer = adafactor(OptimizerConfig(**dict(settings)), RATE, axes)

    @jax.jit
    def run_all(parameters, gradients):
        state = optimizer.init(parameters)
        for one in gradients:
            updates, state = optimizer.update(one, state, parameters)
            parameters = optax.apply_updates(parameters, updates)
        return parameters, state

    return run_all


def normal(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def test_updates_are_t5x(shared):
    recorded = np.load(shared / 'fixtures' / 't5x' / 'adafactor_t5x.npz')
    names = [name.removeprefix('param/') for name in recorded.files if name.startswith('param/')]
    parameters = {name: jnp.asarray(recorded[f'param/{name}']) for name in names}
    axes = {name: tuple(map(str, recorded[f'axes/{name}'])) for name in names}
    rates = jnp.asarray([recorded[f'lr/{i}'] for i in range(5)])
    optimizer = adafactor(OptimizerConfig(), lambda step: rates[step], axes)
    state = optimizer.init(parameters)
    assert set(state.moments['embedding']) == {'v_row', 'v_col'} and set(state.moments['rel_embedding']) == {'v'}
    update = jax.jit(optimizer.update)
    for step in range(5):
        updates, state = update({name: recorded[f'grad/{step}/{name}'] for name in names}, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        for name in names if step in (0, 1, 4) else ():
            np.testing.assert_allclose(parameters[name], recorded[f'after/{step + 1}/{name}'], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('settings', [{}, {'b1': 0.9}, {'factored': False}])
@pytest.mark.parametrize(
    'shape, axes',
    [
        ((16, 4, 8), ('embed', 'heads', 'kv')),
        ((4, 8, 16), ('heads', 'kv', 'embed')),
        ((16, 24), ('embed', 'mlp')),
        ((16,), ('embed',)),
        ((4, 32), ('heads', 'relpos_buckets')),
    ],
)
def test_a_stack_is_updated_exactly_as_its_layers(shape, axes, settings):
    layers, settings = 3, {'min_dim_to_factor': 12} | settings
    # Layers of unlike sizes: one clipping or one scale over all of them would show.
    sizes = jnp.asarray([1e-4, 1.0, 30.0]).reshape((layers,) + (1,) * len(shape))
    stacked = sizes * normal((layers, *shape), 0)
    gradients = [sizes[::-1] * normal((layers, *shape), seed) for seed in (1, 2, 3)]
    together, _ = run(stacked, gradients, ('layers', *axes), **settings)
    for layer in range(layers):
        expected, _ = run(stacked[layer], [gradient[layer] for gradient in gradients], axes, **settings)
        # Not bit for bit: the compiler may sum a stack's means in another order.
        np.testing.assert_allclose(together[layer], expected, rtol=2e-6, atol=1e-9)


def test_heads_and_kv_are_joined():
    """[embed, heads, kv] is updated as the matrix [embed, heads * kv], including the rule of the smallest size."""
    parameter, gradient = normal((16, 4, 8), 0), normal((16, 4, 8), 1)
    joined = parameter.reshape(16, 32)
    for least in (16, 17):
        apart, state = run(parameter, [gradient], ('embed', 'heads', 'kv'), min_dim_to_factor=least)
        expected, _ = run(joined, [gradient.reshape(16, 32)], ('embed', 'joined_kv'), min_dim_to_factor=least)
        np.testing.assert_allclose(apart.reshape(16, 32), expected, rtol=1e-6, atol=1e-7)  # parameters are about 1
        assert ('v' in state.moments) == (least == 17)


def test_a_wide_matrix_is_updated_as_its_transpose():
    """Its column means are computed in a different way on a CPU."""
    parameter, gradient = normal((16, 5000), 0), normal((16, 5000), 1)
    wide, _ = run(parameter, [gradient], ('embed', 'vocab'), min_dim_to_factor=16)
    high, _ = run(parameter.T, [gradient.T], ('vocab', 'embed'), min_dim_to_factor=16)
    np.testing.assert_allclose(wide, high.T, rtol=1e-6, atol=1e-7)


def test_a_small_gradient_is_not_clipped_and_a_large_one_is():
    parameter, quiet, loud = jnp.ones((4,)), jnp.full((4,), 1e-3), jnp.full((4,), 1.0)
    after, _ = run(parameter, [quiet, loud], ('embed',), decay_rate=0.8)
    second_moment = (1 - 2**-0.8) * 1e-6 + 2**-0.8  # the update is 1 / sqrt of this, above 1, and clipped to 1
    assert second_moment < 1
    np.testing.assert_allclose(after, (1 - 0.01) * (1 - 0.005), rtol=1e-6)
    unclipped, _ = run(parameter, [quiet, loud], ('embed',), clipping_threshold=None)
    np.testing.assert_allclose(unclipped, 0.99 * (1 - 0.005 * second_moment**-0.5), rtol=1e-6)


def test_a_parameter_of_zeros_can_grow():
    after, _ = run(jnp.zeros((4,)), [jnp.ones((4,))], ('embed',))
    np.testing.assert_allclose(after, -0.01 * 1e-3, rtol=1e-5)


def test_step_offset_restarts_the_second_moment():
    first, second = normal((8,), 1), normal((8,), 2)
    _, state = run(normal((8,), 0), [first, second], ('embed',), step_offset=1)
    np.testing.assert_allclose(state.moments['v'], second**2, rtol=1e-6)


def test_groups_and_moment_axes():
    groups = axis_groups(('layers', 'heads', 'kv', 'embed'))
    assert groups.rows == (3,) and groups.columns == (1, 2) and groups.within_layer == (1, 2, 3)
    assert moment_axes(('layers', 'heads', 'kv', 'embed'), 'v_row') == ('layers', 'embed')
    assert moment_axes(('layers', 'heads', 'kv', 'embed'), 'v_col') == ('layers', 'heads', 'kv')
    assert moment_axes(('vocab', 'embed'), 'm') == ('vocab', 'embed')
    with pytest.raises(UserError, match="'length'"):
        axis_groups(('embed', 'length'))
