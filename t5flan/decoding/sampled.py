"""Continuations token by token, the most likely or a sampled one, in one jitted loop with a key-value cache.

Shapes: B rows, P prompt length, T new tokens, V vocabulary.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from t5flan.decoding import steps
from t5flan.decoding.sampling import row_keys, sample
from t5flan.models.model import Model


class Choice(NamedTuple):
    """How a token is chosen, as in `Decoding`. The numbers are traced: other values do not recompile."""

    eos_id: Any
    known_ids: Any
    temperature: Any
    top_k: Any
    top_p: Any


class Loop(NamedTuple):
    """State of the loop.

    Attributes:
        step: number of tokens written, scalar int32.
        tokens_BT: int32, 0 after the end of a row.
        log_probs_BT: the model's log-probability of each token.
        lengths_B: int32, the number of tokens of each row, including the end of sequence.
        ended_B: whether a row has ended.
        keys_B: the random key of each row; None for greedy decoding.
        cache: keys and values so far.
    """

    step: jax.Array
    tokens_BT: jax.Array
    log_probs_BT: jax.Array
    lengths_B: jax.Array
    ended_B: jax.Array
    keys_B: jax.Array | None
    cache: Any


@functools.partial(
    jax.jit, static_argnames=('greedy', 'capacity', 'new_slots', 'num_samples', 'prefix_lm', 'placement')
)
def begin(
    model: Model,
    prompts: steps.PromptBatch,
    choice: Choice,
    seed: jax.Array,
    *,
    greedy: bool,
    capacity: int,
    new_slots: int,
    num_samples: int,
    prefix_lm: bool,
    placement: Any = None,
) -> Loop:
    """Reads a batch of prompts and chooses the first token of each of B * num_samples continuations.

    Args:
        seed: of the samples.
        capacity: T, the length of the arrays; at least the number of new tokens.
        new_slots: of the cache for new tokens; at least T.
        placement: `sharding.placement()`, which the compiled program depends on.
    """
    logits_BV, cache = steps.start(model, prompts, new_slots, prefix_lm)
    rows_B = prompts.rows_B
    keys_B = None if greedy else sample_keys(seed, rows_B, num_samples)
    if num_samples > 1:
        logits_BV, rows_B = jnp.repeat(logits_BV, num_samples, axis=0), jnp.repeat(rows_B, num_samples)
        cache = cache.repeated(num_samples)
    shape = (rows_B.shape[0], capacity)
    tokens_BT, log_probs_BT = jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)
    empty = Loop(jnp.int32(0), tokens_BT, log_probs_BT, jnp.zeros(shape[0], jnp.int32), rows_B < 0, keys_B, None)
    return _write(empty, logits_BV, cache, choice)


@functools.partial(jax.jit, static_argnames='placement', donate_argnames='loop')
def advance(
    model: Model, layers: steps.Layers, loop: Loop, choice: Choice, until: jax.Array, *, placement: Any = None
) -> Loop:
    """Continues all rows until they have `until` tokens or have ended; `layers` are from `steps.prepare`."""

    def body(loop: Loop) -> Loop:
        last_B1 = jax.lax.dynamic_slice_in_dim(loop.tokens_BT, loop.step - 1, 1, axis=1)
        return _write(loop, *steps.step(model, layers, loop.cache, last_B1), choice)

    return jax.lax.while_loop(lambda loop: (loop.step < until) & ~jnp.all(loop.ended_B), body, loop)


@jax.jit
def keep(loop: Loop, rows_R: jax.Array, prompts_Q: jax.Array) -> Loop:
    """The loop with only the rows `rows_R`, those of the prompts `prompts_Q`."""
    state = {name: x for name, x in loop._asdict().items() if name not in ('step', 'cache')}
    rows: Any = jax.tree.map(lambda x: x[rows_R], state)
    return Loop(step=loop.step, cache=loop.cache.taken(rows_R, prompts_Q), **rows)


def _write(loop: Loop, logits_BV: jax.Array, cache: Any, choice: Choice) -> Loop:
    """Chooses the next token of each row."""
    chosen_B = _choose(loop, logits_BV, choice)
    picked_B = jnp.take_along_axis(logits_BV, chosen_B[:, None], axis=-1)[:, 0]
    log_probs_B = picked_B - jax.nn.logsumexp(logits_BV, axis=-1)
    chosen_B = jnp.where(loop.ended_B, 0, chosen_B)
    log_probs_B = jnp.where(loop.ended_B, 0.0, log_probs_B)
    put = lambda x_BT, new_B: jax.lax.dynamic_update_slice_in_dim(x_BT, new_B[:, None], loop.step, axis=1)
    return Loop(
        loop.step + 1,
        put(loop.tokens_BT, chosen_B),
        put(loop.log_probs_BT, log_probs_B),
        loop.lengths_B + ~loop.ended_B,
        loop.ended_B | (chosen_B == choice.eos_id),
        loop.keys_B,
        cache,
    )


def _choose(loop: Loop, logits_BV: jax.Array, choice: Choice) -> jax.Array:
    logits_BV = jnp.where(jnp.arange(logits_BV.shape[-1]) < choice.known_ids, logits_BV, -jnp.inf)
    if loop.keys_B is None:
        return first_largest(logits_BV)
    keys_now_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(loop.keys_B, loop.step)
    return sample(logits_BV, keys_now_B, choice.temperature, choice.top_k, choice.top_p)


def sample_keys(seed: jax.Array, rows_B: jax.Array, num_samples: int) -> jax.Array:
    """A key for each sample of each row, [B * num_samples]; sample i has the same key whatever `num_samples` is."""
    keys_B = row_keys(seed, rows_B)
    keys_BN = jax.vmap(lambda key: jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num_samples)))(keys_B)
    return keys_BN.reshape(-1)


def first_largest(logits_BV: jax.Array) -> jax.Array:
    """Argmax over the last axis, int32, as two reductions: XLA's CPU backend vectorizes these, but not argmax."""
    largest_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
    index_1V = jnp.arange(logits_BV.shape[-1], dtype=jnp.int32)[None, :]
    # NaN equals nothing: such a row returns the last id instead of one outside the vocabulary.
    return jnp.min(jnp.where(logits_BV == largest_B1, index_1V, logits_BV.shape[-1] - 1), axis=-1)
