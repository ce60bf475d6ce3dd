"""AdaLoRA: ranks are taken away as in PEFT until the target is left, and training resumes with the same bits."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from t5flan.adapters import adapter as adapters
from t5flan.adapters.methods.ada_lora import AdaLora
from t5flan.errors import UserError
from t5flan.models.parameters import named_parameters
from tests.adapters import properties
from tests.adapters.properties import DECODER, base_model

SETTINGS = AdaLora(init_rank=4, target_rank=2, tinit=1, tfinal=2, total_steps=8)
SIZES = {'one': (2, 6, 5), 'two': (1, 3, 7)}  # layers, inputs, outputs


def parameters_and_gradients(steps):
    """A, e and B of two kernels, and a gradient of each for every step."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    tree = lambda: {
        name: {'lora_a': draw(layers, inputs, 4), 'lora_b': draw(layers, 4, outputs), 'lora_e': draw(layers, 4)}
        for name, (layers, inputs, outputs) in SIZES.items()
    }
    return tree(), [tree() for _ in range(steps)]


def run(settings, steps):
    """The parameters after each step of plain gradient descent."""
    parameters, gradients = parameters_and_gradients(steps)
    optimizer = settings.wrap_optimizer(optax.sgd(0.1), steps)
    state, found = optimizer.init(parameters), []
    for gradient in gradients:
        updates, state = jax.jit(optimizer.update)(gradient, state, parameters)
        parameters = optax.apply_updates(parameters, updates)
        found.append(jax.device_get(parameters))
    return found


def left(parameters):
    return sum(np.count_nonzero(x) for name, x in named_parameters(parameters).items() if name.endswith('/lora_e'))


def test_ranks_are_taken_away_on_schedule_and_do_not_come_back():
    found = run(SETTINGS, 8)
    # 12 triplets, of which 6 stay: 6 + int(6 * (1 - (t - 1) / 5) ** 3) after step t
    assert [left(parameters) for parameters in found] == [12, 9, 7, 6, 6, 6, 6, 6]
    for name, x in named_parameters(found[5]).items():
        last = named_parameters(found[7])[name]
        np.testing.assert_array_equal((x == 0), (last == 0))
        assert np.any(x != last)
    every_third = run(dataclasses.replace(SETTINGS, delta_t=3), 8)
    assert [left(parameters) for parameters in every_third] == [12, 12, 7, 12, 12, 6, 6, 6], 'they come back between'


@pytest.mark.slow
@pytest.mark.parametrize('delta_t', [1, 2])
def test_the_same_ranks_are_taken_away_as_in_peft(delta_t):
    torch = pytest.importorskip('torch')
    layer = pytest.importorskip('peft.tuners.adalora.layer')
    parameters, gradients = parameters_and_gradients(8)
    module = torch.nn.Module()
    theirs = {}  # (our name, layer) -> their parameter
    for name, x in named_parameters(parameters).items():
        part = {'lora_a': 'lora_A', 'lora_b': 'lora_B', 'lora_e': 'lora_E'}[name.rpartition('/')[2]]
        for i in range(len(x)):
            value = torch.tensor(x[i][:, None] if part == 'lora_E' else x[i].T.copy())
            theirs[name, i] = torch.nn.Parameter(value)
            holder = module
            for step in (f'{name.partition("/")[0]}{i}', part):
                if not hasattr(holder, step):
                    holder.add_module(step, torch.nn.Module())
                holder = getattr(holder, step)
            holder.register_parameter('default', theirs[name, i])
    config = types.SimpleNamespace(beta1=0.85, beta2=0.85, target_r=2, tinit=1, tfinal=2, total_step=8, deltaT=delta_t)
    allocator = layer.RankAllocator(module, config, 'default')
    optimizer = torch.optim.SGD(theirs.values(), lr=0.1)
    found = run(dataclasses.replace(SETTINGS, delta_t=delta_t), 8)
    for t in range(1, 9):
        for (name, i), parameter in theirs.items():
            gradient = named_parameters(gradients[t - 1])[name][i]
            parameter.grad = torch.tensor(gradient[:, None] if gradient.ndim == 1 else gradient.T.copy())
        optimizer.step()
        if t <= 6:
            _, pattern = allocator.update_and_allocate(module, t, force_mask=t == 6)
        else:
            allocator.mask_using_rank_pattern(module, pattern)
        for (name, i), parameter in theirs.items():
            ours = named_parameters(found[t - 1])[name][i]
            expected = parameter.detach().numpy()
            np.testing.assert_allclose(ours, expected[:, 0] if ours.ndim == 1 else expected.T, atol=1e-5)


def test_the_penalty_is_the_distance_from_orthogonal_factors():
    settings = AdaLora(init_rank=3, target_rank=1, orth_reg_weight=0.25)
    model = properties.moved(adapters.apply(base_model(DECODER), settings, jax.random.key(1)))
    distances = []
    for name, x in adapters.adapter_arrays(model).items():
        for matrix in np.asarray(x):
            if name.endswith('lora_a'):
                distances.append(np.linalg.norm(matrix.T @ matrix - np.eye(3)))
            if name.endswith('lora_b'):
                matrix = matrix.reshape(3, -1)
                distances.append(np.linalg.norm(matrix @ matrix.T - np.eye(3)))
    assert len(distances) == 8
    np.testing.assert_allclose(settings.penalty(model), 0.25 * np.mean(distances), rtol=1e-5)


@pytest.mark.slow
def test_training_adds_the_penalty_once_and_resumes_with_the_same_bits():
    settings = AdaLora(init_rank=3, target_rank=1, tinit=1, tfinal=1)
    properties.check_a_resumed_run_has_the_same_bits(DECODER, settings, steps=6)
    _, state, whole = properties.trained(DECODER, settings, steps=6)
    _, _, halves = properties.trained(DECODER, settings, steps=6, microbatches=2)
    for one, two in zip(whole, halves, strict=True):
        np.testing.assert_allclose(one['adapter_penalty'], two['adapter_penalty'], rtol=1e-3)
        np.testing.assert_allclose(one['grad_norm'], two['grad_norm'], rtol=1e-2)
    assert left(adapters.adapter_arrays(state.model)) == 4, 'one for each of the four kernels'


def test_a_new_one_changes_nothing_and_merges():
    properties.check_a_new_one_changes_nothing(DECODER, SETTINGS)
    properties.check_merged_equals_unmerged(DECODER, dataclasses.replace(SETTINGS, alpha=200.0))


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        (dict(target_rank=13), r'AdaLora.target_rank=13, expected an integer from 1 to 12 \(AdaLora.init_rank\)'),
        (dict(init_rank=0), 'AdaLora.init_rank=0, expected an integer of 1 or more'),
        (dict(init_rank=33), 'AdaLora.init_rank=33, but .* is a matrix of 32 x 32'),
        (dict(beta1=1.0), 'AdaLora.beta1=1.0, expected a number above 0 and below 1'),
        (dict(orth_reg_weight=-1), 'AdaLora.orth_reg_weight=-1, expected a number of 0 or more'),
        (
            dict(tinit=6, tfinal=4, total_steps=10),
            'AdaLora.tinit=6 and AdaLora.tfinal=4 leave no step .*, expected a sum below AdaLora.total_steps=10',
        ),
        (dict(tinit=6, tfinal=4), 'AdaLora.tinit=6 and .* expected a sum below RunConfig.steps=10'),
    ],
)
def test_wrong_settings_are_one_clear_line(settings, words):
    with pytest.raises(UserError, match=words) as error:
        chosen = AdaLora(**settings)
        adapters.apply(base_model(DECODER), chosen, jax.random.key(0))
        chosen.wrap_optimizer(optax.sgd(jnp.float32(1)), 10)
    assert '\n' not in str(error.value)
