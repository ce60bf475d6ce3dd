"""Choosing one token from the logits of one position by temperature, top-k and top-p.

Nothing is sorted. Both filters keep the tokens at or above a threshold, found by bisection over the bits of the float:
32 passes of compare-and-sum, exact, much cheaper than sorting 32k or 256k tokens, and the same program for every k and
p, so changing them does not recompile. Tokens tied at the threshold are all kept.

Shapes: B rows, V vocabulary.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def row_keys(seed: jax.Array | int, rows_B: jax.Array) -> jax.Array:
    """One key per row, [B], from the seed and the row's number in the whole input, whatever its batch or host."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), rows_B)


def sample(
    logits_BV: jax.Array,
    keys_B: jax.Array,
    temperature: jax.Array | float,
    top_k: jax.Array | int,
    top_p: jax.Array | float,
) -> jax.Array:
    """Samples one token per row, [B] int32. temperature (above 0), top_k and top_p are scalars and may be traced."""
    logits_BV = filter_logits(logits_BV.astype(jnp.float32) / temperature, top_k, top_p)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


def filter_logits(logits_BV: jax.Array, top_k: jax.Array | int, top_p: jax.Array | float) -> jax.Array:
    """Sets logits outside the top k, and then outside the nucleus of probability p, to -inf.

    Args:
        logits_BV: float32.
        top_k: tokens to keep; 0 keeps all.
        top_p: probability of the nucleus (Holtzman et al. 2020, arXiv:1904.09751); 1 keeps all.
    """
    vocab_size = logits_BV.shape[-1]
    count = jnp.where(jnp.equal(top_k, 0), vocab_size, jnp.minimum(top_k, vocab_size))
    logits_BV = jax.lax.cond(
        count < vocab_size,
        lambda x_BV: _keep_from(x_BV, _threshold(x_BV, lambda kept_BV: kept_BV.sum(-1) >= count)),
        lambda x_BV: x_BV,
        logits_BV,
    )

    def nucleus(x_BV: jax.Array) -> jax.Array:
        probs_BV = jax.nn.softmax(x_BV, axis=-1)
        return _keep_from(x_BV, _threshold(x_BV, lambda kept_BV: jnp.where(kept_BV, probs_BV, 0.0).sum(-1) >= top_p))

    return jax.lax.cond(jnp.less(top_p, 1.0), nucleus, lambda x_BV: x_BV, logits_BV)


def _keep_from(x_BV: jax.Array, threshold_B: jax.Array) -> jax.Array:
    return jnp.where(_ordered(x_BV) >= threshold_B[:, None], x_BV, -jnp.inf)


def _threshold(x_BV: jax.Array, enough: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """The largest integer t per row such that `enough` holds for the tokens with _ordered(x) >= t.

    `enough` changes from False to True as t decreases. If it holds for no t (the sum rounds below p), all are kept.
    """
    ordered_BV = _ordered(x_BV)

    def narrow(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_B, high_B = bounds  # enough at low (or low is the minimum), not enough at high
        middle_B = (low_B >> 1) + (high_B >> 1) + (low_B & high_B & 1)  # the mean, without overflow
        holds_B = enough(ordered_BV >= middle_B[:, None])
        return jnp.where(holds_B, middle_B, low_B), jnp.where(holds_B, high_B, middle_B)

    limits = jnp.iinfo(jnp.int32)
    bounds = tuple(jnp.full(x_BV.shape[:1], limit, jnp.int32) for limit in (limits.min, limits.max))
    return jax.lax.fori_loop(0, 32, narrow, bounds)[0]


def _ordered(x: jax.Array) -> jax.Array:
    """float32 -> int32 in the same order: the bits of negative floats, whose order is reversed, are flipped."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
