"""P-tuning: the vectors of the network are read like those of a prompt, and the LSTM is the one of torch."""

import jax
import numpy as np
import pytest

from t5flan.adapters import adapter as adapters
from t5flan.adapters.methods.p_tuning import Lstm, PTuning
from t5flan.adapters.methods.prompt_tuning import PromptTuning
from t5flan.errors import UserError
from t5flan.models.parameters import Scope
from tests.adapters.methods.virtual_tokens import adapted, logits_of, whole_rows
from tests.models.small_models import small_model


@pytest.mark.parametrize('encoder', ['mlp', *(pytest.param(kind, marks=pytest.mark.slow) for kind in ('lstm', 'none'))])
def test_the_vectors_are_a_prompt(encoder):
    model, batch = adapted('palm', PTuning(tokens=3, encoder=encoder, hidden_size=5)), whole_rows(prefix_lm=False)
    prompt = adapters.apply(small_model('palm'), PromptTuning(tokens=3), jax.random.key(1))
    vectors_PD = jax.jit(lambda model: model.prompt())(model)
    assert vectors_PD.shape == (3, 32)
    expected = logits_of(adapters.with_arrays(prompt, {'prompt': vectors_PD}), batch)
    np.testing.assert_allclose(logits_of(model, batch), expected, atol=1e-5)


def test_the_lstm_is_that_of_its_equations():
    """Against a loop in float64, forward and backward."""
    lstm = Lstm(4, 3, Scope(jax.random.key(0)))
    x_PI = np.random.default_rng(0).normal(size=(5, 4))
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    outputs = []
    for direction in (0, 1):
        parameters = lstm.input_kernel, lstm.hidden_kernel, lstm.bias
        w_IG, w_HG, b_G = (np.asarray(x[...][direction], np.float64) for x in parameters)
        hidden, cell, out = np.zeros(3), np.zeros(3), []
        for x_I in x_PI[:: -1 if direction else 1]:
            i, f, g, o = np.split(x_I @ w_IG + hidden @ w_HG + b_G, 4)
            cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
            hidden = sigmoid(o) * np.tanh(cell)
            out.append(hidden)
        outputs.append(np.stack(out[:: -1 if direction else 1]))
    np.testing.assert_allclose(lstm(x_PI.astype(np.float32)), np.concatenate(outputs, axis=1), atol=1e-6)


@pytest.mark.parametrize(
    ('settings', 'words'),
    [
        (dict(tokens=0), 'PTuning.tokens=0, expected an integer of 1 or more'),
        (dict(encoder='rnn'), "PTuning.encoder='rnn', expected one of mlp, lstm, none"),
        (dict(hidden_size=0), 'PTuning.hidden_size=0, expected an integer of 1 or more'),
        (dict(tokens=4, rows=3), 'PTuning.rows=3, expected an integer of 4'),
    ],
)
def test_wrong_settings_are_one_clear_line(settings, words):
    with pytest.raises(UserError, match=words):
        PTuning(**settings)
