"""Seconds, memory and FLOPs of a training step with an adapter, over those of full finetuning or of PEFT.

    python -m benchmarks.adapters                              T5 1.1 small, float32, 8 x (512, 114), LoRA of rank 8
    python -m benchmarks.adapters --adapters Lora Dora Ia3
    python -m benchmarks.adapters --adapters ALL --flops --markdown     a table of every method
    python -m benchmarks.adapters --against=peft               alternates with the same LoRA of PEFT on transformers

Full finetuning uses Adafactor and adapters AdamW, as the packaged run files do. Steps of all of them take turns in one
process. Quote the ratios of medians: seconds drift with the load of the machine. `--flops` compiles each step again,
with unrolled layers, because XLA counts the body of a loop once; it takes minutes. `--against=peft` needs torch and
PEFT, and its model is T5 1.1 small.
"""

import argparse
import dataclasses
import json
import statistics
from collections.abc import Callable
from typing import Any

import jax

from benchmarks.train_step import (
    argument_parser,
    as_a_command_does,
    in_turns,
    random_batch,
    setting,
    torch_step,
    transformers_model,
)
from t5flan import configurables
from t5flan import sharding as sharding_lib
from t5flan.adapters.config import METHODS, Adapter
from t5flan.errors import UserError
from t5flan.mesh import MeshConfig
from t5flan.models.build import build_model
from t5flan.models.config import ModelConfig
from t5flan.models.parameters import parameter_count
from t5flan.training.config import LossConfig, OptimizerConfig, RunConfig
from t5flan.training.step import Trainer

Step = Callable[[], None]
Facts = dict[str, float]


def read_model(args: argparse.Namespace) -> ModelConfig:
    """The model of the flags, without dropout."""
    bindings = [f'ModelConfig.dtype={args.dtype}', f'ModelConfig.remat={args.remat}', 'ModelConfig.dropout_rate=0.0']
    bindings += [f'ModelConfig.num_{stack}_layers={args.layers}' for stack in ('encoder', 'decoder') if args.layers]
    return configurables.parse([args.model], bindings).read(ModelConfig)


def make_trainer(
    model: ModelConfig, args: argparse.Namespace, adapter: Adapter | None, sharding: Any, loss: LossConfig
) -> Trainer:
    """The steps of a run with an adapter, or of full finetuning."""
    optimizer = OptimizerConfig() if adapter is None else OptimizerConfig(name='adamw', learning_rate=2e-4)
    options: dict[str, Any] = {} if adapter is None else {'base_dtype': args.base_dtype}
    return Trainer(model, optimizer, loss, RunConfig(steps=1000, adapter=adapter, **options), sharding)


def make_step(args: argparse.Namespace, adapter: Adapter | None) -> tuple[Step, Facts]:
    """A function that runs one step to its end, and the FLOPs and memory of the step."""
    model = read_model(args)
    batch = random_batch(min(model.vocab_size, 32000), args.rows, args.inputs, args.targets)
    sharding = sharding_lib.create_sharding(MeshConfig())
    with sharding_lib.use(sharding):
        trainer = make_trainer(model, args, adapter, sharding, LossConfig())
        state = trainer.state_with(jax.jit(lambda: build_model(model, jax.random.key(0)))())
        placed = sharding_lib.put_batch(sharding, batch, args.rows)
        compiled = trainer.train_step.lower(state, placed).compile()
    holder = [state]

    def step() -> None:
        holder[0], metrics = compiled(holder[0], placed)
        jax.block_until_ready((holder[0], metrics))

    size_of = lambda tree: sum(x.nbytes for x in jax.tree.leaves(tree))
    facts = {
        'trained_share': parameter_count(trainer.saved(state).model) / parameter_count(state.model),
        'parameters_MiB': size_of(state.model) / 2**20,
        'optimizer_MiB': size_of(state.opt_state) / 2**20,
        'temporaries_GiB': compiled.memory_analysis().temp_size_in_bytes / 2**30,
    }
    return step, facts | ({'GFLOP': flops(args, adapter) / 1e9} if args.flops else {})


def flops(args: argparse.Namespace, adapter: Adapter | None) -> float:
    """FLOPs of the compiled step with unrolled layers and logits in one piece."""
    model = dataclasses.replace(read_model(args), scan_layers=False)
    batch = random_batch(min(model.vocab_size, 32000), args.rows, args.inputs, args.targets)
    sharding = sharding_lib.create_sharding(MeshConfig())
    with sharding_lib.use(sharding):
        trainer = make_trainer(model, args, adapter, sharding, LossConfig(chunk_tokens=args.rows * args.targets))
        return trainer.train_step.lower(trainer.abstract_state, batch).compile().cost_analysis()['flops']


def peft_step(args: argparse.Namespace, *, compiled: bool) -> Step:
    """The same step of PEFT on T5 1.1 small in transformers: LoRA of the same rank on queries and values, AdamW."""
    import peft
    import torch

    config = peft.LoraConfig(
        task_type='SEQ_2_SEQ_LM', r=8, lora_alpha=16, lora_dropout=0.0, target_modules=['q', 'v'], bias='none'
    )
    model = peft.get_peft_model(transformers_model(args.layers), config).train()
    optimizer = torch.optim.AdamW([x for x in model.parameters() if x.requires_grad], lr=2e-4, weight_decay=0.0)
    return torch_step(model, optimizer, args, compiled=compiled)


def markdown(names: list[str], medians: dict[str, float], facts: dict[str, Facts]) -> str:
    """A table with a line for each method."""
    has_flops = 'GFLOP' in facts['full']
    titles = ['method', 'trained', 'step / full', *(['FLOPs / full'] if has_flops else []), 'temporaries', 'optimizer']
    lines = ['| ' + ' | '.join(titles) + ' |', '|' + ' --- |' * len(titles)]
    for name in names:
        own, full = facts[name], facts['full']
        cells = [name, f'{own["trained_share"]:.2%}', f'{medians[name] / medians["full"]:.2f}']
        cells += [f'{own["GFLOP"] / full["GFLOP"]:.2f}'] if has_flops else []
        cells += [f'{own["temporaries_GiB"]:.2f} GiB', f'{own["optimizer_MiB"]:.1f} MiB']
        lines.append('| ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


def main() -> None:
    """Prints one line of JSON: medians over `--steps` steps, after two warm-up steps; then a table with --markdown."""
    parser = argument_parser(__doc__.split('\n')[0])
    parser.add_argument('--adapters', nargs='+', default=['Lora'], choices=[*sorted(METHODS), 'ALL'])
    parser.add_argument('--base_dtype', default='float32')
    parser.add_argument('--flops', action='store_true')
    parser.add_argument('--markdown', action='store_true')
    parser.add_argument('--against', choices=['peft'])
    args = parser.parse_args()
    as_a_command_does()
    names = sorted(METHODS) if 'ALL' in args.adapters else args.adapters
    steps: dict[str, Step] = {}
    facts: dict[str, Facts] = {}
    refused: dict[str, str] = {}
    for name in ['full', *names]:
        try:
            steps[name], facts[name] = make_step(args, None if name == 'full' else METHODS[name]())
        except UserError as error:  # a method that is not for this architecture
            refused[name] = str(error)
    if args.against:
        steps |= {'peft': peft_step(args, compiled=False), 'peft_compiled': peft_step(args, compiled=True)}
    times = in_turns(steps, args.steps)
    medians = {name: statistics.median(values) for name, values in times.items()}
    result: dict[str, Any] = {
        'setting': setting(args),
        'median_s': medians,
        'ratio_to_full': {name: medians[name] / medians['full'] for name in facts if name != 'full'},
        'facts': facts,
        'refused': refused,
    }
    for other in ('peft', 'peft_compiled') if args.against else ():
        pairs = [ours / theirs for ours, theirs in zip(times[names[0]], times[other], strict=True)]
        ratios = {'ratio_of_medians': medians[names[0]] / medians[other], 'median_of_ratios': statistics.median(pairs)}
        result[f'{names[0]}_to_{other}'] = ratios
    print(json.dumps(result))
    if args.markdown:
        print(markdown(list(facts), medians, facts))


if __name__ == '__main__':
    main()
