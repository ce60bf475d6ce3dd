"""Seconds, tokens/s and XLA temporary memory of one training step.

    python benchmarks/train_step.py                            T5 1.1 small, float32, 8 x (512, 114), Adafactor
    python benchmarks/train_step.py --dtype=bfloat16 --remat=full
    python benchmarks/train_step.py --against=transformers     alternates with the same step in transformers and torch

`--against` needs the `convert` extra (torch, transformers). Quote the ratio of medians that it prints: seconds drift
with the load of the machine.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from t5flan import configurables
from t5flan import sharding as sharding_lib
from t5flan.commands import COMMANDS, startup
from t5flan.mesh import MeshConfig
from t5flan.models.config import ModelConfig
from t5flan.training.config import LossConfig, OptimizerConfig, RunConfig
from t5flan.training.start import wait_for_each_program_on_a_cpu
from t5flan.training.throughput import model_flops
from t5flan.training.trainer import Trainer


def as_a_command_does() -> None:
    """Sets the allocator and JAX as `t5flan train` does; call it before JAX finds its devices."""
    startup.set_allocator(['train'], COMMANDS)
    wait_for_each_program_on_a_cpu()


def random_batch(vocab_size: int, rows: int, inputs: int, targets: int) -> dict[str, np.ndarray]:
    """Full rows of random words: encoder tokens [rows, inputs], decoder tokens [rows, targets]."""
    rng = np.random.default_rng(0)
    target = rng.integers(3, vocab_size, (rows, targets), dtype=np.int32)
    return {
        'encoder_input_tokens': rng.integers(3, vocab_size, (rows, inputs), dtype=np.int32),
        'decoder_input_tokens': np.pad(target, ((0, 0), (1, 0)))[:, :-1],
        'decoder_target_tokens': target,
        'decoder_loss_weights': np.ones((rows, targets), np.float32),
    }


def our_step(args: argparse.Namespace) -> tuple[Callable[[], None], dict[str, float]]:
    """A function that runs one step to its end, and the memory and FLOPs of the step."""
    bindings = [f'ModelConfig.{name}={getattr(args, name)}' for name in ('dtype', 'remat', 'attention')]
    bindings.append('ModelConfig.dropout_rate=0.0')
    bindings += [f'ModelConfig.num_{stack}_layers={args.layers}' for stack in ('encoder', 'decoder') if args.layers]
    model = configurables.parse([args.model], bindings).read(ModelConfig)
    batch = random_batch(min(model.vocab_size, 32000), args.rows, args.inputs, args.targets)
    sharding = sharding_lib.create_sharding(MeshConfig())
    with sharding_lib.use(sharding):
        trainer = Trainer(
            model, OptimizerConfig(microbatches=args.microbatches), LossConfig(), RunConfig(steps=1000), sharding
        )
        state = trainer.new_state()
        placed = sharding_lib.put_batch(sharding, batch, args.rows)
        compiled = trainer.train_step.lower(state, placed).compile()
    holder = [state]

    def step() -> None:
        holder[0], metrics = compiled(holder[0], placed)
        jax.block_until_ready((holder[0], metrics))

    memory = compiled.memory_analysis()
    facts = {
        'temporaries_GiB': memory.temp_size_in_bytes / 2**30,
        'model_GFLOP': model_flops(model, {name: x.shape for name, x in batch.items()}) / 1e9,
    }
    return step, facts


def transformers_model(layers: int | None = None) -> Any:
    """T5 1.1 small in transformers, with new parameters and without dropout; 8 layers in each stack by default."""
    import transformers

    config = transformers.T5Config(
        vocab_size=32128,
        d_model=512,
        d_kv=64,
        d_ff=1024,
        num_layers=layers or 8,
        num_decoder_layers=layers or 8,
        num_heads=6,
        feed_forward_proj='gated-gelu',
        tie_word_embeddings=False,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return transformers.T5ForConditionalGeneration(config)


def transformers_step(args: argparse.Namespace) -> Callable[[], None]:
    """The same step of T5 1.1 small in transformers, with Adafactor in float32; compiled with --torch_compile."""
    import transformers

    model = transformers_model(args.layers).train()
    optimizer = transformers.Adafactor(model.parameters(), lr=1e-3, relative_step=False, scale_parameter=True)
    return torch_step(model, optimizer, args, compiled=args.torch_compile)


def torch_step(model: Any, optimizer: Any, args: argparse.Namespace, *, compiled: bool) -> Callable[[], None]:
    """A function that trains a T5 in PyTorch for one step, always on the same batch; `--dtype=bfloat16` is autocast."""
    import torch

    batch = random_batch(32000, args.rows, args.inputs, args.targets)
    inputs = torch.tensor(batch['encoder_input_tokens'], dtype=torch.long)
    labels = torch.tensor(batch['decoder_target_tokens'], dtype=torch.long)

    def forward() -> Any:
        with torch.autocast('cpu', torch.bfloat16, enabled=args.dtype == 'bfloat16'):
            return model(input_ids=inputs, labels=labels).loss

    return torch_update(forward, optimizer, compiled=compiled)


def torch_update(forward: Callable[[], Any], optimizer: Any, *, compiled: bool) -> Callable[[], None]:
    """A function that updates the parameters of a PyTorch model by the gradients of the loss of `forward`."""
    import torch

    if compiled:
        forward = torch.compile(forward)

    def step() -> None:
        optimizer.zero_grad()
        forward().backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def in_turns(steps: Mapping[str, Callable[[], None]], count: int) -> dict[str, list[float]]:
    """Wall-clock seconds of `count` calls of each function, which take turns after two warm-up calls."""
    for one in steps.values():
        one(), one()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(count):
        for name, one in steps.items():
            times[name].append(seconds(one))
    return times


def argument_parser(description: str) -> argparse.ArgumentParser:
    """The flags of every benchmark of training steps."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--model', default='models/t5_1_1_small')
    parser.add_argument('--rows', type=int, default=8)
    parser.add_argument('--inputs', type=int, default=512)
    parser.add_argument('--targets', type=int, default=114)
    parser.add_argument('--dtype', default='float32')
    parser.add_argument('--remat', default='none')
    parser.add_argument('--steps', type=int, default=5)
    parser.add_argument('--layers', type=int, help="of each stack (default: the model's)")
    return parser


def setting(args: argparse.Namespace) -> str:
    """Model and sizes, for the printed result."""
    return f'{args.model} {args.dtype} remat={args.remat} {args.rows}x({args.inputs},{args.targets})'


def main() -> None:
    """Prints one line of JSON: medians over `--steps` steps, after two warm-up steps."""
    parser = argument_parser(__doc__.split('\n')[0])
    parser.add_argument('--attention', default='auto')
    parser.add_argument('--microbatches', type=int, default=1)
    parser.add_argument('--against', choices=['transformers'])
    parser.add_argument('--torch_compile', action='store_true')
    args = parser.parse_args()
    as_a_command_does()
    step, facts = our_step(args)
    steps = {'t5flan': step} | ({'transformers': transformers_step(args)} if args.against else {})
    times = in_turns(steps, args.steps)
    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {
        'setting': setting(args),
        'median_s': medians,
        'min_s': {n: min(v) for n, v in times.items()},
        'max_s': {n: max(v) for n, v in times.items()},
        'tokens_per_s': args.rows * (args.inputs + args.targets) / medians['t5flan'],
    } | facts
    if args.against:
        result['ratio_of_medians'] = medians['t5flan'] / medians[args.against]
    print(json.dumps(result))


if __name__ == '__main__':
    main()
