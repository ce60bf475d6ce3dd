"""Generation: prompts of token ids -> continuations, for both architectures, in one jitted loop with a key-value cache.

    prompts --sorted by length, padded to few shapes--> start_cache --> [ choose a token, decode_step ] until all end

A row's result does not depend on its neighbours: padding is masked, and its random numbers come from the seed and its
row number. The loop stops when every row has ended, which may be before `max_new_tokens`.

Shapes: B rows, P prompt length, T new tokens, V vocabulary.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from t5flan import sharding as sharding_lib
from t5flan.decoding import unrolled
from t5flan.decoding.config import Decoding
from t5flan.decoding.sampling import row_keys, sample
from t5flan.errors import UserError
from t5flan.models.config import ModelConfig
from t5flan.models.model import START_TOKEN, Model

SMALLEST_LENGTH = 32
UNROLLED_LAYERS = 32

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Generation:
    """One continuation.

    Attributes:
        tokens: int32 [T], the new tokens, including the end of sequence if it was reached.
        log_probs: float32 [T], the model's log-probability of each token (before temperature, top-k and top-p).
        ended: whether the end of sequence was reached.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    ended: bool


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    eos_id: int,
    start_id: int | None = START_TOKEN,
    rows: Sequence[int] | None = None,
    prefix_lm: bool = False,
    known_ids: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[Generation]]:
    """Returns `decoding.num_samples` continuations of each prompt, in the order of the prompts.

    Args:
        prompts: token ids. For an encoder-decoder, the encoder's input; for a decoder, the tokens before the new ones,
            without the start token. No id may be 0, which is padding.
        decoding: its max_new_tokens must be set.
        eos_id: ends a row; it is kept as the last token.
        start_id: the decoder's first token; None takes the first token of each prompt (decoder-only models).
        rows: each prompt's row number in the whole input, which with the seed determines its samples; default 0, 1, ...
        prefix_lm: a decoder reads the prompt in both directions.
        known_ids: the size of the vocabulary; rows of the embedding beyond it are never chosen. Default: all are.
        progress: called with the number of finished prompts after each batch.

    Raises:
        UserError: max_new_tokens is None, or a prompt contains a token id that the model does not have.
    """
    if decoding.max_new_tokens is None:
        raise UserError('max_new_tokens=None, expected an integer of 1 or more. Set max_new_tokens.')
    _check_prompts(model.config, prompts, start_id)
    if start_id is None:
        starts, prompts = [prompt[0] for prompt in prompts], [prompt[1:] for prompt in prompts]
    else:
        starts = [start_id] * len(prompts)
    sharding = sharding_lib.current()
    run = functools.partial(
        generate_batch,
        model,
        seed=decoding.seed,
        max_new_tokens=np.int32(decoding.max_new_tokens),
        eos_id=np.int32(eos_id),
        known_ids=np.int32(model.config.vocab_size if known_ids is None else known_ids),
        temperature=np.float32(decoding.temperature or 1.0),
        top_k=np.int32(decoding.top_k),
        top_p=np.float32(decoding.top_p),
        greedy=decoding.greedy,
        capacity=rounded_length(decoding.max_new_tokens),
        num_samples=decoding.num_samples,
        prefix_lm=prefix_lm,
        placement=None if sharding is None else (sharding.mesh, tuple(sorted(sharding.rules.items()))),
    )
    rows = range(len(prompts)) if rows is None else rows
    batches = _batches(model.config, prompts, rows, starts, decoding.batch_size)
    outputs = ((batch.chosen, run(batch.tokens_BP, batch.rows_B, batch.starts_B)) for batch in batches)
    results: list[list[Generation]] = [[] for _ in prompts]
    done = 0
    for chosen, output in one_ahead(outputs):
        samples = _generations(jax.device_get(output), eos_id)
        for place, i in enumerate(chosen):
            results[i] = samples[place * decoding.num_samples : (place + 1) * decoding.num_samples]
        done += len(chosen)
        if progress is not None:
            progress(done)
    return results


def _check_prompts(config: ModelConfig, prompts: Sequence[Sequence[int]], start_id: int | None) -> None:
    for i, prompt in enumerate(prompts):
        ids_P = np.asarray(prompt, np.int64)
        if ids_P.size and not (ids_P.min() > 0 and ids_P.max() < config.vocab_size):
            raise UserError(
                f'prompt {i} has token ids from {ids_P.min()} to {ids_P.max()}; the model has 1 to '
                f'{config.vocab_size - 1}. The vocabulary is not the one the model was trained with.'
            )
        if start_id is None and not ids_P.size:
            raise UserError(f'prompt {i} is empty: start_id=None reads the start token from it. Set start_id.')
    if start_id is None and config.architecture != 'decoder_only':
        raise UserError('start_id=None needs a decoder-only model: here the encoder reads the prompt. Set start_id.')


class _Batch(NamedTuple):
    chosen: list[int]  # indices of the prompts
    tokens_BP: Any
    rows_B: Any
    starts_B: Any


def _batches(
    config: ModelConfig, prompts: Sequence[Sequence[int]], rows: Sequence[int], starts: Sequence[int], batch_size: int
) -> Iterator[_Batch]:
    """Batches in few shapes, the longest prompts first."""
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
            first = 0 if config.architecture == 'encoder_decoder' else tokens_BP.shape[1] - len(prompt)
            tokens_BP[place, first : first + len(prompt)] = prompt
            rows_B[place], starts_B[place] = rows[i], starts[i]
        arrays = (tokens_BP, rows_B, starts_B)
        if sharding is not None:
            arrays = tuple(jax.device_put(x, sharding.named(('batch', None)[: x.ndim], x.shape)) for x in arrays)
        yield _Batch(chosen, *arrays)


def rounded_length(length: int) -> int:
    """Rounds up to one of 32, 64, 128, 256, 384, 512, 768, 1024, ...: with few shapes, little is compiled.

    >>> [rounded_length(n) for n in (1, 33, 200, 300, 512, 600, 5000)]
    [32, 64, 256, 384, 512, 768, 6144]
    """
    size = SMALLEST_LENGTH
    while size < length:
        size *= 2
    three_quarters = size * 3 // 4
    return three_quarters if size > 256 and length <= three_quarters else size


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The items, each yielded after the next one was started: the device computes while the caller reads."""
    waiting: collections.deque[T] = collections.deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


class _Loop(NamedTuple):
    """State of the decoding loop."""

    step: jax.Array  # number of tokens written
    tokens_BT: jax.Array
    log_probs_BT: jax.Array
    ended_B: jax.Array
    cache: Any


@functools.partial(jax.jit, static_argnames=('greedy', 'capacity', 'num_samples', 'prefix_lm', 'placement'))
def generate_batch(
    model: Model,
    tokens_BP: jax.Array,
    rows_B: jax.Array,
    starts_B: jax.Array,
    *,
    seed: jax.Array,
    max_new_tokens: jax.Array,
    eos_id: jax.Array,
    known_ids: jax.Array,
    temperature: jax.Array,
    top_k: jax.Array,
    top_p: jax.Array,
    greedy: bool,
    capacity: int,
    num_samples: int,
    prefix_lm: bool,
    placement: Any = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Decodes one batch on the device: tokens and log-probabilities [B * num_samples, T], lengths [B * num_samples].

    Args:
        tokens_BP: prompts padded with 0 (on the right for an encoder, on the left for a decoder).
        rows_B: row numbers; -1 marks a row that only fills up the batch.
        starts_B: the first token each row's decoder reads.
        temperature, top_k, top_p: as in `Decoding`. They are traced: other values do not recompile.
        capacity: T, the length of the returned arrays; at least `max_new_tokens`.
        placement: the mesh and axis rules of the enclosing `sharding.use`: the compiled program depends on them.
    """
    options = {'prefix_lm': prefix_lm} if model.config.architecture == 'decoder_only' else {}
    logits_BV, cache = model.start_cache(tokens_BP, capacity, start_id=starts_B, **options)
    keys_B = None if greedy else sample_keys(seed, rows_B, num_samples)
    if num_samples > 1:
        repeated_B = jnp.repeat(jnp.arange(tokens_BP.shape[0]), num_samples)
        logits_BV, cache, rows_B = logits_BV[repeated_B], cache.take(repeated_B), rows_B[repeated_B]

    def choose(logits_BV: jax.Array, step: jax.Array) -> jax.Array:
        logits_BV = jnp.where(jnp.arange(logits_BV.shape[-1]) < known_ids, logits_BV, -jnp.inf)
        if keys_B is None:
            return first_largest(logits_BV)
        keys_now_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys_B, step)
        return sample(logits_BV, keys_now_B, temperature, top_k, top_p)

    def write(loop: _Loop, logits_BV: jax.Array, cache: Any) -> _Loop:
        chosen_B = choose(logits_BV, loop.step)
        picked_B = jnp.take_along_axis(logits_BV, chosen_B[:, None], axis=-1)[:, 0]
        log_probs_B = picked_B - jax.nn.logsumexp(logits_BV, axis=-1)
        chosen_B = jnp.where(loop.ended_B, 0, chosen_B)
        log_probs_B = jnp.where(loop.ended_B, 0.0, log_probs_B)
        put = lambda x_BT, new_B: jax.lax.dynamic_update_slice_in_dim(x_BT, new_B[:, None], loop.step, axis=1)
        tokens_BT, log_probs_BT = put(loop.tokens_BT, chosen_B), put(loop.log_probs_BT, log_probs_B)
        return _Loop(loop.step + 1, tokens_BT, log_probs_BT, loop.ended_B | (chosen_B == eos_id), cache)

    decode_step: Callable[[Any, jax.Array], tuple[jax.Array, Any]] = model.decode_step
    layout: Any = cache
    if unrolls(model.config):
        decode_step, layout = unrolled.unroll(model, cache)

    def body(loop: _Loop) -> _Loop:
        last_B1 = jax.lax.dynamic_slice_in_dim(loop.tokens_BT, loop.step - 1, 1, axis=1)
        return write(loop, *decode_step(loop.cache, last_B1))

    shape = (rows_B.shape[0], capacity)
    empty = _Loop(jnp.int32(0), jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32), rows_B < 0, None)
    loop = write(empty, logits_BV, layout)  # the first token comes from the prompt's logits
    loop = jax.lax.while_loop(lambda loop: (loop.step < max_new_tokens) & ~jnp.all(loop.ended_B), body, loop)
    # A row's length counts its tokens up to the end of sequence, after which only padding is written.
    is_end_BT = loop.tokens_BT == eos_id
    before_end_BT = (jnp.cumsum(is_end_BT, axis=1) - is_end_BT) == 0
    written_T = jnp.arange(capacity) < loop.step
    return loop.tokens_BT, loop.log_probs_BT, jnp.sum(before_end_BT & written_T[None, :], axis=1)


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


def unrolls(config: ModelConfig) -> bool:
    """Whether the decoding step is unrolled over layers: on a CPU, unless compiling that would take long."""
    return sharding_lib.platform() == 'cpu' and config.num_decoder_layers <= UNROLLED_LAYERS


def _generations(output: tuple[np.ndarray, np.ndarray, np.ndarray], eos_id: int) -> list[Generation]:
    """One `Generation` for each row of a batch, fillers included."""
    return [
        Generation(tokens_T[:length], log_probs_T[:length], bool(length and tokens_T[length - 1] == eos_id))
        for tokens_T, log_probs_T, length in zip(*output, strict=True)
    ]
