"""Beam search: the W most likely continuations of each prompt that a search of width W finds.

Every step extends the W running beams of a prompt by their likeliest tokens and keeps 2 W candidates, so that W running
beams remain even if all W best ones end. A candidate that ends joins the W best ended beams by its score, the sum of
its log-probabilities over a power of its length. Two conventions:

    huggingface  sum / length^alpha; only candidates among the W best may end; at the length limit all beams end; the
                 search for a prompt stops when its best running beam cannot beat its worst ended one, judged as if the
                 beam ended now (`early_stopping=False`) or at the length limit ('never'), or as soon as W beams have
                 ended (True). transformers 5.24, `GenerationMixin._beam_search`.
    t5x          sum / ((5 + length) / 6)^alpha (Wu et al. 2016, arXiv:1609.08144); every candidate may end; running
                 beams are returned only for a prompt without ended ones, with the sum as their score; stops as
                 'never'. T5X commit 03d3e28, `decoding.beam_search`.

The length counts the end of sequence but not the start token. Beams of one prompt share the keys and values of the
encoder's output. A prompt's result does not depend on its neighbours: once its search has stopped, it stays as it is.

Shapes: B prompts, W beams, C = 2 W candidates, P prompt length, T new tokens, V vocabulary.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t5flan.decoding import steps
from t5flan.models.model import Model

IMPOSSIBLE = -jnp.inf
"""The score of an empty place among the beams."""


class Rules(NamedTuple):
    """The convention of a search; see above. A static argument."""

    num_beams: int
    scoring: str
    early_stopping: bool | str


class Limits(NamedTuple):
    """Numbers of a search. They are traced: other values do not recompile."""

    eos_id: Any
    known_ids: Any
    length_penalty: Any
    max_new_tokens: Any


class Beams(NamedTuple):
    """W beams of each prompt, the best first.

    Attributes:
        tokens_BWT: int32, 0 after the last token.
        log_probs_BWT: the model's log-probability of each token.
        lengths_BW: int32, the number of tokens; 0 in an empty place.
        scores_BW: of running beams the sum of log-probabilities, of ended ones their score.
    """

    tokens_BWT: jax.Array
    log_probs_BWT: jax.Array
    lengths_BW: jax.Array
    scores_BW: jax.Array

    def take(self, places_BW: jax.Array) -> 'Beams':
        """The beams at these places of each prompt."""
        return jax.tree.map(lambda x: jax.vmap(lambda x_W, places_W: x_W[places_W])(x, places_BW), self)


class Search(NamedTuple):
    """State of the search.

    Attributes:
        step: number of tokens of running beams, scalar int32.
        running: beams that have not ended.
        ended: the best beams that have.
        open_B: whether the search for a prompt goes on.
        cache: keys and values of the running beams so far, with B * W rows.
    """

    step: jax.Array
    running: Beams
    ended: Beams
    open_B: jax.Array
    cache: Any


class Candidates(NamedTuple):
    """The C best continuations of each prompt's running beams by one token, the best first.

    Attributes:
        beams: tokens and sums of log-probabilities, with C in the place of W.
        parents_BC: the beams that they continue.
    """

    beams: Beams
    parents_BC: jax.Array


@functools.partial(jax.jit, static_argnames=('rules', 'capacity', 'prefix_lm', 'placement'))
def begin(
    model: Model,
    prompts: steps.PromptBatch,
    limits: Limits,
    *,
    rules: Rules,
    capacity: int,
    prefix_lm: bool,
    placement: Any = None,
) -> tuple[Search, Candidates]:
    """Reads a batch of prompts -> the search before the first token, and the candidates for it.

    Args:
        capacity: T, the length of the arrays; at least the number of new tokens.
        placement: `sharding.placement()`, which the compiled program depends on.
    """
    logits_BV, cache = steps.start(model, prompts, capacity, prefix_lm)
    width, shape = rules.num_beams, (prompts.rows_B.shape[0], rules.num_beams)
    tokens_BWT, log_probs_BWT = jnp.zeros((*shape, capacity), jnp.int32), jnp.zeros((*shape, capacity), jnp.float32)
    nothing = Beams(tokens_BWT, log_probs_BWT, jnp.zeros(shape, jnp.int32), jnp.full(shape, IMPOSSIBLE))
    # The beams of a prompt start equal: only the first one may continue.
    running = nothing._replace(scores_BW=nothing.scores_BW.at[:, 0].set(0.0))
    search = Search(jnp.int32(0), running, nothing, prompts.rows_B >= 0, cache.repeated(width))
    return search, _candidates(search, jnp.repeat(logits_BV, width, axis=0), limits, rules)


@functools.partial(jax.jit, static_argnames=('rules', 'placement'), donate_argnames='search')
def advance(
    model: Model,
    layers: steps.Layers,
    search: Search,
    candidates: Candidates,
    limits: Limits,
    *,
    rules: Rules,
    placement: Any = None,
) -> Search:
    """Continues the search until it has stopped for every prompt; `layers` are from `steps.prepare`."""

    def body(search: Search) -> Search:
        search, candidates = _propose(model, layers, search, limits, rules)
        return _settle(search, candidates, False, limits, rules)

    search = _settle(search, candidates, False, limits, rules)
    unfinished = lambda search: (search.step < limits.max_new_tokens) & jnp.any(search.open_B)
    return jax.lax.while_loop(unfinished, body, search)


@functools.partial(jax.jit, static_argnames=('rules', 'placement'), donate_argnames='search')
def propose(
    model: Model, layers: steps.Layers, search: Search, limits: Limits, *, rules: Rules, placement: Any = None
) -> tuple[Search, Candidates]:
    """The first half of a step of `advance`: the next candidates."""
    return _propose(model, layers, search, limits, rules)


@functools.partial(jax.jit, static_argnames=('rules', 'placement'), donate_argnames='search')
def settle(
    search: Search,
    candidates: Candidates,
    stopped_BC: jax.Array,
    limits: Limits,
    *,
    rules: Rules,
    placement: Any = None,
) -> Search:
    """The second half: candidates end or run on. Those in `stopped_BC` end as if by the end of sequence."""
    return _settle(search, candidates, stopped_BC, limits, rules)


def result(search: Search, rules: Rules) -> Beams:
    """The beams that a finished search returns; the search has been fetched from the device, as NumPy arrays."""
    if rules.scoring == 'huggingface':
        return search.ended
    none_B = np.all(search.ended.lengths_BW == 0, axis=1)
    choose = lambda x, y: np.where(none_B.reshape(-1, *[1] * (x.ndim - 1)), x, y)
    return jax.tree.map(choose, search.running, search.ended)


def _propose(
    model: Model, layers: steps.Layers, search: Search, limits: Limits, rules: Rules
) -> tuple[Search, Candidates]:
    last_BW1 = jax.lax.dynamic_slice_in_dim(search.running.tokens_BWT, search.step - 1, 1, axis=2)
    logits_RV, cache = steps.step(model, layers, search.cache, last_BW1.reshape(-1, 1))
    return search._replace(cache=cache), _candidates(search, logits_RV, limits, rules)


def _settle(search: Search, candidates: Candidates, stopped_BC: Any, limits: Limits, rules: Rules) -> Search:
    """The candidates that end join the ended beams; the best others run on."""
    beams, ended, width = candidates.beams, search.ended, rules.num_beams
    step = search.step + 1
    last_BC = jax.lax.dynamic_slice_in_dim(beams.tokens_BWT, search.step, 1, axis=2)[..., 0]
    ends_BC = (last_BC == limits.eos_id) | stopped_BC
    may_end_BC = ends_BC
    if rules.scoring == 'huggingface':
        ends_BC |= step >= limits.max_new_tokens
        may_end_BC = ends_BC & (jnp.arange(2 * width) < width)[None, :]
    if rules.early_stopping is True:
        may_end_BC &= ~jnp.all(ended.lengths_BW > 0, axis=1, keepdims=True)
    may_end_BC &= search.open_B[:, None] & (beams.scores_BW > IMPOSSIBLE)

    scores_BC = jnp.where(may_end_BC, beams.scores_BW / _penalty(step, limits, rules), IMPOSSIBLE)
    newly_ended = beams._replace(scores_BW=scores_BC, lengths_BW=jnp.where(may_end_BC, beams.lengths_BW, 0))
    both = jax.tree.map(lambda x, y: jnp.concatenate([x, y], axis=1), ended, newly_ended)
    ended = both.take(jax.lax.top_k(both.scores_BW, width)[1])

    sums_BW, places_BW = jax.lax.top_k(jnp.where(ends_BC, IMPOSSIBLE, beams.scores_BW), width)
    running = beams.take(places_BW)._replace(scores_BW=sums_BW)
    parents_BW = jnp.take_along_axis(candidates.parents_BC, places_BW, axis=1)
    open_B = search.open_B & _may_improve(running, ended, step, limits, rules)
    return Search(step, running, ended, open_B, search.cache.reordered(parents_BW, beams.tokens_BWT.shape[2]))


def _candidates(search: Search, logits_RV: jax.Array, limits: Limits, rules: Rules) -> Candidates:
    """The candidates for the next token from the logits of the R = B * W running beams."""
    running, width = search.running, rules.num_beams
    vocab_size = logits_RV.shape[-1]
    known_RV = jnp.where(jnp.arange(vocab_size) < limits.known_ids, logits_RV, IMPOSSIBLE)
    best_RC, tokens_RC = jax.lax.top_k(known_RV, min(2 * width, vocab_size))
    log_probs_RC = best_RC - jax.nn.logsumexp(logits_RV, axis=-1, keepdims=True)
    each = log_probs_RC.shape[-1]
    sums_BX = (log_probs_RC + running.scores_BW.reshape(-1, 1)).reshape(-1, width * each)
    sums_BC, places_BC = jax.lax.top_k(sums_BX, 2 * width)
    parents_BC = places_BC // each
    of_places = lambda x_RC: jnp.take_along_axis(x_RC.reshape(-1, width * each), places_BC, axis=1)[..., None]
    put = lambda x_BCT, new_BC1: jax.lax.dynamic_update_slice_in_dim(x_BCT, new_BC1, search.step, axis=2)
    parents = running.take(parents_BC)
    tokens_BCT = put(parents.tokens_BWT, of_places(tokens_RC))
    log_probs_BCT = put(parents.log_probs_BWT, of_places(log_probs_RC))
    return Candidates(Beams(tokens_BCT, log_probs_BCT, parents.lengths_BW + 1, sums_BC), parents_BC)


def _penalty(length: Any, limits: Limits, rules: Rules) -> jax.Array:
    """What the sum of log-probabilities of a beam of this length is divided by."""
    length = jnp.asarray(length, jnp.float32)
    return (length if rules.scoring == 'huggingface' else (5.0 + length) / 6.0) ** limits.length_penalty


def _may_improve(running: Beams, ended: Beams, length: jax.Array, limits: Limits, rules: Rules) -> jax.Array:
    """Whether the best running beam of each prompt may still beat its worst ended one, [B]."""
    if rules.scoring == 't5x':
        length = limits.max_new_tokens + 1  # T5X counts the start token here
    elif rules.early_stopping == 'never':
        length = jnp.where(limits.length_penalty > 0, limits.max_new_tokens, length)
    best_B = running.scores_BW[:, 0] / _penalty(length, limits, rules)
    may_improve_B = best_B > jnp.min(ended.scores_BW, axis=1)
    return may_improve_B & ~jnp.all(ended.lengths_BW > 0, axis=1) if rules.early_stopping is True else may_improve_B
