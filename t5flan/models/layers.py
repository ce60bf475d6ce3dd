"""The small layers: projection, norm, MLP, token embedding, dropout.

B batch, T length, D emb_dim, F mlp_dim, V vocabulary. Parameters are float32 and cast where they are used.
"""

import functools
import operator
import zlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from t5flan import sharding
from t5flan.kernels.kept import kept
from t5flan.kernels.product import product
from t5flan.models.config import ModelConfig
from t5flan.models.parameters import Initializer, Scope, fan_in
from t5flan.sharding import constrain

# Names of the outputs of projections, for `remat` (`stack.py`). Those of the inner projections of an MLP, and the keys
# and values of the encoder's output, are the largest, and are computed from an input that is saved anyway.
PROJECTION, MLP_PROJECTION, CROSS_PROJECTION = PROJECTIONS = 'projection', 'mlp_projection', 'cross_projection'

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    'gelu': functools.partial(jax.nn.gelu, approximate=True),
    'relu': jax.nn.relu,
    'silu': jax.nn.silu,
    'linear': lambda x: x,
}


def fold(key: jax.Array | None, of: str | int | jax.Array) -> jax.Array | None:
    """The dropout key of a part, by its name or number; None (no dropout) stays None."""
    if key is None:
        return None
    return jax.random.fold_in(key, zlib.crc32(of.encode()) if isinstance(of, str) else of)


def dropout(x_BTD: jax.Array, rate: float, key: jax.Array | None, *, along_length: bool = True) -> jax.Array:
    """Drops features and scales the others by 1 / (1 - rate); off if `key` is None.

    As in T5, a feature is dropped at all positions of a row (one draw for [B, 1, D]) unless `along_length` is False.
    """
    if key is None or rate == 0:
        return x_BTD
    shape = (x_BTD.shape[0], 1, x_BTD.shape[2]) if along_length else x_BTD.shape
    keep = jax.random.bernoulli(key, 1 - rate, shape)
    return jnp.where(keep, x_BTD / (1 - rate), 0).astype(x_BTD.dtype)


Sizes = dict[str, int]  # by logical axis: {'heads': 8, 'kv': 64}


class Projection(nnx.Module):
    """A linear map from the last axes of its input to new ones: [..., *inputs] -> [..., *outputs].

    Attributes:
        bias: [*outputs], added to the product; None without one.
        kept_as: the name of its output for `remat`.
    """

    bias: nnx.Param | None = None
    kept_as: str = PROJECTION

    def __init__(
        self,
        config: ModelConfig,
        scope: Scope,
        inputs: Sizes,
        outputs: Sizes,
        init: Initializer | None = None,
        *,
        bias: bool = False,
        kept_as: str = PROJECTION,
    ):
        self.dtype = config.dtype
        self.kept_as = kept_as
        self.num_inputs = len(inputs)
        shape, init = (*inputs.values(), *outputs.values()), init or fan_in(len(inputs), truncated=True)
        self.kernel = scope.parameter('kernel', shape, (*inputs, *outputs), init)
        if bias:
            self.bias = scope.parameter('bias', (*outputs.values(),), (*outputs,), jax.nn.initializers.zeros)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., *inputs] -> [..., *outputs] in the compute dtype."""
        with jax.named_scope('projection'):
            y = product(x, self.kernel[...], self.num_inputs, self.dtype)
        return kept(add_bias(y, self.bias), self.kept_as)


def add_bias(y: jax.Array, bias: nnx.Param | None) -> jax.Array:
    """[..., *outputs] plus [*outputs], in y's dtype."""
    if bias is None:
        return y
    added = bias[...].astype(y.dtype)
    return y + added.reshape((1,) * (y.ndim - added.ndim) + added.shape)


class Norm(nnx.Module):
    """Root mean square norm (T5, Llama), or layer norm without bias (PaLM); computed in float32."""

    def __init__(self, config: ModelConfig, scope: Scope, *, of_heads: bool = False):
        """`of_heads`: it norms the last axis of [B, T, N, H] instead of [B, T, D]."""
        self.config = config
        init = jax.nn.initializers.zeros if config.norm_scale_plus_one else jax.nn.initializers.ones
        size, axis = (config.head_dim, 'kv') if of_heads else (config.emb_dim, 'embed')
        self.scale = scope.parameter('scale', (size,), (axis,), init)

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        """[B, T, D] -> [B, T, D] in the compute dtype."""
        x_BTD = x_BTD.astype(jnp.float32)
        if self.config.norm == 'layer':
            x_BTD = x_BTD - jnp.mean(x_BTD, axis=-1, keepdims=True)
        variance_BT1 = jnp.mean(jnp.square(x_BTD), axis=-1, keepdims=True)
        scale_D = self.scale[...] + 1 if self.config.norm_scale_plus_one else self.scale[...]
        along_last = (*(None,) * (x_BTD.ndim - 1), slice(None))
        y_BTD = x_BTD * jax.lax.rsqrt(variance_BT1 + self.config.norm_epsilon) * scale_D[along_last]
        return y_BTD.astype(self.config.dtype)


class MLP(nnx.Module):
    """wo(product of activation_i(wi_i(x))): one projection (T5 1.0), or two, a gated unit (arXiv:2002.05202)."""

    def __init__(self, config: ModelConfig, scope: Scope):
        self.config = config
        sizes = {'embed': config.emb_dim}, {'mlp': config.mlp_dim}
        for name in self.inner_names():
            setattr(self, name, Projection(config, scope / name, *sizes, kept_as=MLP_PROJECTION))
        self.wo = Projection(config, scope / 'wo', {'mlp': config.mlp_dim}, {'embed': config.emb_dim})

    def inner_names(self) -> list[str]:
        """'wi', or 'wi_0' and 'wi_1', as in T5X."""
        count = len(self.config.mlp_activations)
        return ['wi'] if count == 1 else [f'wi_{i}' for i in range(count)]

    def __call__(self, x_BTD: jax.Array, dropout_key: jax.Array | None = None) -> jax.Array:
        """[B, T, D] -> [B, T, D]; a `dropout_key` of None turns dropout off."""
        # XLA's CPU would round the result of every 16-bit operation of an activation, which takes longer than the rest.
        dtype = jnp.float32 if sharding.platform() == 'cpu' else self.config.dtype
        names = zip(self.inner_names(), self.config.mlp_activations, strict=True)
        inner = [ACTIVATIONS[activation](getattr(self, name)(x_BTD).astype(dtype)) for name, activation in names]
        x_BTF = functools.reduce(operator.mul, inner).astype(self.config.dtype)
        x_BTF = constrain(x_BTF, ('batch', 'length', 'act_mlp'))
        return self.wo(dropout(x_BTF, self.config.dropout_rate, dropout_key))


class TokenEmbedder(nnx.Module):
    """The table [V, D] of token embeddings; if embeddings are tied, it computes the logits as well."""

    def __init__(self, config: ModelConfig, scope: Scope):
        self.config = config
        # 1 as in T5; small if embedded tokens are scaled up, or tied logits are not scaled down.
        small = config.scale_embedding or (config.tie_embeddings and not config.scale_tied_logits)
        init = jax.nn.initializers.normal(config.emb_dim**-0.5 if small else 1.0)
        self.embedding = scope.parameter('embedding', (config.vocab_size, config.emb_dim), ('vocab', 'embed'), init)
        if config.unscaled_token is not None:
            zeros = jax.nn.initializers.zeros
            self.unscaled_embedding = scope.parameter('unscaled_embedding', (config.emb_dim,), ('embed',), zeros)

    def __call__(self, tokens_BT: jax.Array) -> jax.Array:
        """[B, T] -> [B, T, D]. A token outside the vocabulary becomes NaN, so that it cannot go unnoticed."""
        # A gather: T5X's product with a one-hot [B, T, V] took 28 % of a small model's step.
        with jax.named_scope('embedding'):
            x_BTD = jnp.take(self.embedding[...], tokens_BT, axis=0, mode='fill').astype(self.config.dtype)
        if self.config.scale_embedding:
            x_BTD = x_BTD * jnp.asarray(self.config.emb_dim**0.5, x_BTD.dtype)
        if self.config.unscaled_token is not None:
            own_11D = self.unscaled_embedding[...].astype(x_BTD.dtype)[None, None]
            x_BTD = jnp.where((tokens_BT == self.config.unscaled_token)[..., None], own_11D, x_BTD)
        return constrain(x_BTD, ('batch', 'length', 'act_embed'))

    def logits(self, x_BTD: jax.Array) -> jax.Array:
        """[..., D] -> float32 [..., V], by the same table."""
        x_BTD = x_BTD.astype(jnp.float32)
        if self.config.scale_tied_logits:
            x_BTD = x_BTD * self.config.emb_dim**-0.5
        return jnp.einsum('...D,VD->...V', x_BTD, self.embedding[...])
