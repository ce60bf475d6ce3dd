"""Seconds and memory of a training step with an adapter, over those of full finetuning.

    python -m benchmarks.adapters                              T5 1.1 small, float32, 8 x (512, 114), LoRA of rank 8
    python -m benchmarks.adapters --adapters Lora Dora Ia3

Full finetuning uses Adafactor and adapters AdamW, as the packaged run files do. Steps of all of them take turns in one
process. Quote the ratios of medians: seconds drift with the load of the machine.
"""

import argparse
import json
import statistics
from collections.abc import Callable

import jax

from benchmarks.train_step import argument_parser, in_turns, random_batch, setting
from t5flan import configurables
from t5flan import sharding as sharding_lib
from t5flan.adapters.config import METHODS, Adapter
from t5flan.mesh import MeshConfig
from t5flan.models.build import build_model
from t5flan.models.config import ModelConfig
from t5flan.training.config import LossConfig, OptimizerConfig, RunConfig
from t5flan.training.step import Trainer


def make_step(args: argparse.Namespace, adapter: Adapter | None) -> tuple[Callable[[], None], dict[str, float]]:
    """A function that runs one step to its end, and the FLOPs and memory of the step."""
    bindings = [f'ModelConfig.dtype={args.dtype}', f'ModelConfig.remat={args.remat}', 'ModelConfig.dropout_rate=0.0']
    model = configurables.parse([args.model], bindings).read(ModelConfig)
    batch = random_batch(min(model.vocab_size, 32000), args.rows, args.inputs, args.targets)
    sharding = sharding_lib.create_sharding(MeshConfig())
    optimizer = OptimizerConfig() if adapter is None else OptimizerConfig(name='adamw', learning_rate=2e-4)
    with sharding_lib.use(sharding):
        trainer = Trainer(model, optimizer, LossConfig(), RunConfig(steps=1000, adapter=adapter), sharding)
        state = trainer.state_with(jax.jit(lambda: build_model(model, jax.random.key(0)))())
        placed = sharding_lib.put_batch(sharding, batch, args.rows)
        compiled = trainer.train_step.lower(state, placed).compile()
    holder = [state]

    def step() -> None:
        holder[0], metrics = compiled(holder[0], placed)
        jax.block_until_ready((holder[0], metrics))

    optimizer_bytes = sum(x.nbytes for x in jax.tree.leaves(state.opt_state))
    temporaries = compiled.memory_analysis().temp_size_in_bytes
    return step, {'temporaries_GiB': temporaries / 2**30, 'optimizer_MiB': optimizer_bytes / 2**20}


def main() -> None:
    """Prints one line of JSON: medians over `--steps` steps, after two warm-up steps."""
    parser = argument_parser(__doc__.split('\n')[0])
    parser.add_argument('--adapters', nargs='+', default=['Lora'], choices=sorted(METHODS))
    args = parser.parse_args()
    steps, facts = {}, {}
    for name in ['full', *args.adapters]:
        steps[name], facts[name] = make_step(args, None if name == 'full' else METHODS[name]())
    times = in_turns(steps, args.steps)
    medians = {name: statistics.median(values) for name, values in times.items()}
    result = {
        'setting': setting(args),
        'median_s': medians,
        'ratio_to_full': {name: medians[name] / medians['full'] for name in args.adapters},
        'facts': facts,
    }
    print(json.dumps(result))


if __name__ == '__main__':
    main()
