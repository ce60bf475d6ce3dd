"""Results with a name, which `jax.checkpoint` keeps for the backward pass (`save_only_these_names`).

On a CPU, 16-bit results of scanned layers are kept as integers of the same bits. XLA's CPU has no 16-bit float slices:
it would convert the results of all layers to float32 before the backward pass, in twice the memory.

Elsewhere heads are kept side by side, [B, T, N * H] instead of [B, T, N, H]: a TPU pads the last axis of an array to a
multiple of 128, which would double the memory of heads of 64.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from t5flan import sharding

_LANES = 128


def kept(y: jax.Array, name: str) -> jax.Array:
    """The array itself, kept under the name."""
    if sharding.platform() == 'cpu':
        return _kept_bits(name, y) if y.dtype.itemsize == 2 else checkpoint_name(y, name)
    if y.ndim > 3 and y.shape[-1] % _LANES:
        return checkpoint_name(y.reshape(*y.shape[:2], -1), name).reshape(y.shape)
    return checkpoint_name(y, name)


def _through_bits(name: str, y: jax.Array) -> jax.Array:
    bits = checkpoint_name(jax.lax.bitcast_convert_type(y, jnp.uint16), name)
    return jax.lax.bitcast_convert_type(bits, y.dtype)


_kept_bits = jax.custom_vjp(_through_bits, nondiff_argnums=(0,))  # integers have no gradients
_kept_bits.defvjp(lambda name, y: (_through_bits(name, y), None), lambda name, _, dy: (dy,))
