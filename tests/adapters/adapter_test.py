"""t5flan/adapters: a new adapter changes no output, trains alone, and merges into the kernels without a difference."""

import dataclasses

import jax
import numpy as np
import pytest

from t5flan.adapters import adapter as adapters
from t5flan.adapters.config import METHODS
from t5flan.adapters.methods.dora import Dora
from t5flan.adapters.methods.ia3 import Ia3
from t5flan.adapters.methods.lora import Lora
from t5flan.adapters.methods.prefix_tuning import PrefixTuning
from t5flan.adapters.methods.prompt_tuning import PromptTuning
from t5flan.errors import UserError
from t5flan.models.build import abstract_model, build_model
from t5flan.models.config import ModelConfig
from t5flan.models.parameters import logical_axes, named_parameters
from t5flan.training.config import LossConfig, OptimizerConfig
from t5flan.training.optimizer import make_optimizer
from t5flan.training.state import create_state
from t5flan.training.step import make_train_step
from tests.adapters import properties
from tests.adapters.properties import DECODER, ENCODER_DECODER, base_model, both_models, make_batch

EVERY_KERNEL = ('.*/kernel',)
KNOWN = {
    'lora': Lora(rank=4),
    'lora everywhere': Lora(
        rank=3, rslora=True, targets=EVERY_KERNEL, rank_pattern={'.*/wo/kernel': 5}, alpha_pattern={'.*/out/kernel': 2}
    ),
    'dora': Dora(rank=3, targets=['.*attention/out/kernel', '.*/wi_0/kernel']),
    'ia3': Ia3(),
}
# A method whose rows may be packed is tested here with its defaults as soon as its file is there.
OTHERS = {name: METHODS[name]() for name in METHODS if METHODS[name].packed and METHODS[name] not in (Lora, Dora, Ia3)}
EVERY = KNOWN | OTHERS
COPIES = {'AdaLora': 4}
"""Numbers that the optimizer holds for one of the adapter, if not Adam's two."""


def methods(chosen, quick):
    """These methods as parameters, of which only the `quick` ones are in the quick suite."""
    slow = {True: (), False: pytest.mark.slow}
    return pytest.mark.parametrize(
        'settings', [pytest.param(settings, id=name, marks=slow[name in quick]) for name, settings in chosen.items()]
    )


# Those that change the outputs of a new model, and whose rows are not packed.
VIRTUAL_TOKENS = {name: METHODS[name](tokens=3) for name in METHODS if not METHODS[name].packed}
trained_methods = methods({name: EVERY[name] for name in EVERY if name != 'lora everywhere'} | VIRTUAL_TOKENS, ['lora'])


@methods(EVERY, KNOWN)
@both_models
def test_a_new_adapter_leaves_the_outputs_unchanged(config, settings):
    tolerance = 1e-6 if isinstance(settings, Dora) else 0  # it divides lengths by themselves
    properties.check_a_new_one_changes_nothing(config, settings, tolerance)


@trained_methods
@both_models
def test_only_the_adapter_is_trained(config, settings):
    properties.check_it_is_trained_alone(config, settings, COPIES.get(type(settings).__name__, 2))


@pytest.mark.parametrize('settings', [PromptTuning(tokens=3), PrefixTuning(tokens=3)], ids=['prompt', 'prefix'])
def test_decoding_reads_the_prompt_or_prefix_as_a_forward_pass_does(settings):
    model = adapters.apply(base_model(ENCODER_DECODER), settings, jax.random.key(1))
    properties.check_decoding_equals_a_forward_pass(ENCODER_DECODER, model)


@methods({name: settings for name, settings in EVERY.items() if settings.mergeable}, ['lora'])
@both_models
def test_merged_equals_unmerged(config, settings):
    properties.check_merged_equals_unmerged(config, settings)


@pytest.mark.slow
@trained_methods
def test_scanned_equals_unrolled(settings):
    properties.check_scanned_equals_unrolled(settings)


@pytest.mark.slow
@trained_methods
def test_a_resumed_run_has_the_same_bits(settings):
    properties.check_a_resumed_run_has_the_same_bits(DECODER, settings)


def step_flops(config: ModelConfig, settings) -> float:
    """FLOPs of a compiled step with an adapter, or of full finetuning; XLA would count the body of a loop once."""
    unrolled = dataclasses.replace(config, scan_layers=False, remat='none')

    def state():
        model = build_model(unrolled, jax.random.key(0))
        return model if settings is None else adapters.apply(model, settings, jax.random.key(1))

    model = jax.eval_shape(state)
    frozen = frozenset() if settings is None else adapters.base_names(unrolled)
    optimizer_config = OptimizerConfig(name='adamw')
    optimizer = make_optimizer(optimizer_config, logical_axes(model), 1, frozen)
    step = jax.jit(make_train_step(optimizer_config, LossConfig(chunk_tokens=10_000), optimizer, seed=0))
    abstract = jax.eval_shape(lambda model: create_state(model, optimizer), model)
    return step.lower(abstract, make_batch(config)).compile().cost_analysis()['flops']


@pytest.mark.slow
@both_models
def test_a_step_of_lora_computes_no_gradient_of_the_base(config):
    """A full step takes about three times the forward pass; without gradients of the kernels, about two."""
    config = dataclasses.replace(config, mlp_dim=512, vocab_size=1024)
    assert step_flops(config, Lora(rank=2)) < 0.72 * step_flops(config, None)


def test_a_step_of_an_adapter_saves_the_products_of_frozen_gradients():
    """dW = x^T dy takes 2 * tokens * inputs * outputs FLOPs, for every kernel and for the table of the tied logits."""
    config = dataclasses.replace(DECODER, num_decoder_layers=1, mlp_dim=256)
    shapes = named_parameters(abstract_model(config))
    tokens = make_batch(config)['decoder_input_tokens'].size
    products = sum(2 * tokens * x.size for name, x in shapes.items() if name.endswith(('kernel', 'embedding')))
    saved = step_flops(config, None) - step_flops(config, Ia3())
    assert 0.95 * products < saved < 1.6 * products  # and what the optimizer computes


@both_models
def test_a_fingerprint_of_pieces_is_that_of_the_whole(config):
    model = base_model(config)

    def pieces():
        for name, x in named_parameters(model).items():
            if '/layers/' not in name:
                yield name, None, np.asarray(x)
                continue
            yield from ((name, layer, np.asarray(x[layer])) for layer in reversed(range(len(x))))

    assert adapters.fingerprint_of_pieces(pieces()) == adapters.fingerprint(model)


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
        (
            dict(rank_pattern={'.*/q/kernel': 2}),
            r'Lora.rank_pattern contains .* no kernel that is adapted; the nearest',
        ),
        (dict(alpha_pattern={'.*/wo/kernel': 2}), 'Lora.alpha_pattern contains .* no kernel that is adapted'),
    ],
)
def test_wrong_settings_are_one_clear_line(settings, words):
    with pytest.raises(UserError, match=words) as error:
        adapters.apply(base_model(ENCODER_DECODER), Lora(**settings), jax.random.key(0))
    assert '\n' not in str(error.value)
