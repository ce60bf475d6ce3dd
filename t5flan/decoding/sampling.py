"""One token from the logits of one position: greedy, or by temperature, top-k and top-p.

Nothing is sorted. Both filters keep the tokens at or above a threshold, found by bisection over the bits of the float:
32 passes of compare-and-sum, exact, the same program for every k and p (so that changing them compiles nothing), and
far cheaper than a sort of 32k or 256k words. Tokens tied at the threshold are all kept.

Shapes: B rows, V vocabulary.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from t5flan.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is chosen. The default is greedy.

    Attributes:
        temperature: 0 takes the likeliest token; above it, logits are divided by it and a token is drawn.
        top_k: only the k likeliest tokens; 0 = all.
        top_p: only the likeliest tokens that together reach this probability (Holtzman et al. 2020, arXiv:1904.09751),
            counted after temperature and top_k; 1 = all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        if not 0 <= self.temperature < float('inf'):
            raise UserError(
                f'temperature={self.temperature}, expected a number of 0 (greedy) or more. Set --temperature.'
            )
        if int(self.top_k) != self.top_k or self.top_k < 0:
            raise UserError(f'top_k={self.top_k}, expected a count of tokens, 0 for all. Set --top_k.')
        if not 0 < self.top_p <= 1:
            raise UserError(f'top_p={self.top_p}, expected a number above 0, up to 1. Set --top_p.')

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, so that no random number is needed."""
        return self.temperature == 0


def row_keys(seed: int, rows_B: jax.Array) -> jax.Array:
    """One key a row from the seed and the row's number in the whole input: no neighbour, batch or host changes it."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(seed), rows_B)


def sample(
    logits_BV: jax.Array,
    keys_B: jax.Array,
    temperature: jax.Array | float,
    top_k: jax.Array | int,
    top_p: jax.Array | float,
) -> jax.Array:
    """Draws one token a row, [B] int32. temperature (above 0), top_k and top_p are scalars and may be traced."""
    logits_BV = logits_BV.astype(jnp.float32) / temperature
    logits_BV = filter_logits(logits_BV, top_k, top_p)
    return jax.vmap(jax.random.categorical)(keys_B, logits_BV).astype(jnp.int32)


def filter_logits(logits_BV: jax.Array, top_k: jax.Array | int, top_p: jax.Array | float) -> jax.Array:
    """float32 logits with -inf at tokens outside the top k, and then outside the nucleus of probability p."""
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
    """The greatest integer t per row for which `enough` still holds of the tokens with _ordered(x) >= t.

    `enough` goes from False to True as t falls. If it holds for no t (a sum that rounds below p), all tokens are kept.
    """
    ordered_BV = _ordered(x_BV)

    def narrow(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low_B, high_B = bounds  # enough at low (or low is the least), not enough at high
        # The middle without overflow.
        middle_B = (low_B >> 1) + (high_B >> 1) + (low_B & high_B & 1)
        holds_B = enough(ordered_BV >= middle_B[:, None])
        return jnp.where(holds_B, middle_B, low_B), jnp.where(holds_B, high_B, middle_B)

    rows = x_BV.shape[0]
    limits = jnp.iinfo(jnp.int32)
    low_B, _ = jax.lax.fori_loop(
        0, 32, narrow, (jnp.full((rows,), limits.min, jnp.int32), jnp.full((rows,), limits.max, jnp.int32))
    )
    return low_B


def _ordered(x: jax.Array) -> jax.Array:
    """float32 -> int32 in the same order: a non-negative float's bits already are; a negative one's run backwards."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
