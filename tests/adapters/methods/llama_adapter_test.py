"""LLaMA-Adapter: gated prompts change nothing at first, are read by the top layers, and with a cache as without."""

import jax
import numpy as np
import pytest

from t5flan.adapters import adapter as adapters
from t5flan.adapters.methods.llama_adapter import LlamaAdapter
from t5flan.errors import UserError
from tests.adapters.methods.virtual_tokens import adapted, assert_cached_equals_whole, logits_of
from tests.models.small_models import small_model


@pytest.mark.parametrize(
    ('family', 'prefix_lm'),
    [
        ('modern', False),
        *(pytest.param(*one, marks=pytest.mark.slow) for one in (('gemma', False), ('relative', True))),
    ],
)
def test_decoding_reads_the_vectors_as_a_forward_pass_does(family, prefix_lm):
    assert_cached_equals_whole(adapted(family, LlamaAdapter(tokens=3, layers=1)), prefix_lm)


def test_only_the_top_layers_have_vectors():
    """The gate of one of two layers acts as that of the second with two, and each stack has its own."""
    names = [f'{stack}/adaption_{part}' for stack in ('decoder', 'encoder') for part in ('gate', 'prompt')]
    one, two = (adapted('t5_1_1', LlamaAdapter(tokens=3, layers=layers)) for layers in (1, None))
    arrays = adapters.adapter_arrays(one)
    assert sorted(arrays) == names and [arrays[name].shape for name in names] == [(1,), (1, 3, 32)] * 2
    below = {name: np.pad(x, ((1, 0), *[(0, 0)] * (x.ndim - 1))) for name, x in arrays.items()}
    random = np.random.default_rng(0)
    batch = {f'{name}_input_tokens': random.integers(3, 64, (2, 5)) for name in ('encoder', 'decoder')}
    found = np.asarray(logits_of(one, batch))
    np.testing.assert_allclose(logits_of(adapters.with_arrays(two, below), batch), found, atol=1e-5)
    base = np.asarray(logits_of(small_model('t5_1_1'), batch))
    for name in ('decoder/adaption_gate', 'encoder/adaption_gate'):
        without = np.asarray(logits_of(adapters.with_arrays(one, arrays | {name: np.zeros(1, np.float32)}), batch))
        assert np.abs(without - found).max() > 1e-3 and np.abs(without - base).max() > 1e-3


@pytest.mark.slow
def test_packed_rows_match_separate_examples():
    model = adapted('palm', LlamaAdapter(tokens=3))
    packed = {
        'decoder_input_tokens': np.array([[5, 6, 7, 8, 9]]),
        'decoder_segment_ids': np.array([[1, 1, 1, 2, 2]]),
        'decoder_positions': np.array([[0, 1, 2, 0, 1]]),
    }
    packed_BTV = logits_of(model, packed)
    for first, last in ((0, 3), (3, 5)):
        alone = {'decoder_input_tokens': packed['decoder_input_tokens'][:, first:last]}
        np.testing.assert_allclose(packed_BTV[:, first:last], logits_of(model, alone), atol=1e-5)


def test_wrong_settings_are_one_clear_line():
    for name in ('tokens', 'layers'):
        with pytest.raises(UserError, match=f'LlamaAdapter.{name}=0, expected an integer of 1 or more'):
            LlamaAdapter(**{name: 0})
    with pytest.raises(UserError, match='LlamaAdapter.layers=3, but the decoder has 2 layers, expected 2 or less. Set'):
        adapters.apply(small_model('palm'), LlamaAdapter(layers=3), jax.random.key(1))
