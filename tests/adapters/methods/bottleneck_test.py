"""Bottleneck adapters: the formulas of both kinds, at the chosen sublayers; they cannot be merged."""

import jax
import numpy as np
import pytest

from t5flan.adapters import adapter as adapters
from t5flan.adapters.methods.bottleneck import Bottleneck
from t5flan.errors import UserError
from t5flan.models.layers import MLP
from t5flan.models.parameters import Scope
from tests.adapters import properties
from tests.adapters.methods.virtual_tokens import adapted, assert_cached_equals_whole
from tests.adapters.properties import DECODER, ENCODER_DECODER, base_model

PARALLEL = Bottleneck(size=5, kind='parallel', sublayers=('mlp',), activation='gelu', scale=4.0)


@properties.both_models
def test_a_new_parallel_one_changes_nothing(config):
    properties.check_a_new_one_changes_nothing(config, PARALLEL)


@pytest.mark.slow
@properties.both_models
def test_a_parallel_one_is_trained_alone(config):
    properties.check_it_is_trained_alone(config, PARALLEL)


@pytest.mark.parametrize('kind', ['series', 'parallel'])
def test_the_formula_is_that_of_the_paper(kind):
    settings = Bottleneck(size=5, kind=kind, scale=2.0)
    model = properties.moved(adapters.apply(base_model(DECODER), settings, jax.random.key(1)))
    mlp = jax.tree.map(lambda x: x[0], model.decoder.layers.mlp)
    x = np.asarray(jax.random.normal(jax.random.key(2), (2, 3, DECODER.emb_dim)))
    y = np.asarray(MLP.__call__(mlp, x))
    down, down_bias, up, up_bias = (
        np.asarray(getattr(mlp.bottleneck, name)[...]) for name in ('down', 'down_bias', 'up', 'up_bias')
    )
    inner = np.maximum((y if kind == 'series' else x) @ down + down_bias, 0)
    expected = y + 2.0 * (inner @ up + up_bias)
    assert np.abs(expected - y).max() > 0.1
    np.testing.assert_allclose(mlp(x), expected, atol=1e-5)


def test_the_sublayers_are_the_chosen_ones():
    modules = {
        where: {name.rpartition('/bottleneck')[0] for name in adapters.adapter_arrays(_adapted(sublayers=where))}
        for where in (('attention',), ('mlp',), ('attention', 'mlp'))
    }
    attention = {
        'encoder/layers/attention',
        'decoder/layers/self_attention',
        'decoder/layers/encoder_decoder_attention',
    }
    assert modules['attention',] == attention and modules['mlp',] == {'encoder/layers/mlp', 'decoder/layers/mlp'}
    assert modules['attention', 'mlp'] == modules['attention',] | modules['mlp',]


@pytest.mark.slow
def test_decoding_equals_a_forward_pass():
    model = properties.moved(_adapted(size=4))
    properties.check_decoding_equals_a_forward_pass(ENCODER_DECODER, model)


def _adapted(**settings):
    return Bottleneck(**settings).adapt(base_model(ENCODER_DECODER), Scope(jax.random.key(1)))


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        (dict(size=0), 'Bottleneck.size=0, expected an integer of 1 or more'),
        (dict(kind='serial'), "Bottleneck.kind='serial', expected one of series, parallel"),
        (dict(sublayers=['norm']), r"Bottleneck.sublayers=\['norm'\], expected 'attention', 'mlp' or both"),
        (dict(activation='tanh'), "Bottleneck.activation='tanh', expected one of relu, gelu, silu"),
        (dict(scale=0), 'Bottleneck.scale=0, expected a number above 0'),
    ],
)
def test_wrong_settings_are_one_clear_line(settings, words):
    with pytest.raises(UserError, match=words) as error:
        Bottleneck(**settings)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('kind', ['series', 'parallel'])
def test_decoding_reads_it_as_a_forward_pass_does(kind):
    assert_cached_equals_whole(adapted('relative', Bottleneck(size=4, kind=kind)))
