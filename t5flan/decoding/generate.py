"""Generation: prompts of token ids -> continuations, for both architectures, in jitted loops with a key-value cache.

    prompts --sorted by length, padded to few shapes--> start_cache --> [ choose a token, decode_step ] until all end

A row's result does not depend on its neighbours: padding is masked, and its random numbers come from the seed and its
row number. The loop stops when every row has ended, which may be before `max_new_tokens`; on a CPU, a large batch goes
on with fewer rows once half of them have ended (`decoding/compaction.py`).

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
from t5flan.adapters.rows import choose
from t5flan.config.memory import require_memory
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.decoding import beam, compaction, sampled, steps
from t5flan.decoding.config import Decoding
from t5flan.decoding.stopping import CHECK_EVERY, StopStrings
from t5flan.errors import UserError
from t5flan.models.config import ModelConfig
from t5flan.models.model import START_TOKEN, Model

LENGTHS = steps.Sizes(least=32, powers=256, parts=2)
"""Of prompts and of new tokens."""

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Generation:
    """One continuation.

    Attributes:
        tokens: int32 [T], the new tokens, including the end of sequence if it was reached.
        log_probs: float32 [T], the model's log-probability of each token (before temperature, top-k and top-p).
        ended: whether the end of sequence or a stop string was reached.
        score: of a beam, see `decoding/beam.py`; otherwise the sum of `log_probs`.
        before_stop: the text before the stop string that ended it, or None. `tokens` include the stop string.
    """

    tokens: np.ndarray
    log_probs: np.ndarray
    ended: bool
    score: float
    before_stop: str | None = None

    def text(self, vocabulary: Vocabulary) -> str:
        """Its text, without the stop string."""
        return vocabulary.decode(self.tokens) if self.before_stop is None else self.before_stop


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    eos_id: int,
    start_id: int | None = START_TOKEN,
    rows: Sequence[int] | None = None,
    adapters: Sequence[int] | None = None,
    prefix_lm: bool = False,
    known_ids: int | None = None,
    decode: Callable[[Sequence[int]], str] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[list[Generation]]:
    """Returns the continuations of each prompt, in the order of the prompts.

    These are its `decoding.num_samples` samples, or its beams, the best first. T5X's convention returns fewer than
    `decoding.num_beams` if fewer have ended.

    Args:
        prompts: token ids. For an encoder-decoder, the encoder's input, in which no id may be 0: that is padding; for a
            decoder, the tokens before the new ones, without the start token.
        decoding: its max_new_tokens must be set.
        eos_id: ends a row; it is kept as the last token.
        start_id: the decoder's first token; None takes the first token of each prompt (decoder-only models).
        rows: each prompt's row number in the whole input, which with the seed determines its samples; default 0, 1, ...
        adapters: the number of each prompt's adapter in a model of `adapters.rows.stack`, 0 for none; default: none.
        prefix_lm: a decoder reads the prompt in both directions.
        known_ids: the size of the vocabulary; rows of the embedding beyond it are never chosen. Default: all are.
        decode: token ids -> text, to find `decoding.stop` in.
        progress: called with the number of finished prompts after each batch.

    Raises:
        UserError: max_new_tokens is None, there are stop strings but no `decode`, or a prompt contains a token id that
            the model does not have.
    """
    if decoding.max_new_tokens is None:
        raise UserError('max_new_tokens=None, expected an integer of 1 or more. Set max_new_tokens.')
    if decoding.stop and decode is None:
        raise UserError(f'stop={decoding.stop!r} needs the text of tokens. Pass decode=vocabulary.decode.')
    _check_prompts(model.config, prompts, start_id)
    _check_memory(model.config, prompts, decoding)
    if start_id is None:
        starts, prompts = [prompt[0] for prompt in prompts], [prompt[1:] for prompt in prompts]
    else:
        starts = [start_id] * len(prompts)
    program = _Program(
        model,
        decoding,
        decoding.max_new_tokens,
        eos_id,
        model.config.vocab_size if known_ids is None else known_ids,
        prefix_lm,
        steps.prepare(model),
        sharding_lib.placement(),
        StopStrings(decoding.stop, decode) if decode is not None and decoding.stop else None,
    )
    run = program.run_sampled if decoding.num_beams == 1 else program.run_beams
    rows = range(len(prompts)) if rows is None else rows
    batches = _batches(model.config, prompts, rows, starts, adapters, decoding)
    outputs = ((batch.chosen, run(batch)) for batch in batches)
    results: list[list[Generation]] = [[] for _ in prompts]
    done = 0
    for chosen, output in one_ahead(outputs):
        for i, generations in zip(chosen, program.generations(output()), strict=False):
            results[i] = generations
        done += len(chosen)
        if progress is not None:
            progress(done)
    return results


def _check_prompts(config: ModelConfig, prompts: Sequence[Sequence[int]], start_id: int | None) -> None:
    least = 1 if config.architecture == 'encoder_decoder' else 0  # an encoder reads 0 as padding
    for i, prompt in enumerate(prompts):
        ids_P = np.asarray(prompt, np.int64)
        if ids_P.size and not (ids_P.min() >= least and ids_P.max() < config.vocab_size):
            raise UserError(
                f'prompt {i} has token ids from {ids_P.min()} to {ids_P.max()}; the model has {least} to '
                f'{config.vocab_size - 1}. The vocabulary is not the one the model was trained with.'
            )
        if start_id is None and not ids_P.size:
            raise UserError(f'prompt {i} is empty: start_id=None reads the start token from it. Set start_id.')
    if start_id is None and config.architecture != 'decoder_only':
        raise UserError('start_id=None needs a decoder-only model: here the encoder reads the prompt. Set start_id.')


def _check_memory(config: ModelConfig, prompts: Sequence[Sequence[int]], decoding: Decoding) -> None:
    """Requires the memory of the largest batch: keys and values of all positions."""
    height = min(decoding.batch_size, len(prompts))
    rows = height * max(decoding.num_samples, decoding.num_beams)
    new_slots = rows * LENGTHS.rounded(decoding.max_new_tokens or 1)
    slots = new_slots + height * max(map(len, prompts), default=0)
    sharding = sharding_lib.current()
    devices = jax.local_devices()[:1] if sharding is None else list(sharding.mesh.local_devices)
    size = 2 * config.num_decoder_layers * config.kv_heads * config.head_dim * config.itemsize
    share = 1 if sharding is None else sharding.mesh.size
    parts = {'keys and values': slots * size / share, 'tokens': 8.0 * new_slots / share}
    left, where, _ = sharding_lib.memory_left(devices)
    fix = 'Set a smaller max_new_tokens, batch_size, num_samples or num_beams.'
    require_memory(f'max_new_tokens={decoding.max_new_tokens} for {rows} rows at once', parts, left, where, fix)


class _Batch(NamedTuple):
    chosen: list[int]  # indices of the prompts
    new_slots: int  # of the cache, for new tokens
    prompts: steps.PromptBatch
    adapters_B: np.ndarray | None


def _batches(
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    rows: Sequence[int],
    starts: Sequence[int],
    adapters: Sequence[int] | None,
    decoding: Decoding,
) -> Iterator[_Batch]:
    """Batches in few shapes, the longest prompts first. All have the same height: a new one would compile anew."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    sharding = sharding_lib.current()
    parts = 1 if sharding is None else sharding.size('batch')
    height = min(decoding.batch_size, steps.power_of_two(len(order)))
    height = -(-height // parts) * parts
    least = new_slots = LENGTHS.rounded(decoding.max_new_tokens or 1)
    slots = 0
    for start in range(0, len(order), decoding.batch_size):
        chosen = order[start : start + decoding.batch_size]
        tokens_BP = np.zeros((height, LENGTHS.rounded(len(prompts[chosen[0]]))), np.int32)
        if config.architecture == 'decoder_only' and decoding.num_samples == 1:
            slots = _cache_slots(tokens_BP.shape[1] + least, slots)
            new_slots = slots - tokens_BP.shape[1]
        rows_B, starts_B = np.full(height, -1, np.int32), np.full(height, START_TOKEN, np.int32)
        pad_B = np.full(height, tokens_BP.shape[1], np.int32)
        for place, i in enumerate(chosen):
            prompt = np.asarray(prompts[i], np.int32)
            pad_B[place] = tokens_BP.shape[1] - len(prompt)
            first = 0 if config.architecture == 'encoder_decoder' else pad_B[place]
            tokens_BP[place, first : first + len(prompt)] = prompt
            rows_B[place], starts_B[place] = rows[i], starts[i]
        arrays = steps.PromptBatch(tokens_BP, pad_B, rows_B, starts_B)
        if sharding is not None:
            put = lambda x: jax.device_put(x, sharding.named(('batch', None)[: x.ndim], x.shape))
            arrays = steps.PromptBatch(*map(put, arrays))
        adapters_B = None
        if adapters is not None:
            adapters_B = np.zeros(height, np.int32)
            adapters_B[: len(chosen)] = [adapters[i] for i in chosen]
        yield _Batch(chosen, new_slots, arrays, adapters_B)


def _cache_slots(needed: int, previous: int) -> int:
    """The slots of a batch's cache: as in the previous batch, unless that has more than twice as many as are needed.

    >>> _cache_slots(256, 0), _cache_slots(320, 576), _cache_slots(192, 576)
    (256, 576, 192)
    """
    return previous if needed <= previous <= 2 * needed else needed


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """The items, each yielded after the next one was started: the device computes while the caller reads."""
    waiting: collections.deque[T] = collections.deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


class _Output(NamedTuple):
    """What a batch returns, for N continuations of each prompt."""

    tokens_BNT: Any
    log_probs_BNT: Any
    lengths_BN: Any
    scores_BN: Any  # None: the sums of log_probs


@dataclasses.dataclass(frozen=True)
class _Program:
    """Runs batches on the device. Without stop strings it does not wait for the result."""

    model: Model
    decoding: Decoding
    limit: int  # of new tokens
    eos_id: int
    known_ids: int
    prefix_lm: bool
    layers: steps.Layers
    placement: Any
    stops: StopStrings | None

    def for_rows(self, adapters_B: np.ndarray | None) -> '_Program':
        """The program for a batch whose rows have these adapters."""
        if adapters_B is None:
            return self
        model, layers = choose((self.model, self.layers), adapters_B)
        return dataclasses.replace(self, model=model, layers=layers)

    def run_sampled(self, batch: _Batch) -> Callable[[], _Output]:
        """Greedy decoding, or samples."""
        decoding, placement = self.decoding, self.placement
        numbers = np.float32(decoding.temperature or 1.0), np.int32(decoding.top_k), np.float32(decoding.top_p)
        choice = sampled.Choice(np.int32(self.eos_id), np.int32(self.known_ids), *numbers)
        whole = self.for_rows(batch.adapters_B)
        loop = sampled.begin(
            whole.model,
            batch.prompts,
            choice,
            np.int32(decoding.seed),
            greedy=decoding.greedy,
            capacity=LENGTHS.rounded(self.limit),
            new_slots=batch.new_slots,
            num_samples=decoding.num_samples,
            prefix_lm=self.prefix_lm,
            placement=placement,
        )

        def advance(loop: sampled.Loop, until: int, prompts_Q: Any = slice(None)) -> sampled.Loop:
            own = whole if batch.adapters_B is None else self.for_rows(batch.adapters_B[prompts_Q])
            return sampled.advance(own.model, own.layers, loop, choice, np.int32(until), placement=placement)

        def by_prompt(tokens_BT: Any, log_probs_BT: Any, lengths_B: Any) -> _Output:
            of_prompt = lambda x: x.reshape(-1, decoding.num_samples, *x.shape[1:])
            return _Output(of_prompt(tokens_BT), of_prompt(log_probs_BT), of_prompt(lengths_B), None)

        if self.stops is not None or compaction.is_useful(len(batch.prompts.tokens_BP), self.limit):
            results = self._in_parts(loop, advance)
            return lambda: by_prompt(*results)
        loop = advance(loop, self.limit)
        found = loop.tokens_BT, loop.log_probs_BT, loop.lengths_B
        return lambda: by_prompt(*sharding_lib.fetch(found))

    def _in_parts(self, loop: sampled.Loop, advance: Callable[..., sampled.Loop]) -> compaction.Results:
        """Advances a few tokens at a time, ends rows whose text has a stop string, and drops rows that have ended."""
        batch = compaction.Compaction(loop, self.decoding.num_samples, self.limit)
        every = compaction.CHECK_EVERY if self.stops is None else CHECK_EVERY
        until, checked_B = 0, np.zeros(loop.lengths_B.shape, np.int32)
        while True:
            until = min(until + every, self.limit)
            loop = advance(loop, until, batch.prompts_Q)
            if self.stops is not None:
                loop = self._end_at_stops(loop, checked_B, batch.places_R)
            if until == self.limit or sharding_lib.fetch(loop.ended_B).all():
                return batch.results(loop)
            loop = batch.shrink(loop, until)

    def _end_at_stops(self, loop: sampled.Loop, checked_B: np.ndarray, places_R: np.ndarray) -> sampled.Loop:
        """Ends the rows whose text has a stop string. `checked_B` counts the tokens searched, and is updated."""
        assert self.stops is not None
        tokens_RT, lengths_R, ended_R = sharding_lib.fetch((loop.tokens_BT, loop.lengths_B, loop.ended_B))
        lengths_R, stopped_R = self.stops.shorten(tokens_RT, lengths_R, checked_B[places_R])
        checked_B[places_R] = lengths_R
        return loop._replace(
            lengths_B=jax.device_put(lengths_R, loop.lengths_B.sharding),
            ended_B=jax.device_put(ended_R | stopped_R, loop.ended_B.sharding),
        )

    def run_beams(self, batch: _Batch) -> Callable[[], _Output]:
        """Beam search."""
        own = self.for_rows(batch.adapters_B)
        decoding, fixed = self.decoding, (own.model, own.layers)
        rules = beam.Rules(decoding.num_beams, decoding.beam_scoring, decoding.early_stopping)
        numbers = np.float32(decoding.length_penalty), np.int32(self.limit)
        limits = beam.Limits(np.int32(self.eos_id), np.int32(self.known_ids), *numbers)
        static: Any = dict(rules=rules, placement=self.placement)
        capacity = LENGTHS.rounded(self.limit)
        search, candidates = beam.begin(
            own.model, batch.prompts, limits, capacity=capacity, prefix_lm=self.prefix_lm, **static
        )
        if self.stops is None:
            search = beam.advance(*fixed, search, candidates, limits, **static)
        while self.stops is not None:
            tokens_BCT, lengths_BC = sharding_lib.fetch((candidates.beams.tokens_BWT, candidates.beams.lengths_BW))
            stopped_BC = self.stops.stopped(tokens_BCT, lengths_BC)
            search = beam.settle(search, candidates, stopped_BC, limits, **static)
            if lengths_BC.max() >= self.limit or not sharding_lib.fetch(search.open_B).any():
                break
            search, candidates = beam.propose(*fixed, search, limits, **static)
        found = search._replace(cache=None)
        return lambda: _Output(*beam.result(sharding_lib.fetch(found), rules))

    def generations(self, output: _Output) -> Iterator[list[Generation]]:
        """The continuations of each prompt of a batch, fillers included."""
        tokens_BNT, log_probs_BNT, lengths_BN, scores_BN = output
        for b, lengths_N in enumerate(lengths_BN):
            generations = []
            for n, length in enumerate(lengths_N):
                if not length:  # an empty place among beams
                    continue
                tokens_T, log_probs_T = tokens_BNT[b, n, :length], log_probs_BNT[b, n, :length]
                score = float(log_probs_T.sum() if scores_BN is None else scores_BN[b, n])
                stop = None if self.stops is None else self.stops.find(tokens_T, length - 1)
                ended, text = bool(tokens_T[-1] == self.eos_id or stop), stop[1] if stop else None
                generations.append(Generation(tokens_T, log_probs_T, ended, score, text))
            yield generations
