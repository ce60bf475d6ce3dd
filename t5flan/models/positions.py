"""Positions: T5's relative bias table and rotary embedding.

B batch, T length, N heads, H head_dim, L layers.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from t5flan.models.config import ModelConfig
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


def rotate(x_BTNH: jax.Array, positions_BT: jax.Array, base: float) -> jax.Array:
    """Rotary position embedding (arXiv:2104.09864): feature i is paired with feature i + H/2, as in Llama's weights.

    A pair is rotated by position * base^(-2i/H), so that the product of a query and a key depends on their distance
    only. Computed in float32, returned in x's dtype.
    """
    half = x_BTNH.shape[-1] // 2
    frequency_H = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle_BT1H = positions_BT.astype(jnp.float32)[:, :, None, None] * frequency_H[None, None, None, :]
    sin, cos = jnp.sin(angle_BT1H), jnp.cos(angle_BT1H)
    first, second = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x_BTNH.dtype)
