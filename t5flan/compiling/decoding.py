"""Generation, lowered from shapes alone and compiled for a target: reading a batch of prompts, and a token in each row.

These are the two programs of `decoding/sampled.py`. The second one is a loop over tokens: what is counted is one turn.
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from t5flan import sharding as sharding_lib
from t5flan.compiling.report import describe_program
from t5flan.compiling.step import Program, compile_traced
from t5flan.compiling.targets import Target
from t5flan.data.preprocessing.features import row_capacity
from t5flan.decoding import sampled, steps
from t5flan.decoding.config import Decoding
from t5flan.decoding.generate import LENGTHS
from t5flan.errors import UserError
from t5flan.models.build import abstract_model
from t5flan.models.config import ModelConfig
from t5flan.models.parameters import logical_axes
from t5flan.sharding import Sharding
from t5flan.training.throughput import decode_flops, prefill_flops


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The shapes of a batch, as `decoding.generate` chooses them.

    Attributes:
        rows: of prompts, over all devices.
        length: of the longest prompt, rounded up.
        new_tokens: the most that each row gets, rounded up.
    """

    rows: int
    length: int
    new_tokens: int


def prompts_of(settings: Mapping[str, Any], decoding: Decoding, sharding: Sharding) -> Prompts:
    """A full batch of the longest prompts that training has, and as many new tokens as a target has there."""
    data, parts = settings['data'], sharding.size('batch')
    length, new = data.feature_lengths.get('inputs'), decoding.max_new_tokens or data.feature_lengths['targets']
    if length is None:  # a language model has no inputs
        length = row_capacity(data.format, data.feature_lengths)[-1]
    return Prompts(-(-decoding.batch_size // parts) * parts, LENGTHS.rounded(length), LENGTHS.rounded(new))


def describe_decoding(settings: Mapping[str, Any], decoding: Decoding, target: Target) -> dict[str, Any]:
    """The report of a token in each row, with that of reading the prompts as 'prompts'.

    If the prompts do not fit, it is the latter.

    Args:
        settings: arguments of `training.trainer.train`: the model, its mesh, and the lengths of its data.
        decoding: as commands take it.
        target: what it is compiled for.

    Raises:
        UserError: the mesh does not divide the devices, the model or the rows, or `decoding` searches with beams.
    """
    if decoding.num_beams > 1:
        given = f'num_beams={decoding.num_beams}, but `t5flan compile` compiles greedy decoding and samples'
        raise UserError(f'{given}. Set Decoding.num_beams=1.')
    sharding = sharding_lib.create_sharding(settings['mesh'], target.devices)
    with sharding_lib.use(sharding):
        compiling = _Generation(settings['model'], settings['data'].format, decoding, sharding)
        prompts = prompts_of(settings, decoding, sharding)
        first, loop = compiling.begin(prompts)
        read = {
            'phase': 'prompts',
            **_without_optimizer(describe_program(first, target)),
            **dataclasses.asdict(prompts),
        }
        if loop is None or not read['fits']:
            return read
        report = _without_optimizer(describe_program(compiling.advance(prompts, loop), target))
    report |= {'phase': 'tokens', **dataclasses.asdict(prompts), 'cache_bytes': _held(loop.cache), 'prompts': read}
    seconds = max(report.get('roofline_seconds', {}).values(), default=None)
    rows = prompts.rows * decoding.num_samples
    return report | {'tokens_per_second_at_most': rows / seconds if seconds else None}


def _without_optimizer(report: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in report.items() if name != 'optimizer_bytes'}


def _held(tree: Any) -> int:
    """Bytes of the arrays on each device."""
    return sum(int(np.prod(x.sharding.shard_shape(x.shape))) * x.dtype.itemsize for x in jax.tree.leaves(tree))


@dataclasses.dataclass(frozen=True)
class _Generation:
    """The programs of a model; use it inside `sharding.use(...)`."""

    config: ModelConfig
    format: str
    decoding: Decoding
    sharding: Sharding

    @property
    def model(self) -> Any:
        """Shape, dtype and sharding of every parameter."""
        model = abstract_model(self.config)
        placed = sharding_lib.tree_shardings(self.sharding, model, logical_axes(model))
        return _placed(model, placed)

    @property
    def choice(self) -> sampled.Choice:
        """How tokens are chosen; the values change no program."""
        numbers = np.float32(self.decoding.temperature or 1.0), np.int32(self.decoding.top_k)
        return sampled.Choice(np.int32(1), np.int32(self.config.vocab_size), *numbers, np.float32(self.decoding.top_p))

    def begin(self, prompts: Prompts) -> tuple[Program, sampled.Loop | None]:
        """The program that reads prompts, and what it returns; None if it does not fit."""
        started = time.monotonic()

        def rows(*shape: int) -> jax.ShapeDtypeStruct:
            names = ('batch', None)[: len(shape)]
            return jax.ShapeDtypeStruct(shape, jnp.int32, sharding=self.sharding.named(names, shape))

        tokens_BP, of_row_B = rows(prompts.rows, prompts.length), rows(prompts.rows)
        model, inputs = self.model, steps.PromptBatch(tokens_BP, of_row_B, of_row_B, of_row_B)
        traced = sampled.begin.trace(
            model,
            inputs,
            self.choice,
            np.int32(self.decoding.seed),
            greedy=self.decoding.greedy,
            capacity=prompts.new_tokens,
            new_slots=prompts.new_tokens,
            num_samples=self.decoding.num_samples,
            prefix_lm=self.format == 'prefix_lm',
            placement=sharding_lib.placement(),
        )
        flops = prefill_flops(self.config, prompts.rows, prompts.length)
        program = compile_traced(traced, Program(self.sharding, model, None, inputs, flops, None, 0.0), started)
        if program.compiled is None:
            return program, None
        return program, _placed(traced.out_info, program.compiled.output_shardings)

    def advance(self, prompts: Prompts, loop: sampled.Loop) -> Program:
        """The program that continues all rows."""
        started = time.monotonic()
        model, placement = self.model, sharding_lib.placement()
        layers: Any = None
        if steps.unrolls(self.config):
            unrolled = steps.unroll.trace(model, placement)
            layers = _placed(unrolled.out_info, unrolled.lower().compile().output_shardings)
        until = np.int32(prompts.new_tokens)
        traced = sampled.advance.trace(model, layers, loop, self.choice, until, placement=placement)
        slots, source = prompts.new_tokens, prompts.length
        if self.config.architecture == 'decoder_only':
            slots, source = prompts.length + prompts.new_tokens, 0
        flops = decode_flops(self.config, prompts.rows * self.decoding.num_samples, slots, source)
        return compile_traced(traced, Program(self.sharding, model, None, (layers, loop), flops, None, 0.0), started)


def _placed(tree: Any, shardings: Any) -> Any:
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)
