"""Generation: prompts of token ids -> continuations, for both architectures, in jitted loops with a key-value cache.

    prompts --sorted by length, padded to few shapes--> start_cache --> [ choose a token, decode_step ] until all end

A row's result does not depend on its neighbours: padding is masked, and its random numbers come from the seed and its
row number. The loop stops when every row has ended, which may be before `max_new_tokens`.

`decoding/sampled.py` takes one token after the other, `decoding/beam.py` searches with beams.

Shapes: B rows, P prompt length, T new tokens.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from t5flan import sharding as sharding_lib
from t5flan.decoding import beam, sampled, steps
from t5flan.decoding.config import Decoding
from t5flan.errors import UserError
from t5flan.models.config import ModelConfig
from t5flan.models.model import START_TOKEN, Model

SMALLEST_LENGTH = 32

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Generation:
    """One continuation.

    Attributes:
        tokens: int32 [T], the new tokens, including the end of sequence if it was reached.
        log_probs: float32 [T], the model's log-probability of each token (before temperature, top-k and top-p).
        ended: whether the end of sequence was reached.
        score: of a beam, see `decoding/beam.py`; otherwise the sum of `log_probs`.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    ended: bool
    score: float


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
    """Returns the continuations of each prompt, in the order of the prompts.

    These are its `decoding.num_samples` samples, or its beams, the best first. T5X's convention returns fewer than
    `decoding.num_beams` if fewer have ended.

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
    known_ids = model.config.vocab_size if known_ids is None else known_ids
    program = _Program(model, decoding, eos_id, known_ids, prefix_lm, steps.prepare(model), sharding_lib.placement())
    run = program.sampled if decoding.num_beams == 1 else program.beams
    rows = range(len(prompts)) if rows is None else rows
    batches = _batches(model.config, prompts, rows, starts, decoding.batch_size)
    outputs = ((batch.chosen, run(batch)) for batch in batches)
    results: list[list[Generation]] = [[] for _ in prompts]
    done = 0
    for chosen, output in _one_ahead(outputs):
        for i, generations in zip(chosen, _generations(jax.device_get(output), eos_id), strict=False):
            results[i] = generations
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


def _one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The items, each yielded after the next one was started: the device computes while the caller reads."""
    waiting: collections.deque[T] = collections.deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


class _Output(NamedTuple):
    """What a batch returns, for N continuations of each prompt."""

    tokens_BNT: jax.Array
    log_probs_BNT: jax.Array
    lengths_BN: jax.Array
    scores_BN: jax.Array | None


@dataclasses.dataclass(frozen=True)
class _Program:
    """Runs batches on the device, without waiting for the result."""

    model: Model
    decoding: Decoding
    eos_id: int
    known_ids: int
    prefix_lm: bool
    layers: steps.Layers
    placement: Any

    @property
    def _limit(self) -> int:
        assert self.decoding.max_new_tokens is not None  # checked by `generate`
        return self.decoding.max_new_tokens

    def sampled(self, batch: _Batch) -> _Output:
        """Greedy decoding, or samples."""
        decoding = self.decoding
        choice = sampled.Choice(
            np.int32(self.eos_id),
            np.int32(self.known_ids),
            np.float32(decoding.temperature or 1.0),
            np.int32(decoding.top_k),
            np.float32(decoding.top_p),
        )
        loop = sampled.begin(
            self.model,
            *batch[1:],
            choice,
            np.int32(decoding.seed),
            greedy=decoding.greedy,
            capacity=rounded_length(self._limit),
            num_samples=decoding.num_samples,
            prefix_lm=self.prefix_lm,
            placement=self.placement,
        )
        loop = sampled.advance(self.model, self.layers, loop, choice, np.int32(self._limit), placement=self.placement)
        by_prompt = lambda x: x.reshape(-1, decoding.num_samples, *x.shape[1:])
        return _Output(*map(by_prompt, (loop.tokens_BT, loop.log_probs_BT, loop.lengths_B)), None)

    def beams(self, batch: _Batch) -> _Output:
        """Beam search."""
        decoding = self.decoding
        rules = beam.Rules(decoding.num_beams, decoding.beam_scoring, decoding.early_stopping)
        limits = beam.Limits(
            np.int32(self.eos_id), np.int32(self.known_ids), np.float32(decoding.length_penalty), np.int32(self._limit)
        )
        search = beam.begin(
            self.model,
            *batch[1:],
            limits,
            rules=rules,
            capacity=rounded_length(self._limit),
            prefix_lm=self.prefix_lm,
            placement=self.placement,
        )
        search = beam.advance(self.model, self.layers, search, limits, rules=rules, placement=self.placement)
        return _Output(*search.ended)


def _generations(output: _Output, eos_id: int) -> Iterator[list[Generation]]:
    """The continuations of each prompt of a batch, fillers included."""
    tokens_BNT, log_probs_BNT, lengths_BN, scores_BN = output
    for b, lengths_N in enumerate(lengths_BN):
        generations = []
        for n, length in enumerate(lengths_N):
            tokens_T, log_probs_T = tokens_BNT[b, n, :length], log_probs_BNT[b, n, :length]
            score = float(log_probs_T.sum() if scores_BN is None else scores_BN[b, n])
            if length:  # 0 in an empty place among beams
                generations.append(Generation(tokens_T, log_probs_T, bool(tokens_T[-1] == eos_id), score))
        yield generations
