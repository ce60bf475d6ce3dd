"""Prefix tuning: keys and values that are those of tokens act as these tokens, with a cache and without."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5flan.adapters import adapter as adapters
from t5flan.adapters.methods.prefix_tuning import PrefixTuning
from t5flan.errors import UserError
from tests.adapters.methods.virtual_tokens import adapted, assert_cached_equals_whole, logits_of, whole_rows
from tests.models.small_models import small_model


@pytest.mark.parametrize(
    ('family', 'prefix_lm'),
    [
        ('gemma', True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [('relative', False), ('palm', False), ('modern', False)]
        ),
    ],
)
def test_decoding_reads_the_prefix_as_a_forward_pass_does(family, prefix_lm):
    assert_cached_equals_whole(adapted(family, PrefixTuning(tokens=3)), prefix_lm)


@pytest.mark.parametrize('family', ['gemma', pytest.param('relative', marks=pytest.mark.slow)])
def test_keys_and_values_of_tokens_act_as_these_tokens(family):
    """The prefix is the cache after [start, 7, 40]; rows that follow are rows that begin with these tokens."""
    model, batch = small_model(family), whole_rows(prefix_lm=False)
    _, cache = jax.jit(lambda model: model.start_cache(np.array([[7, 40]]), 0))(model)
    prefix = jnp.stack([cache.k_LBMKH[:, 0], cache.v_LBMKH[:, 0]], axis=1).reshape(4, 3, *cache.k_LBMKH.shape[3:])
    prefixed = adapters.with_arrays(
        adapters.apply(model, PrefixTuning(tokens=3), jax.random.key(1)), {'decoder/prefix': prefix}
    )
    longer = np.concatenate([np.tile([0, 7, 40], (4, 1)), batch['decoder_input_tokens']], axis=1)
    expected = np.asarray(logits_of(model, {'decoder_input_tokens': longer})[:, 3:])
    np.testing.assert_allclose(logits_of(prefixed, batch), expected, atol=1e-6 * max(10, np.abs(expected).max()))


def test_a_network_acts_as_the_prefix_that_it_computes():
    model = adapted('gemma', PrefixTuning(tokens=3, projection_size=5))
    computed = jax.jit(lambda model: model.decoder.prefix())(model)
    plain = adapters.apply(small_model('gemma'), PrefixTuning(tokens=3), jax.random.key(1))
    plain = adapters.with_arrays(plain, {'decoder/prefix': computed})
    batch = whole_rows(prefix_lm=False)
    np.testing.assert_allclose(logits_of(model, batch), logits_of(plain, batch), atol=1e-5)


@pytest.mark.slow
def test_decoding_reads_the_prefix_of_a_network():
    assert_cached_equals_whole(adapted('relative', PrefixTuning(tokens=3, projection_size=5)))


def test_wrong_settings_are_one_clear_line():
    with pytest.raises(UserError, match='PrefixTuning.tokens=0, expected an integer of 1 or more'):
        PrefixTuning(tokens=0)
    with pytest.raises(UserError, match='PrefixTuning.projection_size=0.5, expected an integer of 1 or more'):
        PrefixTuning(projection_size=0.5)
    with pytest.raises(UserError, match='PrefixTuning.shared=True, but the model is decoder_only'):
        adapters.apply(small_model('palm'), PrefixTuning(shared=True), jax.random.key(1))
