"""Reading a batch of prompts, and the decoding step after it: scanned over layers, or unrolled where that is faster.

With few shapes, little is compiled: `Sizes` rounds lengths and numbers of rows up.

Shapes: B rows, P prompt length, V vocabulary.
"""

import dataclasses
import weakref
from typing import Any, NamedTuple

import jax

from t5flan import sharding as sharding_lib
from t5flan.decoding import unrolled
from t5flan.decoding.unrolled import UnrolledCache, unroll_cache, unroll_layers, unrolled_step
from t5flan.models.cache import Cache
from t5flan.models.config import ModelConfig
from t5flan.models.model import Model

UNROLLED_LAYERS = 32

Layers = unrolled.Layers | None
"""The decoder's layers as separate arrays, or None where a step scans the model's own."""
AnyCache = Cache | UnrolledCache


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes to which numbers are rounded up.

    These are the powers of two from `least` to `powers`, and after it `parts` sizes in each octave, equally spaced and
    at least powers / 2 apart.

    >>> [Sizes(least=32, powers=256, parts=2).rounded(n) for n in (1, 33, 200, 300, 512, 600, 5000)]
    [32, 64, 256, 384, 512, 768, 6144]
    >>> [Sizes(least=1, powers=16, parts=4).rounded(n) for n in (0, 3, 9, 17, 65, 129, 600)]
    [1, 4, 16, 24, 80, 160, 640]
    >>> [Sizes(least=1, powers=2, parts=2).rounded(n) for n in (1, 2, 3, 4, 5, 7, 9, 13)]
    [1, 2, 3, 4, 6, 8, 12, 16]
    """

    least: int
    powers: int
    parts: int

    def rounded(self, number: int) -> int:
        """The smallest of the sizes that is `number` or more."""
        if number <= self.powers:
            return max(self.least, power_of_two(number))
        octave = 1 << ((number - 1).bit_length() - 1)
        spacing = max(self.powers // 2, octave // self.parts)
        return -(-number // spacing) * spacing


def power_of_two(number: int) -> int:
    """The smallest power of two that is `number` or more."""
    return 1 << max(number - 1, 0).bit_length()


class PromptBatch(NamedTuple):
    """A batch of prompts.

    Attributes:
        tokens_BP: int32, padded with 0: on the right for an encoder, on the left for a decoder.
        pad_B: how many tokens of each row are padding; a decoder's vocabulary may have a word with the id 0.
        rows_B: row numbers, which with the seed determine the samples; -1 marks a row that only fills up the batch.
        starts_B: the first token each row's decoder reads.
    """

    tokens_BP: Any
    pad_B: Any
    rows_B: Any
    starts_B: Any


def unrolls(config: ModelConfig) -> bool:
    """Whether the decoding step is unrolled over layers: on a CPU, unless compiling that would take long."""
    return sharding_lib.platform() == 'cpu' and config.num_decoder_layers <= UNROLLED_LAYERS


class _Prepared(NamedTuple):
    """The layers of a model, and what they were computed from."""

    model: weakref.ref[Model]
    arrays: list[weakref.ref[Any]]
    placement: Any
    layers: Layers

    def belongs_to(self, model: Model, placement: Any) -> bool:
        """Whether the model and its arrays are the same objects."""
        arrays = jax.tree.leaves(model)
        same = len(arrays) == len(self.arrays) and all(a is b() for a, b in zip(arrays, self.arrays, strict=True))
        return same and self.model() is model and self.placement == placement


_last: list[_Prepared] = []
"""Of the model that generated last, for as long as it lives."""


def prepare(model: Model) -> Layers:
    """What every step reads, computed once for all batches and all calls with the same model.

    The last model's are kept until the model is deleted: they are its decoder's parameters once more.
    """
    if not unrolls(model.config):
        return None
    placement = sharding_lib.placement()
    if not (_last and _last[0].belongs_to(model, placement)):
        _last.clear()  # before there are others
        arrays = [weakref.ref(x) for x in jax.tree.leaves(model)]
        _last.append(_Prepared(weakref.ref(model, _forget), arrays, placement, unroll(model, placement)))
    return _last[0].layers


def _forget(model: weakref.ref[Model]) -> None:
    if _last and _last[0].model is model:
        _last.clear()


@jax.jit(static_argnums=1)
def unroll(model: Model, placement: Any) -> Layers:
    """The layers as separate arrays; `placement` is that of the mesh."""
    return unroll_layers(model)


def start(model: Model, prompts: PromptBatch, capacity: int, prefix_lm: bool) -> tuple[jax.Array, AnyCache]:
    """Reads prompts -> float32 logits [B, V] of the first new token, and the cache.

    Args:
        capacity: how many more tokens `step` can read.
        prefix_lm: a decoder reads the prompt in both directions.
    """
    options = {'prefix_lm': prefix_lm, 'pad_B': prompts.pad_B} if model.config.architecture == 'decoder_only' else {}
    logits_BV, cache = model.start_cache(prompts.tokens_BP, capacity, start_id=prompts.starts_B, **options)
    return logits_BV, unroll_cache(model.config, cache, capacity) if unrolls(model.config) else cache


def step(model: Model, layers: Layers, cache: Any, tokens_B1: jax.Array) -> tuple[jax.Array, Any]:
    """Reads one more token in each row -> float32 logits [B, V] of the next token, and the updated cache."""
    if layers is None:
        return model.decode_step(cache, tokens_B1)
    return unrolled_step(model, layers, cache, tokens_B1)
