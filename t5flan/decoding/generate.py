"""Prompts of token ids -> continuations, for both architectures: one jitted loop with a cache of keys and values.

    prompts --sorted by length, padded to few shapes--> start_cache --> [ choose a token, decode_step ] until all ended

What a row gets does not depend on its neighbours: padding is masked, and its random numbers come from the seed and the
row's own number. The loop stops when every row has ended, not at the longest allowed length.

Shapes: B rows, P prompt length, T new tokens, V vocabulary.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from t5flan import sharding as sharding_lib
from t5flan.decoding import unrolled
from t5flan.decoding.sampling import Sampling, row_keys, sample
from t5flan.errors import UserError
from t5flan.models.config import ModelConfig
from t5flan.models.model import START_TOKEN, Model

SMALLEST_LENGTH = 32
UNROLLED_LAYERS = 32


@dataclasses.dataclass(frozen=True)
class Generation:
    """One continuation.

    Attributes:
        tokens: int32 [T], the new tokens with the end of sequence, if it was reached.
        log_probs: float32 [T], the model's log-probability of each (before temperature, top-k and top-p).
        ended: whether the end of sequence was reached within the allowed length.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    ended: bool


class _Loop(NamedTuple):
    """What the decoding loop carries."""

    step: jax.Array  # how many tokens are written
    tokens_BT: jax.Array
    log_probs_BT: jax.Array
    ended_B: jax.Array
    cache: Any


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    *,
    eos_id: int,
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    seed: int = 0,
    num_samples: int = 1,
    rows: Sequence[int] | None = None,
    prefix_lm: bool = False,
    batch_size: int = 32,
    start_id: int | None = START_TOKEN,
    progress: Callable[[int], None] | None = None,
) -> list[list[Generation]]:
    """`num_samples` continuations of each prompt, in the order of the prompts.

    Args:
        prompts: token ids. For an encoder-decoder the encoder's input; for a decoder the tokens before the new ones
            (the start token is put before them by the model). No id may be 0, which is padding.
        eos_id: ends a row; it is kept as the last token.
        start_id: what a decoder reads first; None: the first token of each prompt of a decoder-only model, which then is
            not put before it.
        rows: each prompt's number in the whole input, which with `seed` decides its random numbers; default 0, 1, 2, …
        prefix_lm: a decoder's prompt is read in both directions.
        batch_size: prompts at a time, over all devices.
        progress: called with the number of prompts done after each batch.

    Raises:
        UserError: a count is not positive, or a prompt's token is not one of the model's.
    """
    _check(model.config, prompts, max_new_tokens, num_samples, batch_size)
    starts = [start_id] * len(prompts)
    if start_id is None:
        _check_starts(model.config, prompts)
        starts, prompts = [prompt[0] for prompt in prompts], [prompt[1:] for prompt in prompts]
    rows = range(len(prompts)) if rows is None else rows
    results: list[list[Generation]] = [[] for _ in prompts]
    pending: tuple[list[int], Any] | None = None
    done = 0
    for chosen, tokens_BP, rows_B, starts_B in _batches(model.config, prompts, rows, starts, batch_size):
        out = generate_batch(
            model,
            tokens_BP,
            rows_B,
            seed,
            np.int32(max_new_tokens),
            np.int32(eos_id),
            starts_B,
            sampling=_dynamic(sampling),
            greedy=sampling.greedy,
            room=rounded_length(max_new_tokens),
            num_samples=num_samples,
            prefix_lm=prefix_lm,
            placement=_placement(),
        )
        if pending is not None:  # one batch is computed while the one before is read
            done += _collect(*pending, eos_id, num_samples, results)
            if progress is not None:
                progress(done)
        pending = chosen, out
    if pending is not None:
        done += _collect(*pending, eos_id, num_samples, results)
        if progress is not None:
            progress(done)
    return results


@functools.partial(jax.jit, static_argnames=('greedy', 'room', 'num_samples', 'prefix_lm', 'placement'))
def generate_batch(
    model: Model,
    tokens_BP: jax.Array,
    rows_B: jax.Array,
    seed: jax.Array,
    max_new_tokens: jax.Array,
    eos_id: jax.Array,
    starts_B: jax.Array,
    *,
    sampling: dict[str, jax.Array],
    greedy: bool,
    room: int,
    num_samples: int,
    prefix_lm: bool,
    placement: Any = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The whole of decoding on the device: tokens and their log-probabilities [B * num_samples, room], lengths [B * num_samples].

    Args:
        tokens_BP: prompts padded with 0 (at the right for an encoder, at the left for a decoder).
        rows_B: the rows' numbers; -1 marks a row that only fills up the batch.
        starts_B: what each row's decoder reads first.
        sampling: temperature, top_k and top_p, as arrays: other values compile nothing anew.
        room: places for new tokens in the arrays; at least `max_new_tokens`.
        placement: names the mesh and rules in whose `sharding.use` this is called, so that another's program is not taken.
    """
    options = {'prefix_lm': prefix_lm} if model.config.architecture == 'decoder_only' else {}
    logits_BV, cache = model.start_cache(tokens_BP, room, start_id=starts_B, **options)
    keys_B = None if greedy else sample_keys(seed, rows_B, num_samples)
    if num_samples > 1:
        repeated_B = jnp.repeat(jnp.arange(tokens_BP.shape[0]), num_samples)
        logits_BV, cache, rows_B = logits_BV[repeated_B], cache.take(repeated_B), rows_B[repeated_B]

    def choose(logits_BV: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
        if greedy:
            chosen_B = first_largest(logits_BV)
        else:
            keys_now_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, step)
            chosen_B = sample(logits_BV, keys_now_B, **sampling)
        picked_B = jnp.take_along_axis(logits_BV, chosen_B[:, None], axis=-1)[:, 0]
        return chosen_B, picked_B - jax.nn.logsumexp(logits_BV, axis=-1)

    def write(loop: _Loop, logits_BV: jax.Array, cache: Any) -> _Loop:
        chosen_B, log_probs_B = choose(logits_BV, loop.step)
        chosen_B = jnp.where(loop.ended_B, 0, chosen_B)
        log_probs_B = jnp.where(loop.ended_B, 0.0, log_probs_B)
        put = lambda x_BT, new_B: jax.lax.dynamic_update_slice_in_dim(x_BT, new_B[:, None], loop.step, axis=1)
        return _Loop(
            loop.step + 1,
            put(loop.tokens_BT, chosen_B),
            put(loop.log_probs_BT, log_probs_B),
            loop.ended_B | (chosen_B == eos_id),
            cache,
        )

    decode_step = model.decode_step
    if unrolls(model.config):
        decode_step, cache = unrolled.unroll(model, cache)

    def body(loop: _Loop) -> _Loop:
        last_B1 = jax.lax.dynamic_slice_in_dim(loop.tokens_BT, loop.step - 1, 1, axis=1)
        return write(loop, *decode_step(loop.cache, last_B1))

    count = rows_B.shape[0]
    # The first token comes from the prompt, so the loop reads one token fewer than it writes.
    loop = write(
        _Loop(
            jnp.int32(0), jnp.zeros((count, room), jnp.int32), jnp.zeros((count, room), jnp.float32), rows_B < 0, None
        ),
        logits_BV,
        cache,
    )
    loop = jax.lax.while_loop(lambda loop: (loop.step < max_new_tokens) & ~jnp.all(loop.ended_B), body, loop)
    # A row's length is what stands before its padding: an ended row wrote 0 (padding) after its end.
    ends_BT = jnp.cumsum(loop.tokens_BT == eos_id, axis=1)
    before_end_BT = (ends_BT - (loop.tokens_BT == eos_id)) == 0
    written_T = jnp.arange(room) < loop.step
    return loop.tokens_BT, loop.log_probs_BT, jnp.sum(before_end_BT & written_T[None, :], axis=1)


def sample_keys(seed: jax.Array, rows_B: jax.Array, num_samples: int) -> jax.Array:
    """A key for each sample of each row, [B * num_samples]; the first is the same whatever `num_samples` is."""
    keys_B = row_keys(seed, rows_B)
    keys_BN = jax.vmap(lambda key: jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num_samples)))(keys_B)
    return keys_BN.reshape(-1)


def first_largest(logits_BV: jax.Array) -> jax.Array:
    """argmax over the last axis, int32: the first of equals. Two plain reductions, which XLA's CPU vectorizes; its argmax is not."""
    largest_B1 = jnp.max(logits_BV, axis=-1, keepdims=True)
    index_1V = jnp.arange(logits_BV.shape[-1], dtype=jnp.int32)[None, :]
    # NaN equals nothing: such a row takes the last word rather than one outside of the vocabulary.
    return jnp.min(jnp.where(logits_BV == largest_B1, index_1V, logits_BV.shape[-1] - 1), axis=-1)


def unrolls(config: ModelConfig) -> bool:
    """Whether the decoding step is straight code rather than a scan: on a CPU, unless compiling that would take long."""
    return sharding_lib.platform() == 'cpu' and config.num_decoder_layers <= UNROLLED_LAYERS


def rounded_length(length: int) -> int:
    """The next of 32, 64, 128, 256, 384, 512, 768, 1024, …: few shapes, so that little is compiled.

    >>> [rounded_length(n) for n in (1, 33, 200, 300, 512, 600, 5000)]
    [32, 64, 256, 384, 512, 768, 6144]
    """
    size = SMALLEST_LENGTH
    while size < length:
        size *= 2
    three_quarters = size * 3 // 4
    return three_quarters if size > 256 and length <= three_quarters else size


def _batches(
    config: ModelConfig, prompts: Sequence[Sequence[int]], rows: Sequence[int], starts: Sequence[int], batch_size: int
) -> Iterator[tuple[list[int], Any, Any, Any]]:
    """(which prompts, their tokens [B, P], rows' numbers [B] and start tokens [B]), the longest first, in few shapes."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    sharding = sharding_lib.current()
    parts = 1 if sharding is None else sharding.size('batch')
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        height = min(batch_size, 1 << (len(chosen) - 1).bit_length())
        height = -(-height // parts) * parts
        tokens_BP = np.zeros((height, rounded_length(len(prompts[chosen[0]]))), np.int32)
        rows_B, starts_B = np.full(height, -1, np.int32), np.full(height, START_TOKEN, np.int32)
        for place, i in enumerate(chosen):
            prompt = np.asarray(prompts[i], np.int32)
            if config.architecture == 'encoder_decoder':
                tokens_BP[place, : len(prompt)] = prompt
            else:
                tokens_BP[place, tokens_BP.shape[1] - len(prompt) :] = prompt
            rows_B[place], starts_B[place] = rows[i], starts[i]
        if sharding is not None:
            tokens_BP, rows_B, starts_B = (
                jax.device_put(x, sharding.named(('batch', None)[: x.ndim], x.shape))
                for x in (tokens_BP, rows_B, starts_B)
            )
        yield chosen, tokens_BP, rows_B, starts_B


def _collect(
    chosen: list[int], out: tuple[jax.Array, ...], eos_id: int, num_samples: int, results: list[list[Generation]]
) -> int:
    """Waits for a batch and files its rows; returns how many prompts it held."""
    tokens_BT, log_probs_BT, lengths_B = jax.device_get(out)
    for place, i in enumerate(chosen):
        for row in range(place * num_samples, (place + 1) * num_samples):
            length = int(lengths_B[row])
            results[i].append(
                Generation(
                    tokens_BT[row, :length], log_probs_BT[row, :length], bool(tokens_BT[row, length - 1] == eos_id)
                )
            )
    return len(chosen)


def _placement() -> Any:
    sharding = sharding_lib.current()
    return None if sharding is None else (sharding.mesh, tuple(sorted(sharding.rules.items())))


def _dynamic(sampling: Sampling) -> dict[str, Any]:
    return {
        'temperature': np.float32(sampling.temperature or 1.0),
        'top_k': np.int32(sampling.top_k),
        'top_p': np.float32(sampling.top_p),
    }


def _check_starts(config: ModelConfig, prompts: Sequence[Sequence[int]]) -> None:
    if config.architecture != 'decoder_only':
        raise UserError(
            "start_id=None takes a prompt's first token, which is the encoder's in an encoder-decoder. Set start_id."
        )
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise UserError(
                f'prompt {i} is empty: with start_id=None its first token is the start token. Set start_id.'
            )


def _check(
    config: ModelConfig, prompts: Sequence[Sequence[int]], max_new_tokens: int, num_samples: int, batch_size: int
) -> None:
    for name, value in (('max_new_tokens', max_new_tokens), ('num_samples', num_samples), ('batch_size', batch_size)):
        if int(value) != value or value < 1:
            raise UserError(f'{name}={value}, expected a count of 1 or more. Set --{name}.')
    for i, prompt in enumerate(prompts):
        ids_P = np.asarray(prompt, np.int64)
        if ids_P.size and not (ids_P.min() > 0 and ids_P.max() < config.vocab_size):
            raise UserError(
                f'prompt {i} holds token ids from {ids_P.min()} to {ids_P.max()}; the model knows 1 to '
                f'{config.vocab_size - 1}. The vocabulary is not the one the model was trained with.'
            )
