import jax
import numpy as np
import pytest
from flax import nnx

from t5flan.errors import UserError
from t5flan.models.build import abstract_model
from t5flan.models.parameters import (
    Scope,
    fan_in,
    logical_axes,
    named_axes,
    named_parameters,
    parameter_count,
    replace_parameters,
)
from tests.models.small_models import FAMILIES, small_config, small_model

T5_1_1_PATHS = {
    'token_embedder/embedding': ('vocab', 'embed'),
    'encoder/relpos_bias/rel_embedding': ('heads', 'relpos_buckets'),
    'encoder/layers/pre_attention_layer_norm/scale': ('layers', 'embed'),
    'encoder/layers/attention/query/kernel': ('layers', 'embed', 'heads', 'kv'),
    'encoder/layers/attention/key/kernel': ('layers', 'embed', 'kv_heads', 'kv'),
    'encoder/layers/attention/value/kernel': ('layers', 'embed', 'kv_heads', 'kv'),
    'encoder/layers/attention/out/kernel': ('layers', 'heads', 'kv', 'embed'),
    'encoder/layers/pre_mlp_layer_norm/scale': ('layers', 'embed'),
    'encoder/layers/mlp/wi_0/kernel': ('layers', 'embed', 'mlp'),
    'encoder/layers/mlp/wi_1/kernel': ('layers', 'embed', 'mlp'),
    'encoder/layers/mlp/wo/kernel': ('layers', 'mlp', 'embed'),
    'encoder/encoder_norm/scale': ('embed',),
    'decoder/relpos_bias/rel_embedding': ('heads', 'relpos_buckets'),
    'decoder/layers/pre_self_attention_layer_norm/scale': ('layers', 'embed'),
    'decoder/layers/self_attention/query/kernel': ('layers', 'embed', 'heads', 'kv'),
    'decoder/layers/self_attention/key/kernel': ('layers', 'embed', 'kv_heads', 'kv'),
    'decoder/layers/self_attention/value/kernel': ('layers', 'embed', 'kv_heads', 'kv'),
    'decoder/layers/self_attention/out/kernel': ('layers', 'heads', 'kv', 'embed'),
    'decoder/layers/pre_cross_attention_layer_norm/scale': ('layers', 'embed'),
    'decoder/layers/encoder_decoder_attention/query/kernel': ('layers', 'embed', 'heads', 'kv'),
    'decoder/layers/encoder_decoder_attention/key/kernel': ('layers', 'embed', 'kv_heads', 'kv'),
    'decoder/layers/encoder_decoder_attention/value/kernel': ('layers', 'embed', 'kv_heads', 'kv'),
    'decoder/layers/encoder_decoder_attention/out/kernel': ('layers', 'heads', 'kv', 'embed'),
    'decoder/layers/pre_mlp_layer_norm/scale': ('layers', 'embed'),
    'decoder/layers/mlp/wi_0/kernel': ('layers', 'embed', 'mlp'),
    'decoder/layers/mlp/wi_1/kernel': ('layers', 'embed', 'mlp'),
    'decoder/layers/mlp/wo/kernel': ('layers', 'mlp', 'embed'),
    'decoder/decoder_norm/scale': ('embed',),
    'decoder/logits_dense/kernel': ('embed', 'vocab'),
}


def test_paths_and_axes_match_those_of_checkpoints():
    assert named_axes(abstract_model(small_config('t5_1_1'))) == T5_1_1_PATHS


@pytest.mark.parametrize('family', FAMILIES)
def test_every_parameter_is_float32_and_has_a_name_for_each_axis(family):
    model = abstract_model(small_config(family))
    ranks = jax.tree.map(lambda x, axes: len(x.shape) - len(axes), model, logical_axes(model))
    assert set(jax.tree.leaves(ranks)) == {0}
    assert {x.dtype for x in jax.tree.leaves(model)} == {np.dtype(np.float32)}


def test_gradients_have_the_same_names():
    model = small_model('palm')
    gradient = jax.grad(lambda model: sum((x**2).sum() for x in jax.tree.leaves(model)))(model)
    assert list(named_parameters(gradient)) == list(named_parameters(model))
    for name, x in named_parameters(gradient).items():
        np.testing.assert_allclose(x, 2 * named_parameters(model)[name], rtol=1e-6)


def test_a_parameter_depends_only_on_the_seed_and_its_path():
    """It does not depend on other parameters or on the number of layers."""

    def make(layers: int, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        scope = (Scope(jax.random.key(0)) / 'encoder').stacked(layers)
        return {
            name: np.asarray((scope / name).parameter('kernel', (4, 3), ('embed', 'mlp'), fan_in(1))[...])
            for name in names
        }

    two, three = make(2, ('wi_0', 'wi_1')), make(3, ('wo', 'wi_1'))
    np.testing.assert_array_equal(two['wi_1'], three['wi_1'][:2])
    layers = np.concatenate([two['wi_0'], two['wi_1'], three['wo']])
    assert len(np.unique(layers[:, 0, 0])) == 7  # no two layers or modules start alike


@pytest.mark.parametrize('truncated', [False, True])
def test_fan_in_has_the_given_variance(truncated):
    scope = Scope(jax.random.key(0)).stacked(3)
    kernel = scope.parameter(
        'kernel', (16, 8, 40), ('heads', 'kv', 'embed'), fan_in(2, truncated=truncated, variance=0.5)
    )
    x = np.asarray(kernel[...])
    assert x.shape == (3, 16, 8, 40)
    np.testing.assert_allclose(x.std(), (0.5 / 128) ** 0.5, rtol=0.03)
    np.testing.assert_allclose(x.mean(), 0, atol=0.002)
    assert (np.abs(x).max() > 2.5 * x.std()) != truncated


def test_replacing_requires_the_same_names_and_shapes():
    model = small_model('t5_1_1')
    values = {name: np.full(x.shape, 3, np.float32) for name, x in named_parameters(model).items()}
    replaced = replace_parameters(model, values)
    assert jax.tree.structure(replaced) == jax.tree.structure(model)
    assert all((x == 3).all() for x in jax.tree.leaves(replaced))
    with pytest.raises(UserError, match=r"1 missing \['decoder/decoder_norm/scale'\], 1 unknown \['more'\]"):
        replace_parameters(model, {**{k: v for k, v in values.items() if 'decoder_norm' not in k}, 'more': np.zeros(1)})
    with pytest.raises(UserError, match=r'decoder_norm/scale has shape \(5,\), the model expects \(32,\)'):
        replace_parameters(model, {**values, 'decoder/decoder_norm/scale': np.zeros(5)})


def test_counting_parameters_of_an_abstract_model():
    model = small_model('t5_1_1')
    assert (
        parameter_count(model)
        == parameter_count(abstract_model(model.config))
        == sum(x.size for x in jax.tree.leaves(model))
    )


@pytest.mark.skipif(not hasattr(nnx, 'set_graph_mode'), reason='this flax has one mode')
@pytest.mark.parametrize('graph_mode', [False, True])
def test_a_model_is_a_plain_pytree_in_both_nnx_modes(graph_mode):
    with nnx.set_graph_mode(graph_mode):
        model = small_model('umt5')
        leaves, structure = jax.tree.flatten(model)
        assert len(leaves) == len(named_parameters(model)) and all(isinstance(leaf, jax.Array) for leaf in leaves)
        again = jax.tree.unflatten(structure, leaves)
        assert named_axes(again) == named_axes(model) and again.config == model.config
        assert jax.tree.structure(jax.jit(lambda model: model)(model)) == structure
