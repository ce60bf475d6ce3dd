"""Log-likelihoods of continuations. Each distinct context is read once: all its continuations share the cache.

    contexts --the longest first, padded to few shapes--> start_cache --> logits of the first token, cache
    continuations --padded on the right--> read_after(cache) --> logits of their other tokens

The options of a question share their context, so a question costs one context and the few tokens of each option; those
of one token cost nothing more.

Shapes: B contexts, P context length, R continuations, T tokens of a continuation after its first, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t5flan import sharding as sharding_lib
from t5flan.adapters.rows import choose
from t5flan.decoding.generate import one_ahead
from t5flan.decoding.sampled import first_largest
from t5flan.decoding.steps import Sizes, power_of_two
from t5flan.errors import UserError
from t5flan.models.cache import Cache
from t5flan.models.model import START_TOKEN, Model

Ids = Sequence[int]

_TOKENS_OF_A_ROW = 128
"""A pass over continuations reads as many tokens for each row of `batch_size`: enough that reading the parameters takes
little of its time, and not so many that short continuations are padded to the length of a long one."""
_ROWS_OF_A_ROW = 8
"""At most as many continuations are in a pass for each row of `batch_size`: they repeat the cache of their context."""
_LOGITS_OF_A_CHUNK = 256
"""Positions whose logits are in memory together."""
_LENGTHS = Sizes(least=1, powers=16, parts=4)
"""Of contexts and of continuations."""
_ROWS = Sizes(least=1, powers=2, parts=2)


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """The likelihood of a continuation.

    Attributes:
        log_prob: log p(continuation | context) in nats, the sum over its tokens.
        is_greedy: whether every token is the most likely one, so that greedy decoding writes the continuation.
        correct: number of its tokens that are the most likely ones after the true tokens before (teacher forcing).
    """

    log_prob: float
    is_greedy: bool
    correct: int


def likelihoods(
    model: Model,
    contexts: Sequence[Ids],
    continuations: Sequence[Ids],
    *,
    start_id: int = START_TOKEN,
    adapters: Sequence[int] | None = None,
    prefix_lm: bool = False,
    batch_size: int = 32,
    progress: Callable[[int], None] | None = None,
) -> list[Likelihood]:
    """Returns the likelihood of each continuation after its context, in the given order.

    Args:
        contexts: token ids. For an encoder-decoder, the encoder's input; for a decoder, all it reads before the
            continuation, a start token included.
        continuations: token ids. No end of sequence is added.
        start_id: the first token that the decoder of an encoder-decoder reads.
        adapters: the number of each pair's adapter in a model of `adapters.rows.stack`, 0 for none; default: none.
        prefix_lm: a decoder reads the context in both directions.
        batch_size: distinct contexts that are read together.
        progress: called with the number of finished continuations after each batch.

    Raises:
        UserError: a continuation or a decoder's context is empty, or contains an id that the model does not have.
    """
    _check(model, contexts, continuations)
    found: dict[_Context, dict[tuple[int, ...], list[int]]] = {}
    for i, (context, continuation) in enumerate(zip(contexts, continuations, strict=True)):
        one = _Context(tuple(context), None if adapters is None else adapters[i])
        found.setdefault(one, {}).setdefault(tuple(continuation), []).append(i)
    order = sorted(found, key=lambda context: (-len(context.ids), context))
    results: list[Likelihood | None] = [None] * len(contexts)
    batches = (order[start : start + batch_size] for start in range(0, len(order), batch_size))
    scored = ((chosen, _score(model, chosen, found, start_id, prefix_lm, batch_size)) for chosen in batches)
    done = 0
    for chosen, passes in one_ahead(scored):
        total: dict[_Continuation, tuple[float, int]] = {}
        for rows, output in passes:
            for row, log_prob, correct in zip(rows, *sharding_lib.fetch(output)):
                before = total.get(row, (0.0, 0))
                total[row] = before[0] + float(log_prob), before[1] + int(correct)
        for row, (log_prob, correct) in total.items():
            for i in found[chosen[row.row]][row.ids]:
                results[i] = Likelihood(log_prob, correct == len(row.ids), correct)
                done += 1
        if progress is not None:
            progress(done)
    return [one for one in results if one is not None]


def rolling_windows(ids: Ids, first_id: int, max_length: int) -> Iterator[tuple[list[int], list[int]]]:
    """Splits a text of any length into (context, continuation) pairs whose likelihoods add up to that of the text.

    Every token is predicted once, and a pair has at most `max_length` + 1 ids. The first pair begins with `first_id`;
    each later one with the last id before it; the last one takes as much context as fits. This is lm-eval's
    `loglikelihood_rolling`.

    >>> list(rolling_windows([1, 2, 3, 4, 5, 6, 7, 8], 0, 3))
    [([0], [1, 2, 3]), ([3], [4, 5, 6]), ([5, 6], [7, 8])]
    """
    ids = [first_id, *ids]
    for start in range(1, len(ids), max_length):
        end = min(start + max_length, len(ids))
        yield ids[max(0, end - 1 - max_length) : start], ids[start:end]


class _Context(NamedTuple):
    """A context, and the number of its adapter; None in a model without any."""

    ids: tuple[int, ...]
    adapter: int | None


class _Continuation(NamedTuple):
    """A continuation, and the row of its context in the batch."""

    row: int
    ids: tuple[int, ...]


def _score(
    model: Model,
    contexts: Sequence[_Context],
    continuations: dict[_Context, dict[tuple[int, ...], list[int]]],
    start_id: int,
    prefix_lm: bool,
    batch_size: int,
) -> list[tuple[list[_Continuation], tuple[jax.Array, jax.Array]]]:
    """Scores one batch: passes over continuations, and the log-probability and right tokens of each."""
    placement = sharding_lib.placement()
    rows = [_Continuation(row, ids) for row, context in enumerate(contexts) for ids in continuations[context]]
    inputs = _context_arrays(model, [context.ids for context in contexts], start_id, _rounded_rows(len(contexts)))
    adapters_B = None
    if contexts[0].adapter is not None:
        adapters_B = _filled([context.adapter or 0 for context in contexts], len(inputs[0]))
    reader = model if adapters_B is None else choose(model, adapters_B)
    logits_BV, cache = _read_contexts(reader, *inputs, prefix_lm=prefix_lm, placement=placement)
    firsts = _filled([one.ids[0] for one in rows], power_of_two(len(rows)))
    places = _filled([one.row for one in rows], power_of_two(len(rows)))
    passes = [(rows, _score_first(logits_BV, places, firsts))]
    longer = sorted((one for one in rows if len(one.ids) > 1), key=lambda one: -len(one.ids))
    while longer:
        width = _LENGTHS.rounded(len(longer[0].ids) - 1)
        count = max(1, min(_TOKENS_OF_A_ROW * batch_size // width, _ROWS_OF_A_ROW * batch_size))
        now, longer = longer[:count], longer[count:]
        height = _rounded_rows(len(now))
        tokens_RT, targets_RT = np.zeros((height, width), np.int32), np.full((height, width), -1, np.int32)
        for r, one in enumerate(now):
            tokens_RT[r, : len(one.ids) - 1], targets_RT[r, : len(one.ids) - 1] = one.ids[:-1], one.ids[1:]
        places = _filled([one.row for one in now], height)
        adapters_R = None if adapters_B is None else adapters_B[places]
        arrays = (places, tokens_RT, targets_RT, adapters_R)
        passes.append((now, _score_rest(model, cache, *arrays, placement=placement)))
    return passes


def _context_arrays(model: Model, contexts: Sequence[Ids], start_id: int, height: int) -> tuple[np.ndarray, ...]:
    """Tokens [B, P], the first token that each row's decoder reads [B], and how much of it is padding [B]."""
    decoder_only = model.config.architecture == 'decoder_only'
    texts = [context[1:] if decoder_only else context for context in contexts]
    tokens_BP = np.zeros((height, _LENGTHS.rounded(max(map(len, texts)))), np.int32)
    starts_B, pad_B = np.full(height, start_id, np.int32), np.full(height, tokens_BP.shape[1], np.int32)
    for row, (context, text) in enumerate(zip(contexts, texts)):
        pad_B[row] = tokens_BP.shape[1] - len(text)
        first = pad_B[row] if decoder_only else 0
        tokens_BP[row, first : first + len(text)] = text
        if decoder_only:
            starts_B[row] = context[0]
    return tokens_BP, starts_B, pad_B


@functools.partial(jax.jit, static_argnames=('prefix_lm', 'placement'))
def _read_contexts(
    model: Model, tokens_BP: jax.Array, starts_B: jax.Array, pad_B: jax.Array, *, prefix_lm: bool, placement: Any
) -> tuple[jax.Array, Cache]:
    """Logits [B, V] of the first token of a continuation, and the cache of the contexts."""
    options = {'prefix_lm': prefix_lm, 'pad_B': pad_B} if model.config.architecture == 'decoder_only' else {}
    return model.start_cache(tokens_BP, 0, start_id=starts_B, **options)


@jax.jit
def _score_first(logits_BV: jax.Array, rows_R: jax.Array, targets_R: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Log-probability of each continuation's first token, and whether it is the most likely one; [R] each."""
    log_probs_B, best_B = logits_BV - jax.nn.logsumexp(logits_BV, axis=-1, keepdims=True), first_largest(logits_BV)
    return log_probs_B[rows_R, targets_R], best_B[rows_R] == targets_R


@functools.partial(jax.jit, static_argnames='placement')
def _score_rest(
    model: Model,
    cache: Cache,
    rows_R: jax.Array,
    tokens_RT: jax.Array,
    targets_RT: jax.Array,
    adapters_R: jax.Array | None,
    *,
    placement: Any,
) -> tuple[jax.Array, jax.Array]:
    """Log-probability, and number of right tokens, of the tokens after the first; a target of -1 is padding."""
    reader = model if adapters_R is None else choose(model, adapters_R)
    x_RTD = reader.decoder.read_after(reader.token_embedder(tokens_RT), cache, rows_R)

    def chunk(one: tuple[jax.Array, jax.Array, jax.Array | None]) -> tuple[jax.Array, jax.Array]:
        x_CD, targets_C, adapters_C = one
        if adapters_C is None:
            logits_CV = model.logits(x_CD[None])[0]
        else:  # the logits may have adapters too
            logits_CV = choose(model, adapters_C).logits(x_CD[:, None])[:, 0]
        picked_C = jnp.take_along_axis(logits_CV, jnp.maximum(targets_C, 0)[:, None], axis=-1)[:, 0]
        return picked_C - jax.nn.logsumexp(logits_CV, axis=-1), first_largest(logits_CV) == targets_C

    count = targets_RT.size
    size = min(count, _LOGITS_OF_A_CHUNK)
    pad = -count % size
    x_NCD = jnp.pad(x_RTD.reshape(count, -1), ((0, pad), (0, 0))).reshape(-1, size, x_RTD.shape[-1])
    targets_NC = jnp.pad(targets_RT.reshape(count), (0, pad), constant_values=-1).reshape(-1, size)
    adapters_NC = None
    if adapters_R is not None:
        adapters_NC = jnp.pad(jnp.repeat(adapters_R, targets_RT.shape[1]), (0, pad)).reshape(-1, size)
    log_probs_NC, best_NC = jax.lax.map(chunk, (x_NCD, targets_NC, adapters_NC))
    log_probs_RT, best_RT = (y.reshape(-1)[:count].reshape(targets_RT.shape) for y in (log_probs_NC, best_NC))
    real_RT = targets_RT >= 0
    return jnp.sum(jnp.where(real_RT, log_probs_RT, 0.0), axis=1), jnp.sum(best_RT & real_RT, axis=1)


def _rounded_rows(rows: int) -> int:
    """Rounds up to one of `_ROWS`, and to a multiple of the mesh's parts of a batch."""
    sharding = sharding_lib.current()
    parts = 1 if sharding is None else sharding.size('batch')
    return -(-_ROWS.rounded(rows) // parts) * parts


def _filled(values: Sequence[int], length: int) -> np.ndarray:
    return np.pad(np.asarray(values, np.int32), (0, length - len(values)))


def _check(model: Model, contexts: Sequence[Ids], continuations: Sequence[Ids]) -> None:
    if len(contexts) != len(continuations):
        raise UserError(f'got {len(contexts)} contexts and {len(continuations)} continuations, expected as many.')
    for i, (context, continuation) in enumerate(zip(contexts, continuations)):
        if not len(continuation):
            raise UserError(f'continuation {i} has no tokens, expected at least one. Remove it.')
        if not len(context) and model.config.architecture == 'decoder_only':
            raise UserError(f'context {i} has no tokens; a decoder needs one to read. Start it with the start token.')
        lowest, highest, size = (
            min(*context, *continuation, 0),
            max(*context, *continuation, 0),
            model.config.vocab_size,
        )
        if lowest < 0 or highest >= size:
            wrong = lowest if lowest < 0 else highest
            fix = 'The vocabulary is not the one the model was trained with.'
            raise UserError(f'request {i} has the token id {wrong}; the model has 0 to {size - 1}. {fix}')
