"""Measures what instructions bring: a small pretrained model is finetuned in three ways and evaluated on unseen tasks.

    python experiments/instruction_tuning.py --workdir=runs/instruction_tuning --text='data/books/*.txt' \
        --natural_instructions=data/natural_instructions --cot=data/cot

The model has the architecture of T5 1.1 (4.7 million parameters without embeddings) and is pretrained once with span
corruption on the text. It is then finetuned, with every seed, on

    plain     the bare input of an instance or question and its output, without instructions
    direct    the same instances in their tasks' definitions and wordings, answers only
    cot       the same, with a rationale before the answer for half of the questions that have one

Held out completely: the tasks of Natural Instructions' official test list and HELD_OUT. Every finetuned model and the
pretrained one are evaluated zero-shot on the held-out tasks with instructions, `plain` also without; on the sets with
rationales also with the sentence that asks for one; and on the validation split of their training tasks. Two baselines
ignore the instructions: one copies the input, one always gives the task's most frequent answer.

A stopped run continues when started again. Prints a table of means and standard deviations over the seeds, and writes
results.json. Every step is a t5flan command, which is printed first.
"""

import argparse
import collections
import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from t5flan.data.config import DataConfig
from t5flan.data.mixtures.mixing import find_mixture
from t5flan.files import write_json, write_whole
from t5flan.language_model import load
from t5flan.scoring.metrics import exact_match, squad
from t5flan.tasks import register_all

from runs import is_trained, markdown, run

HELD_OUT = (
    'ni_task363_sst2_polarity_classification', 'ni_task868_mawps_singleop_question_answering', 'cot_strategyqa',
    'cot_qasc',
)  # fmt: skip
ARMS = ('plain', 'direct', 'cot')
LENGTHS = {'inputs': 384, 'targets': 96}
ZERO_SHOT = {'few_shot': 0, 'inverted': 0, 'negative_examples': 0}
CAP = 1000

MODEL = """
include 'models/t5_1_1_small.gin'
ModelConfig.vocab_size = 8064
ModelConfig.emb_dim = 256
ModelConfig.num_heads = 4
ModelConfig.mlp_dim = 512
ModelConfig.num_encoder_layers = 3
ModelConfig.num_decoder_layers = 3
"""
PRETRAIN = """
include 'runs/pretrain_files.gin'
FEATURE_LENGTHS = {lengths}
BATCH_SIZE = 8
OptimizerConfig.schedule = 'linear'
WARMUP_STEPS = {warmup}
OptimizerConfig.final_ratio = 0.2
LEARNING_RATE = 1e-2
EvaluationConfig.every = 0
CheckpointConfig.every = 500
"""
FINETUNE = """
include 'runs/instruct.gin'
MIXTURE = 'training'
FEATURE_LENGTHS = {lengths}
BATCH_SIZE = 8
LEARNING_RATE = 2e-3
DROPOUT = 0.05
EvaluationConfig.every = 0
CheckpointConfig.every = 500
Mixture.name = 'training'
Mixture.by_examples = {parts}
Mixture.cap = {cap}
Mixture.exclude = {without}
DataConfig.mixtures = [@Mixture()]
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--workdir', default='runs/instruction_tuning')
    parser.add_argument('--text', required=True, help='.txt files to pretrain on')
    parser.add_argument('--natural_instructions', required=True, help='a folder of Super-NaturalInstructions')
    parser.add_argument('--cot', required=True, help="a folder of FLAN's chain-of-thought sets")
    parser.add_argument('--seeds', type=int, default=2)
    parser.add_argument('--pretrain_steps', type=int, default=800)
    parser.add_argument('--steps', type=int, default=300)
    parser.add_argument('--examples', type=int, default=60, help='evaluated per held-out task')
    arguments = parser.parse_args()
    root = Path(arguments.workdir)
    root.mkdir(parents=True, exist_ok=True)

    held_out = prepare(root, arguments)
    pretrain(root, arguments)
    results = {**baselines(root, held_out), 'nothing': {0: evaluate(root, 'pretrained', held_out, arguments)}}
    for seed in range(arguments.seeds):
        for arm in ARMS:
            finetune(root, arm, seed, held_out, arguments)
            results.setdefault(arm, {})[seed] = evaluate(root, f'{arm}_{seed}', held_out, arguments)
            report = {'arguments': vars(arguments), 'held_out': held_out, 'results': results}
            write_json(root / 'results.json', report)
            print(table(results), flush=True)


# -- Data --------------------------------------------------------------------------------------------------------------


def data_config(arguments: argparse.Namespace, mixture: str = '-') -> DataConfig:
    files = {'natural_instructions': arguments.natural_instructions, 'cot': arguments.cot}
    return DataConfig(mixture, 1, LENGTHS, 'bytes', **files)


def prepare(root: Path, arguments: argparse.Namespace) -> list[str]:
    """Writes the bare inputs of all tasks as .jsonl files and trains the vocabulary; returns the held-out tasks."""
    register_all(data_config(arguments))
    names_of = lambda mixture: [task.name for task in find_mixture(mixture).tasks]
    held_out = [*names_of('natural_instructions_test'), *HELD_OUT]
    names = [*names_of('natural_instructions'), *names_of('cot')]
    (root / 'plain').mkdir(exist_ok=True)
    for name in names:
        write_plain(root, name, name in held_out, arguments.examples)
    vocabulary = root / 'vocabulary.model'
    if not vocabulary.exists():
        inputs = [arguments.text, *(str(plain_file(root, name)) for name in names if name not in held_out)]
        files = [f'--input={path}' for path in inputs]
        run('vocabulary', *files, '--size=8000', f'--output={vocabulary}', '--mode_tokens=')
    return held_out


def plain_file(root: Path, name: str) -> Path:
    return root / 'plain' / f'{name}.jsonl'


def write_plain(root: Path, name: str, held_out: bool, examples: int) -> None:
    """Writes inputs and outputs without instructions; for a held-out task those that are evaluated."""
    if plain_file(root, name).exists():
        return
    records = find_mixture(name).source.records(split_of(name) if held_out else 'train')
    rows = [records[i] for i in range(min(len(records), examples) if held_out else len(records))]
    pair = lambda row: (row['input'], row['outputs'][0]) if 'outputs' in row else (row['question'], row['answer'])
    lines = (json.dumps({'inputs': inputs, 'targets': targets}) + '\n' for inputs, targets in map(pair, rows))
    write_whole(plain_file(root, name), ''.join(lines))


def split_of(name: str) -> str:
    """The evaluated split of a held-out task: its test split, or the one that training would use."""
    splits = find_mixture(name).splits
    return 'test' if 'test' in splits else 'train'


# -- Runs --------------------------------------------------------------------------------------------------------------


def pretrain(root: Path, arguments: argparse.Namespace) -> None:
    gin = root / 'pretrain.gin'
    gin.write_text(MODEL + PRETRAIN.format(lengths=LENGTHS, warmup=arguments.pretrain_steps // 20))
    if not is_trained(root / 'pretrained', arguments.pretrain_steps):
        run(
            'train',
            f'--workdir={root}/pretrained',
            f'--gin_file={gin}',
            f'--gin.TEXT_FILES={arguments.text}',
            f'--gin.VOCABULARY={root}/vocabulary.model',
            f'--gin.STEPS={arguments.pretrain_steps}',
            '--gin.RunConfig.log_every=100',
        )


def finetune(root: Path, arm: str, seed: int, held_out: Sequence[str], arguments: argparse.Namespace) -> None:
    workdir = root / f'{arm}_{seed}'
    if is_trained(workdir, arguments.steps):
        return
    gin = root / f'{arm}.gin'
    settings = []
    if arm == 'plain':
        gin.write_text(plain_gin(root, held_out))
    else:
        parts = ['natural_instructions', 'cot']
        gin.write_text(FINETUNE.format(lengths=LENGTHS, cap=CAP, parts=parts, without=list(held_out)))
        settings = [
            f'--gin.NATURAL_INSTRUCTIONS_DIR={arguments.natural_instructions}',
            f'--gin.COT_DIR={arguments.cot}',
            *(f'--gin.InstructionConfig.{name}={value}' for name, value in ZERO_SHOT.items()),
            f'--gin.InstructionConfig.rationale={0.5 if arm == "cot" else 0}',
        ]
    run(
        'train',
        f'--workdir={workdir}',
        f'--gin_file={gin}',
        f'--gin.INITIALIZE_FROM={root}/pretrained',
        f'--gin.STEPS={arguments.steps}',
        f'--gin.SEED={seed}',
        '--gin.RunConfig.log_every=100',
        *settings,
    )


def plain_gin(root: Path, held_out: Sequence[str]) -> str:
    """The same mixture, of file tasks."""
    lines, tasks = [], []
    for number, path in enumerate(sorted((root / 'plain').glob('*.jsonl'))):
        if path.stem not in held_out:
            lines += [f"f{number}/FileTask.name = 'plain_{path.stem}'", f"f{number}/FileTask.train = '{path}'"]
            tasks.append(f'@f{number}/FileTask()')
    head = FINETUNE.format(lengths=LENGTHS, cap=CAP, parts=['plain_*'], without=[])
    return '\n'.join([head, *lines, f'DataConfig.file_tasks = [{", ".join(tasks)}]', ''])


# -- Evaluation --------------------------------------------------------------------------------------------------------


def evaluations(held_out: Sequence[str], run_name: str) -> Iterator[tuple[str, list[str], str, dict[str, Any]]]:
    """(name of the evaluation, tasks, split, InstructionConfig) for a model."""
    natural = [name for name in held_out if name.startswith('ni_')]
    for split in ('test', 'train'):
        if tasks := [name for name in natural if split_of(name) == split]:
            yield f'natural_{split}', tasks, split, {'rationale': 0}
    cot = [name for name in held_out if name.startswith('cot_')]
    yield 'cot_direct', cot, 'train', {'rationale': 0}
    yield 'cot_rationale', cot, 'train', {'rationale': 1}
    if run_name.startswith('plain'):
        yield 'plain', [*natural, *cot], 'test', {}
    if run_name != 'pretrained':
        yield 'training', ['training'], 'validation', {'rationale': 0}


def evaluate(
    root: Path, name: str, held_out: Sequence[str], arguments: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """{evaluation: {'exact_match', 'f1', 'tasks', 'nats'}}, means over the tasks, in percent."""
    found: dict[str, Any] = {}
    folders = [
        f'--gin.DataConfig.natural_instructions={arguments.natural_instructions}',
        f'--gin.DataConfig.cot={arguments.cot}',
    ]
    for what, tasks, split, settings in evaluations(held_out, name):
        out = root / 'answers' / f'{name}_{what}.json'
        if not out.exists():
            out.parent.mkdir(exist_ok=True)
            names = [f'held_out_{task}' for task in tasks] if what == 'plain' else tasks
            run(
                'evaluate',
                f'--checkpoint={root}/{name}',
                f'--tasks={",".join(names)}',
                f'--split={split}',
                f'--limit={arguments.examples if what != "training" else max(1, arguments.examples // 20)}',
                *(plain_tests(root, held_out) if what == 'plain' else folders),
                *(f'--gin.InstructionConfig.{key}={value}' for key, value in (ZERO_SHOT | settings).items()),
                f'--json={out}',
                f'--predictions={out.with_suffix(".jsonl")}',
            )
        for task, metrics in json.loads(out.read_text())['tasks'].items():
            kind = f'plain_{task.removeprefix("held_out_")[:2]}' if what == 'plain' else what
            kind = 'natural' if what.startswith('natural') else kind
            found.setdefault(kind, {})[task] = {key: metrics[key] for key in ('exact_match', 'f1') if key in metrics}
    made = {what: {'tasks': tasks} | mean(list(tasks.values())) for what, tasks in found.items()}
    for what, files in (('natural', ['natural_test', 'natural_train']), ('cot_direct', ['cot_direct'])):
        made[what]['nats'] = nats(root, name, files)
    return made


def nats(root: Path, name: str, files: Sequence[str]) -> float:
    """The loss of the right answers after prompts with instructions, in nats per token (end of sequence included)."""
    rows = [
        json.loads(line)
        for file in files
        if (path := root / 'answers' / f'{name}_{file}.jsonl').exists()
        for line in path.read_text('utf-8').splitlines()
    ]
    model = load(root / name)
    inputs, targets = [row['input'] for row in rows], [row['target'] for row in rows]
    tokens = sum(len(model.vocabulary.encode(target)) + 1 for target in targets)
    return -sum(model.score(inputs, targets)) / tokens


def plain_tests(root: Path, held_out: Sequence[str]) -> list[str]:
    gin = root / 'plain_tests.gin'
    lines = [f"t{i}/FileTask.name = 'held_out_{name}'" for i, name in enumerate(held_out)]
    for split in ('train', 'test'):
        lines += [f"t{i}/FileTask.{split} = '{plain_file(root, name)}'" for i, name in enumerate(held_out)]
    tasks = ', '.join(f'@t{i}/FileTask()' for i in range(len(held_out)))
    gin.write_text('\n'.join([*lines, f'DataConfig.file_tasks = [{tasks}]', 'DataConfig.mixtures = []', '']))
    return [f'--gin_file={gin}']


def baselines(root: Path, held_out: Sequence[str]) -> dict[str, dict[int, dict[str, Any]]]:
    """Scores of copying the bare input and of giving a task's most frequent answer."""
    found: dict[str, dict[str, dict[str, Any]]] = {'copying': {}, 'most frequent answer': {}}
    for name in held_out:
        rows = [json.loads(line) for line in plain_file(root, name).read_text('utf-8').splitlines()]
        targets = [row['targets'] for row in rows]
        top = collections.Counter(targets).most_common(1)[0][0]
        for who, answers in (('copying', [row['inputs'] for row in rows]), ('most frequent answer', [top] * len(rows))):
            what = 'natural' if name.startswith('ni_') else 'cot_direct'
            found[who].setdefault(what, {})[name] = exact_match(targets, answers) | squad(targets, answers)
    summary = lambda tasks: {'tasks': tasks} | mean(list(tasks.values()))
    return {who: {0: {what: summary(tasks) for what, tasks in kinds.items()}} for who, kinds in found.items()}


def mean(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for one in metrics for name in one)
    return {name: statistics.mean(one[name] for one in metrics if name in one) for name in names}


COLUMNS = (
    ('training tasks: EM', 'training', 'exact_match'),
    ('NI held out, with instructions: EM', 'natural', 'exact_match'),
    ('F1', 'natural', 'f1'),
    ('nats per token', 'natural', 'nats'),
    ('bare: EM', 'plain_ni', 'exact_match'),
    ('CoT sets held out, direct: EM', 'cot_direct', 'exact_match'),
    ('nats per token', 'cot_direct', 'nats'),
    ('with rationale: EM', 'cot_rationale', 'exact_match'),
    ('bare: EM', 'plain_co', 'exact_match'),
)


def table(results: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Markdown: a row for each way of finetuning, with mean and standard deviation over the seeds."""
    rows = []
    for arm, seeds in results.items():
        cells = []
        for _, what, metric in COLUMNS:
            values = [found[what][metric] for found in seeds.values() if metric in found.get(what, {})]
            digits = 2 if metric == 'nats' else 1
            spread = f' ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else ''
            cells.append(f'{statistics.mean(values):.{digits}f}{spread}' if values else '')
        rows.append([arm, *cells])
    return markdown(['finetuned on, or baseline', *(title for title, _, _ in COLUMNS)], rows)


if __name__ == '__main__':
    main()
