"""P-tuning (https://arxiv.org/abs/2103.10385): a small network computes the vectors that stand before the input.

    vectors = network(embedding)        both are trained; the network is an MLP, or a bidirectional LSTM and an MLP

The networks are PEFT's. P vectors, D emb_dim, I inputs, H hidden size, G = 4 H gates.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from t5flan.adapters.config import Adapter
from t5flan.adapters.methods.prompt_tuning import PromptTuning, with_prompt
from t5flan.config.checks import is_count, require, require_count
from t5flan.models.model import Model
from t5flan.models.parameters import Initializer, Scope

ENCODERS = ('mlp', 'lstm', 'none')
State = tuple[jax.Array, jax.Array]  # of an LSTM: hidden and cell


@dataclasses.dataclass(frozen=True)
class PTuning(Adapter):
    """P-tuning (https://arxiv.org/abs/2103.10385): a small network computes the vectors before the input.

    That is the input of the encoder, or of a decoder-only model. Rows are not packed.

    Attributes:
        tokens: how many vectors are read.
        encoder: the network that computes them: 'mlp', or 'lstm' (an MLP after it). With 'none', the vectors themselves
            are trained; so is an adapter of PEFT, which stores the computed vectors without the network.
        hidden_size: inner size of the network; None = that of the model's embedding.
        lstm_layers: layers of the LSTM.
        rows: how many vectors are stored, as for `PromptTuning`.
    """

    packed: ClassVar[bool] = False

    tokens: int = 20
    encoder: Literal['mlp', 'lstm', 'none'] = 'mlp'
    hidden_size: int | None = None
    lstm_layers: int = 2
    rows: int | None = None

    def __post_init__(self) -> None:
        require_count('PTuning.tokens', self.tokens)
        require(self.encoder in ENCODERS, 'PTuning.encoder', self.encoder, f'one of {", ".join(ENCODERS)}')
        if self.hidden_size is not None:
            require_count('PTuning.hidden_size', self.hidden_size)
        require_count('PTuning.lstm_layers', self.lstm_layers)
        enough = self.rows is None or is_count(self.rows, self.tokens)
        require(enough, 'PTuning.rows', self.rows, f'an integer of {self.tokens} (PTuning.tokens) or more')

    def adapt(self, model: Model, scope: Scope) -> Model:
        """The model with a prompt that a network computes."""
        return with_prompt(
            model, self.tokens, PromptEncoder(self, model.config.encoder_config.emb_dim, scope / 'prompt')
        )

    by_row = staticmethod(PromptTuning.by_row)


class PromptEncoder(nnx.Module):
    """Trained embeddings and the network that they go through: () -> [P, D]."""

    def __init__(self, settings: PTuning, emb_dim: int, scope: Scope):
        hidden, normal = settings.hidden_size or emb_dim, jax.nn.initializers.normal(1.0)
        shape = (settings.rows or settings.tokens, emb_dim)
        self.embedding = scope.parameter('embedding', shape, ('prompt', 'embed'), normal)
        sizes = {'mlp': [emb_dim, hidden, hidden, emb_dim], 'lstm': [2 * hidden, 2 * hidden, emb_dim], 'none': []}
        self.lstm_layers = settings.lstm_layers if settings.encoder == 'lstm' else 0
        for i in range(self.lstm_layers):
            inputs = 2 * hidden if i else emb_dim
            setattr(self, f'lstm_{i}', Lstm(inputs, hidden, scope / f'lstm_{i}'))
        pairs = list(zip(sizes[settings.encoder], sizes[settings.encoder][1:]))
        self.dense_layers = len(pairs)
        for i, (inputs, outputs) in enumerate(pairs):
            setattr(self, f'dense_{i}', Dense(inputs, outputs, scope / f'dense_{i}'))

    def __call__(self) -> jax.Array:
        """The vectors, float32 [P, D]."""
        x_PD = self.embedding[...]
        for i in range(self.lstm_layers):
            x_PD = getattr(self, f'lstm_{i}')(x_PD)
        for i in range(self.dense_layers):
            x_PD = getattr(self, f'dense_{i}')(jax.nn.relu(x_PD) if i else x_PD)
        return x_PD


class Dense(nnx.Module):
    """A linear map with a bias vector: [P, I] -> [P, O]."""

    def __init__(self, inputs: int, outputs: int, scope: Scope):
        init = _within(inputs)
        self.kernel = scope.parameter('kernel', (inputs, outputs), ('rank', 'rank'), init)
        self.bias = scope.parameter('bias', (outputs,), ('rank',), init)

    def __call__(self, x_PI: jax.Array) -> jax.Array:
        """[P, I] -> [P, O]."""
        return x_PI @ self.kernel[...] + self.bias[...][None, :]


class Lstm(nnx.Module):
    """One layer of a bidirectional LSTM: [P, I] -> [P, 2 H].

    The first axis of its parameters is the direction, forward and backward. Gates are in torch's order: input, forget,
    cell, output.
    """

    def __init__(self, inputs: int, hidden: int, scope: Scope):
        init, axes = _within(hidden), ('rank', 'rank', 'rank')
        self.input_kernel = scope.parameter('input_kernel', (2, inputs, 4 * hidden), axes, init)
        self.hidden_kernel = scope.parameter('hidden_kernel', (2, hidden, 4 * hidden), axes, init)
        self.bias = scope.parameter('bias', (2, 4 * hidden), axes[:2], init)

    def __call__(self, x_PI: jax.Array) -> jax.Array:
        """[P, I] -> [P, 2 H]."""

        def one_direction(x_PI: jax.Array, w_IG: jax.Array, w_HG: jax.Array, b_G: jax.Array) -> jax.Array:
            def step(state: State, x_G: jax.Array) -> tuple[State, jax.Array]:
                hidden_H, cell_H = state
                write_H, keep_H, new_H, read_H = jnp.split(x_G + hidden_H @ w_HG, 4)
                cell_H = jax.nn.sigmoid(keep_H) * cell_H + jax.nn.sigmoid(write_H) * jnp.tanh(new_H)
                hidden_H = jax.nn.sigmoid(read_H) * jnp.tanh(cell_H)
                return (hidden_H, cell_H), hidden_H

            zeros_H = jnp.zeros(w_HG.shape[0], w_HG.dtype)
            return jax.lax.scan(step, (zeros_H, zeros_H), x_PI @ w_IG + b_G[None, :])[1]

        both = jnp.stack([x_PI, x_PI[::-1]]), self.input_kernel[...], self.hidden_kernel[...], self.bias[...]
        forward_PH, backward_PH = jax.vmap(one_direction)(*both)
        return jnp.concatenate([forward_PH, backward_PH[::-1]], axis=-1)


def _within(inputs: int) -> Initializer:
    """Uniform within 1 / sqrt(inputs), torch's initializer."""
    bound = inputs**-0.5
    return lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
