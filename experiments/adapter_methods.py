"""Trains every adapter method, and the whole model, on one task of a pretrained chat model, and compares them.

    python experiments/adapter_methods.py --workdir=runs/adapter_methods --checkpoint=runs/smollm2 \
        --task=data/natural_instructions/tasks/task363_sst2_polarity_classification.json

The task is a file of Super-NaturalInstructions; --test of its instances are held out, chosen by a fixed seed, and the
prompt is the definition and the input. Each method takes the same steps on the same batches, with a learning rate that
is common for it (METHODS). Every training and evaluation is a t5flan command, which is printed first; a stopped run
continues when started again with the same flags. Prints a table: the trained share of the parameters, seconds of a step
and peak memory of the training process as the run logs them (medians), the held-out loss in nats per token, and exact
match with its 95 % interval. Writes results.json and table.md.

The defaults take about 40 minutes on two cores.
"""

import argparse
import json
import random
import re
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from t5flan.errors import UserError
from t5flan.files import write_json, write_whole
from t5flan.scoring.statistics import bootstrap_interval

from runs import Children, is_trained, markdown


class Method(NamedTuple):
    """An adapter in gin, and a learning rate that is common for it."""

    adapter: str
    learning_rate: float


METHODS = {
    'full': Method('None', 5e-5),
    'Lora': Method('@Lora()', 1e-3),
    'Dora': Method('@Dora()', 1e-3),
    'AdaLora': Method('@AdaLora()', 2e-3),
    'DyLora': Method('@DyLora()', 1e-3),
    'Ia3': Method('@Ia3()', 5e-3),
    'Bottleneck': Method('@Bottleneck()', 1e-3),
    'PromptTuning': Method('@PromptTuning()', 3e-2),
    'PTuning': Method('@PTuning()', 1e-3),
    'PrefixTuning': Method('@PrefixTuning()', 1e-2),
    'LlamaAdapter': Method('@LlamaAdapter()', 9e-3),
}
BEFORE = 'before'
SEED = 0

SETTINGS = """
include 'runs/finetune_lora.gin'
TRAIN_FILE = '{data}/train.jsonl'
VALIDATION_FILE = '{data}/test.jsonl'
FEATURE_LENGTHS = {lengths}
BATCH_SIZE = {batch_size}
STEPS = {steps}
SCHEDULE = 'linear'
WARMUP_STEPS = {warmup}
DataConfig.pack = False  # prompts and prefixes belong to whole rows
ModelConfig.remat = 'minimal'
RunConfig.log_every = 1
EvaluationConfig.every = {steps}
CheckpointConfig.every = {save_every}
CheckpointConfig.keep = 1
"""


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    root = Path(arguments.workdir)
    try:
        prepare(root / 'data', arguments)
        write_whole(root / 'settings.gin', settings_gin(root / 'data', arguments))
        with Children() as children:
            names = [BEFORE, *arguments.methods]
            failed = [name for name in names if not run_arm(children, root, name, arguments)]
        report(root, arguments)
    except UserError as error:
        raise SystemExit(f'error: {error}') from None
    if failed:
        raise SystemExit(f'error: {", ".join(failed)} failed; see {root}/logs. Fix the cause and start again.')


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--workdir', default='runs/adapter_methods')
    add('--checkpoint', required=True, help='a converted chat model (`t5flan convert`)')
    add('--task', required=True, help='a file of Super-NaturalInstructions')
    add('--methods', nargs='+', default=list(METHODS), choices=list(METHODS))
    add('--test', type=int, default=60, help='instances that are held out (default: %(default)s)')
    add('--steps', type=int, default=40)
    add('--batch_size', type=int, default=8)
    add('--input_tokens', type=int, default=136)
    add('--target_tokens', type=int, default=8)
    add('--dtype', default='bfloat16', help='of the computation (default: %(default)s)')
    return parser.parse_args(argv)


def prepare(data: Path, arguments: argparse.Namespace) -> None:
    """Writes train.jsonl and test.jsonl.

    Raises:
        UserError: the task has too few instances, or the folder has other rows.
    """
    task = json.loads(Path(arguments.task).read_text('utf-8'))
    rows = [
        {'inputs': f'{task["Definition"][0]}\n\n{instance["input"]}', 'targets': instance['output'][0]}
        for instance in task['Instances']
    ]
    random.Random(SEED).shuffle(rows)
    if len(rows) <= arguments.test:
        raise UserError(f'--test={arguments.test}, but {arguments.task} has {len(rows)} instances. Set fewer.')
    for name, part in (('test', rows[: arguments.test]), ('train', rows[arguments.test :])):
        text = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in part)
        path = data / f'{name}.jsonl'
        if path.exists() and path.read_text('utf-8') != text:
            raise UserError(f'{path} has rows of another task or --test. Set another --workdir.')
        write_whole(path, text)


def settings_gin(data: Path, arguments: argparse.Namespace) -> str:
    """The settings that all methods share."""
    return SETTINGS.format(
        data=data,
        lengths={'inputs': arguments.input_tokens, 'targets': arguments.target_tokens},
        batch_size=arguments.batch_size,
        steps=arguments.steps,
        warmup=max(1, arguments.steps // 10),
        save_every=max(1, arguments.steps // 2),
    )


def run_arm(children: Children, root: Path, name: str, arguments: argparse.Namespace) -> bool:
    """Trains and evaluates a method, or evaluates the model as it is; what is there already is skipped."""
    workdir, log = root / 'runs' / name, root / 'logs' / f'{name}.log'
    if (root / 'evaluations' / f'{name}.jsonl').is_file():
        return True
    if name != BEFORE and not is_trained(workdir, arguments.steps):
        method = METHODS[name]
        code = children.run(
            log,
            'train',
            f'--workdir={workdir}',
            f'--gin_file={root}/settings.gin',
            f'--gin.INITIALIZE_FROM={arguments.checkpoint}',
            f'--gin.ADAPTER={method.adapter}',
            f'--gin.LEARNING_RATE={method.learning_rate}',
            f'--gin.ModelConfig.dtype={arguments.dtype}',
            *adapter_flags(name, arguments.steps),
        )
        if code or not is_trained(workdir, arguments.steps):
            return False
    code = children.run(
        log,
        'evaluate',
        f'--checkpoint={arguments.checkpoint if name == BEFORE else workdir}',
        f'--gin_file={root}/settings.gin',
        f'--gin.INITIALIZE_FROM={arguments.checkpoint}',
        f'--gin.ModelConfig.dtype={arguments.dtype}',
        '--tasks=file',
        '--split=validation',
        f'--max_new_tokens={arguments.target_tokens}',
        f'--predictions={root}/evaluations/{name}.jsonl',
        f'--json={root}/evaluations/{name}.json',
    )
    return code == 0


def adapter_flags(name: str, steps: int) -> list[str]:
    """AdaLoRA prunes ranks between a tenth and half of the steps."""
    if name != 'AdaLora':
        return []
    return [f'--gin.AdaLora.tinit={steps // 10}', f'--gin.AdaLora.tfinal={steps // 2}']


def report(root: Path, arguments: argparse.Namespace) -> None:
    """Prints and writes the table of all methods whose evaluations are there."""
    results: dict[str, dict[str, Any]] = {}
    for name in [BEFORE, *arguments.methods]:
        path = root / 'evaluations' / f'{name}.jsonl'
        if path.is_file():
            rows = [json.loads(line) for line in path.read_text('utf-8').splitlines()]
            hits = [100.0 * (row['prediction'].strip() == row['target'].strip()) for row in rows]
            results[name] = {
                'exact_match': statistics.mean(hits),
                'interval': bootstrap_interval([[hits]]),
            }
            results[name] |= {} if name == BEFORE else training_facts(root, name)
    titles = ['method', 'trained', 'learning rate', 's / step', 'peak memory', 'held-out loss', 'exact match']
    text = markdown(titles, [cells(name, result) for name, result in results.items()])
    write_json(root / 'results.json', {'arguments': vars(arguments), 'results': results})
    write_whole(root / 'table.md', f'{text}\n')
    print(f'\n{text}\n\nSee {root}/results.json and table.md')


def training_facts(root: Path, name: str) -> dict[str, Any]:
    """What a run logged: the trained share, seconds of a step, peak memory, and the loss on held-out rows."""
    log = (root / 'logs' / f'{name}.log').read_text('utf-8')
    counts = re.search(r'([\d,]+) trained of ([\d,]+) parameters', log)
    trained, total = (int(count.replace(',', '')) for count in counts.groups()) if counts else (1, 1)
    rows = [json.loads(line) for line in (root / 'runs' / name / 'metrics.jsonl').read_text('utf-8').splitlines()]
    speeds = [row['steps_per_second'] for row in rows if 'steps_per_second' in row]
    return {
        'trained': trained / total,
        'seconds': 1 / statistics.median(speeds),
        'memory_gib': max(row['peak_memory_gib'] for row in rows if 'peak_memory_gib' in row),
        'loss': [row['eval/loss'] for row in rows if 'eval/loss' in row][-1],
    }


def cells(name: str, result: dict[str, Any]) -> list[str]:
    low, high = result['interval']
    match = f'{result["exact_match"]:.0f} % ({low:.0f} to {high:.0f})'
    if name == BEFORE:
        return [name, '', '', '', '', '', match]
    facts = [f'{result["seconds"]:.2f}', f'{result["memory_gib"]:.1f} GiB', f'{result["loss"]:.3f}']
    return [name, f'{result["trained"]:.3%}', f'{METHODS[name].learning_rate:g}', *facts, match]


if __name__ == '__main__':
    main()
