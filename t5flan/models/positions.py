"""Positions: T5's relative bias table, rotary embedding, and what an adapter puts before the first token.

B batch, T length, P virtual tokens, N heads, H head_dim, L layers.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from t5flan.models.config import ModelConfig, RopeScaling
from t5flan.models.parameters import Scope


class RelativeTable(nnx.Module):
    """T5's relative position bias: a number per head and bucket of distances, added to attention logits.

    There is one table [N, buckets] for a stack (T5), or one for each of its layers [L, N, buckets] (UMT5).
    """

    def __init__(self, config: ModelConfig, scope: Scope, layers: int):
        if config.relative_bias_per_layer:
            scope = scope.stacked(layers)
        init = jax.nn.initializers.variance_scaling(config.relative_bias_init, 'fan_avg', 'uniform')
        shape, axes = (config.num_heads, config.relative_buckets), ('heads', 'relpos_buckets')
        self.rel_embedding = scope.parameter('rel_embedding', shape, axes, init)


def rotate(x_BTNH: jax.Array, positions_BT: jax.Array, base: float, scaling: RopeScaling | None = None) -> jax.Array:
    """Rotary position embedding (arXiv:2104.09864): feature i is paired with feature i + H/2, as in Llama's weights.

    A pair is rotated by position * base^(-2i/H), so that the product of a query and a key depends on their distance
    only. `scaling` changes these frequencies. Computed in float32, returned in x's dtype.
    """
    half = x_BTNH.shape[-1] // 2
    frequency_H = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    if scaling is not None:
        frequency_H = scale_frequencies(frequency_H, base, scaling)
    angle_BT1H = positions_BT.astype(jnp.float32)[:, :, None, None] * frequency_H[None, None, None, :]
    sin, cos = jnp.sin(angle_BT1H), jnp.cos(angle_BT1H)
    if scaling is not None and scaling.magnitude != 1.0:
        sin, cos = scaling.magnitude * sin, scaling.magnitude * cos
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BTNH.dtype)


def scale_frequencies(frequency_H: jax.Array, base: float, scaling: RopeScaling) -> jax.Array:
    """Rotary frequencies of longer rows, [H / 2]: each one as it is (1), divided by the factor (0), or in between."""
    length, half = scaling.original_max_position_embeddings, frequency_H.shape[0]
    if scaling.rope_type == 'linear' or length is None:
        return frequency_H / scaling.factor
    if scaling.rope_type == 'llama3':
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept_H = (frequency_H * (length / (2 * math.pi)) - low) / (high - low)
    else:
        # The pair that rotates so many times over the original length.
        pair = lambda rotations: half * math.log(length / (rotations * 2 * math.pi)) / math.log(base)
        low, high = pair(scaling.beta_fast), pair(scaling.beta_slow)
        if scaling.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * half - 1)
        high = low + 0.001 if high == low else high
        kept_H = 1.0 - (jnp.arange(half, dtype=jnp.float32) - low) / (high - low)
    kept_H = jnp.clip(kept_H, 0.0, 1.0)
    return frequency_H * kept_H + frequency_H / scaling.factor * (1.0 - kept_H)


def before_tokens(first_BP: jax.Array, x_BT: jax.Array, pad_B: jax.Array | None = None) -> jax.Array:
    """Puts P virtual tokens before the tokens of each row: [B, P, ...] and [B, T, ...] -> [B, P + T, ...].

    Padding at the left, pad_B[b] tokens of row b, stays there: with one token of padding, [p q] and [0 a b] become
    [0 p q a b].
    """
    if pad_B is None:
        return jnp.concatenate([first_BP, x_BT], axis=1)
    first, length, more = first_BP.shape[1], x_BT.shape[1], (1,) * (x_BT.ndim - 2)
    place_BM = jnp.arange(first + length, dtype=jnp.int32)[None, :] - pad_B[:, None]  # among the row's own, P + T - pad
    place_BM = place_BM.reshape(*place_BM.shape, *more)
    virtual = jnp.take_along_axis(first_BP, jnp.clip(place_BM, 0, first - 1), axis=1)
    tokens = jnp.pad(x_BT, ((0, 0), (first, 0), *((0, 0) for _ in more)))
    return jnp.where((place_BM >= 0) & (place_BM < first), virtual, tokens)
