"""Our speed against transformers, in turns in one process and with the same allocator settings: docs/performance.md.

    python -m benchmarks.peers                                 every row of the table; about half an hour on two cores
    python -m benchmarks.peers --rows train train-bfloat16     some of them
    python -m benchmarks.peers --memory                        peak resident memory instead, each side alone
    python -m benchmarks.peers --tiny --calls 1                tries the command in a few minutes; measures nothing

It needs the `convert` extra (torch, transformers), and PEFT for `lora`. Each row runs in a process of its own, in which
freed memory is kept (`t5flan/config/memory.py`) for both sides, on all cores. A side is called twice before its calls
are timed, which compiles it. Ratios are medians over pairs of neighbouring calls, our time over theirs: below 1 we are
faster. Models have random weights and no dropout; T5 is T5 1.1 small, the decoder has the shape of SmolLM2-135M.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

from t5flan.config.memory import keep_freed_memory, peak_resident_memory

Step = Callable[[], Any]
TINY = {'rows': 2, 'inputs': 16, 'targets': 16, 'layers': 1, 'new_tokens': 4}
"""Sizes of `--tiny`, which replace those of a row."""


class Row(NamedTuple):
    """A line of the table: what is done, and a function that makes one side of it."""

    title: str
    sides: tuple[str, ...]
    make: Callable[..., Step]
    """(side, **sizes) -> the function to time."""


OURS, COMPILED, EAGER = 't5flan', 'compiled', 'eager'


# -- Training ----------------------------------------------------------------------------------------------------------


def train(side: str, **settings: Any) -> Step:
    """A step of T5 1.1 small with Adafactor; 16-bit means autocast in PyTorch, and float32 parameters on both sides."""
    from benchmarks import train_step

    args = train_step.argument_parser('').parse_args([])
    vars(args).update({'attention': 'auto', 'microbatches': 1, 'remat': 'minimal', 'layers': None, **settings})
    if side == OURS:
        return train_step.our_step(args)[0]
    args.torch_compile = side == COMPILED
    return train_step.transformers_step(args)


def lora(side: str, **settings: Any) -> Step:
    """A step of LoRA of rank 8 on queries and values, with AdamW."""
    from benchmarks import adapters, train_step
    from t5flan.adapters.config import METHODS

    args = train_step.argument_parser('').parse_args(['--remat=minimal'])
    vars(args).update({'base_dtype': 'float32', 'flops': False, 'layers': None, **settings})
    if side == OURS:
        return adapters.make_step(args, METHODS['Lora']())[0]
    return adapters.peft_step(args, compiled=side == COMPILED)


SMOLLM2 = {
    'vocab_size': 49152, 'emb_dim': 576, 'num_heads': 9, 'num_kv_heads': 3, 'head_dim': 64, 'mlp_dim': 1536,
    'num_decoder_layers': 30, 'rope_base': 100000.0, 'tie_embeddings': True, 'scale_tied_logits': False,
}  # fmt: skip
"""ModelConfig of SmolLM2-135M, beside gin/models/llama2_7b.gin."""


def train_decoder(side: str, rows: int = 8, targets: int = 256, layers: int | None = None, **_: Any) -> Step:
    """A step of a decoder of 135 million parameters with AdamW, on rows that two examples each fill."""
    import numpy as np

    shape = SMOLLM2 if layers is None else SMOLLM2 | {'num_decoder_layers': layers}
    tokens = np.random.default_rng(0).integers(3, 32000, (rows, targets + 1), dtype=np.int32)
    first = targets * 5 // 8  # tokens of the first example
    count = np.arange(targets, dtype=np.int32)
    segments, positions = 1 + (count >= first), np.where(count < first, count, count - first)
    batch = {
        'decoder_input_tokens': tokens[:, :-1],
        'decoder_target_tokens': tokens[:, 1:],
        'decoder_loss_weights': np.ones((rows, targets), np.float32),
        'decoder_segment_ids': np.broadcast_to(segments, (rows, targets)).astype(np.int32),
        'decoder_positions': np.broadcast_to(positions, (rows, targets)).astype(np.int32),
    }
    return _our_decoder(shape, batch) if side == OURS else _their_decoder(shape, batch, compiled=side == COMPILED)


def _our_decoder(shape: dict[str, Any], batch: dict[str, Any]) -> Step:
    import jax

    from t5flan import configurables
    from t5flan import sharding as sharding_lib
    from t5flan.mesh import MeshConfig
    from t5flan.models.config import ModelConfig
    from t5flan.training.config import LossConfig, OptimizerConfig, RunConfig
    from t5flan.training.step import Trainer

    bindings = [f'ModelConfig.{name}={value!r}' for name, value in shape.items()]
    bindings += ["ModelConfig.remat='minimal'", 'ModelConfig.dropout_rate=0.0']
    model = configurables.parse(['models/llama2_7b'], bindings).read(ModelConfig)
    sharding = sharding_lib.create_sharding(MeshConfig())
    with sharding_lib.use(sharding):
        optimizer = OptimizerConfig(name='adamw', learning_rate=1e-4)
        trainer = Trainer(model, optimizer, LossConfig(), RunConfig(steps=1000), sharding)
        holder = [trainer.new_state()]
        placed = sharding_lib.put_batch(sharding, batch, len(batch['decoder_positions']))

        def step() -> None:
            holder[0], metrics = trainer.train_step(holder[0], placed)
            jax.block_until_ready((holder[0], metrics))

        step()
    return step


def _their_decoder(shape: dict[str, Any], batch: dict[str, Any], *, compiled: bool) -> Step:
    import torch
    import transformers

    from benchmarks.train_step import torch_update

    config = transformers.LlamaConfig(
        vocab_size=shape['vocab_size'],
        hidden_size=shape['emb_dim'],
        intermediate_size=shape['mlp_dim'],
        num_hidden_layers=shape['num_decoder_layers'],
        num_attention_heads=shape['num_heads'],
        num_key_value_heads=shape['num_kv_heads'],
        rope_theta=shape['rope_base'],
        tie_word_embeddings=True,
    )
    model = transformers.LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    given = {name.removeprefix('decoder_'): torch.tensor(x) for name, x in batch.items()}
    ids, labels, positions = (given[name].long() for name in ('input_tokens', 'target_tokens', 'positions'))

    def forward() -> Any:
        # Positions that start again are what transformers takes for the first of another packed example.
        options = dict(position_ids=positions, labels=labels, shift_labels=labels, use_cache=False)
        return model(input_ids=ids, **options).loss

    return torch_update(forward, optimizer, compiled=compiled)


# -- Decoding ----------------------------------------------------------------------------------------------------------


def decode(side: str, **settings: Any) -> Step:
    """Decodes 64 tokens after 8 prompts of 128; PyTorch's weights are of the dtype."""
    from benchmarks import generate

    args = argparse.Namespace(model='models/t5_1_1_small', checkpoint=None, huggingface=None, layers=None)
    vars(args).update({'rows': 8, 'inputs': 128, 'new_tokens': 64, 'dtype': 'float32', 'num_beams': 1, **settings})
    return generate.our_run(args) if side == OURS else generate.transformers_run(args)


ROWS = {
    'train': Row('T5 training, float32, 8 x (512, 114)', (OURS, COMPILED, EAGER), train),
    'train-short': Row(
        'T5 training, float32, 8 x (128, 128)',
        (OURS, COMPILED, EAGER),
        lambda side, **sizes: train(side, **{'inputs': 128, 'targets': 128, **sizes}),
    ),
    'train-bfloat16': Row(
        'T5 training, bfloat16, 8 x (512, 114)',
        (OURS, COMPILED, EAGER),
        lambda side, **sizes: train(side, dtype='bfloat16', **sizes),
    ),
    'train-decoder': Row('decoder training, float32, 8 x 256', (OURS, COMPILED, EAGER), train_decoder),
    'lora': Row('T5 LoRA, float32, 8 x (512, 114)', (OURS, COMPILED, EAGER), lora),
    'greedy': Row('T5 greedy, float32', (OURS, EAGER), decode),
    'greedy-bfloat16': Row(
        'T5 greedy, bfloat16', (OURS, EAGER), lambda side, **sizes: decode(side, dtype='bfloat16', **sizes)
    ),
    'beam': Row('T5 beam 4, float32', (OURS, EAGER), lambda side, **sizes: decode(side, num_beams=4, **sizes)),
}


# -- Processes ---------------------------------------------------------------------------------------------------------


def run_row(name: str, calls: int, only: str | None, *, tiny: bool) -> dict[str, Any]:
    """Seconds of each call of each side, in turns, and the peak resident memory of this process in GiB."""
    keep_freed_memory()  # before NumPy and JAX start threads
    from benchmarks.train_step import as_a_command_does, in_turns

    as_a_command_does()
    row, sizes = ROWS[name], TINY if tiny else {}
    times = in_turns({side: row.make(side, **sizes) for side in row.sides if only in (None, side)}, calls)
    return {'seconds': times, 'peak_GiB': peak_resident_memory() / 2**30}


def in_child(name: str, args: argparse.Namespace, only: str | None = None) -> dict[str, Any]:
    """`run_row` in a process of its own."""
    flags = [f'--row={name}', f'--calls={args.calls}', *([f'--only={only}'] if only else [])]
    flags += ['--tiny'] if args.tiny else []
    command = [sys.executable, '-m', 'benchmarks.peers', *flags]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def speed_cells(name: str, args: argparse.Namespace) -> list[str]:
    """Our median seconds, and the median ratio to each other side."""
    seconds = in_child(name, args)['seconds']
    cells = [ROWS[name].title, f'{statistics.median(seconds[OURS]):.2f} s']
    for side in (COMPILED, EAGER):
        ratios = [ours / theirs for ours, theirs in zip(seconds[OURS], seconds.get(side, ()))]
        cells.append(f'{statistics.median(ratios):.2f}' if ratios else '')
    return cells


def memory_cells(name: str, args: argparse.Namespace) -> list[str]:
    """The peak memory of each side."""
    peaks = {side: in_child(name, args, side)['peak_GiB'] for side in ROWS[name].sides}
    return [ROWS[name].title, *(f'{peaks[side]:.1f} GiB' if side in peaks else '' for side in (OURS, COMPILED, EAGER))]


def main() -> None:
    """Prints the table, a line as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--rows', nargs='+', choices=list(ROWS), default=list(ROWS))
    parser.add_argument('--calls', type=int, default=5, help='timed calls of each side (default: %(default)s)')
    parser.add_argument('--memory', action='store_true', help='print peak resident memory')
    parser.add_argument('--tiny', action='store_true', help='tiny sizes, to try the command')
    parser.add_argument('--row', choices=list(ROWS), help=argparse.SUPPRESS)
    parser.add_argument('--only', help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.row:
        print(json.dumps(run_row(args.row, args.calls, args.only, tiny=args.tiny)))
        return
    ours = 't5flan' if args.memory else 'seconds of t5flan'
    print(f'| | {ours} | transformers, compiled | transformers, eager |\n|---|---|---|---|')
    for name in args.rows:
        cells = (memory_cells if args.memory else speed_cells)(name, args)
        print(f'| {" | ".join(cells)} |', flush=True)


if __name__ == '__main__':
    main()
