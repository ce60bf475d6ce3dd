"""What instructions bring: one small pretrained model, finetuned on the same data three ways, asked tasks it never saw.

    python experiments/instruction_tuning.py --workdir=runs/instruction_tuning --text='data/books/*.txt'
        --natural_instructions=data/natural_instructions --cot=data/cot

The model is shaped as T5 1.1 (4.7 million parameters without embeddings) and is pretrained once, on spans of the text.
Then it is finetuned, with every seed, on

    plain     no instructions: the bare input of an instance or question, and its output
    direct    the same instances in their tasks' definitions and wordings, answers alone
    cot       the same, half of the questions that have a rationale with the rationale before the answer

Held out whole: the tasks of Natural Instructions' official test list and HELD_OUT. Each finetuned model, and the pretrained
one, is asked the held-out tasks with their instructions, zero-shot, and `plain` also without; the sets with rationales also
with the sentence that asks for one; and each the validation split of what it was taught. Above them stand two who read no
instruction: one copies its input, one knows each task's most frequent answer.

It goes on where it was stopped. Prints a table of means and standard deviations over the seeds; writes results.json. Every
step is a t5flan command, printed before it runs.
"""

import argparse
import collections
import json
import shlex
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from t5flan.__main__ import main as t5flan
from t5flan.data.config import DataConfig
from t5flan.data.mixtures.mixing import find_mixture
from t5flan.language_model import load
from t5flan.scoring.metrics import exact_match, squad
from t5flan.tasks import register_all

HELD_OUT = (
    'ni_task363_sst2_polarity_classification',
    'ni_task868_mawps_singleop_question_answering',
    'cot_strategyqa',
    'cot_qasc',
)
ARMS = ('plain', 'direct', 'cot')
LENGTHS = {'inputs': 384, 'targets': 96}
ASKED = {'few_shot': 0, 'inverted': 0, 'negative_examples': 0}
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
MIXTURE = 'taught'
FEATURE_LENGTHS = {lengths}
BATCH_SIZE = 8
LEARNING_RATE = 2e-3
DROPOUT = 0.05
EvaluationConfig.every = 0
CheckpointConfig.every = 500
Blend.name = 'taught'
Blend.by_examples = {parts}
Blend.cap = {cap}
Blend.without = {without}
DataConfig.blends = [@Blend()]
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
    parser.add_argument('--examples', type=int, default=60, help='asked of each held-out task')
    arguments = parser.parse_args()
    root = Path(arguments.workdir)
    root.mkdir(parents=True, exist_ok=True)

    held_out = prepare(root, arguments)
    pretrain(root, arguments)
    results = {**baselines(root, held_out), 'nothing': {0: ask(root, 'pretrained', held_out, arguments)}}
    for seed in range(arguments.seeds):
        for arm in ARMS:
            finetune(root, arm, seed, held_out, arguments)
            results.setdefault(arm, {})[seed] = ask(root, f'{arm}_{seed}', held_out, arguments)
            written = {'arguments': vars(arguments), 'held_out': held_out, 'results': results}
            (root / 'results.json').write_text(json.dumps(written, indent=1))
            print(table(results), flush=True)


def run(*argv: str) -> None:
    """One t5flan command."""
    print(f'$ t5flan {shlex.join(argv)}', flush=True)
    code = t5flan(argv)
    if code:
        raise SystemExit(code)


# -- Data ----------------------------------------------------------------------------------------------------------------


def data_config(arguments: argparse.Namespace, mixture: str = '-') -> DataConfig:
    return DataConfig(
        mixture, 1, LENGTHS, 'bytes', natural_instructions=arguments.natural_instructions, cot=arguments.cot
    )


def prepare(root: Path, arguments: argparse.Namespace) -> list[str]:
    """The held-out tasks' names. Writes the bare inputs of all tasks as .jsonl files, and trains the vocabulary."""
    register_all(data_config(arguments))
    tested, *known = (
        [task.name for task in find_mixture(name).tasks]
        for name in ('natural_instructions_test', 'natural_instructions', 'cot')
    )
    held_out, names = [*tested, *HELD_OUT], [*known[0], *known[1]]
    (root / 'plain').mkdir(exist_ok=True)
    for name in names:
        write_plain(root, name, name in held_out, arguments.examples)
    vocabulary = root / 'vocabulary.model'
    if not vocabulary.exists():
        inputs = [arguments.text, *(str(plain_file(root, name)) for name in names if name not in held_out)]
        run(
            'vocabulary',
            *(f'--input={path}' for path in inputs),
            '--size=8000',
            f'--output={vocabulary}',
            '--mode_tokens=',
        )
    return held_out


def plain_file(root: Path, name: str) -> Path:
    return root / 'plain' / f'{name}.jsonl'


def write_plain(root: Path, name: str, held_out: bool, examples: int) -> None:
    """Inputs and outputs without a word of instruction: of a held-out task those that will be asked."""
    if plain_file(root, name).exists():
        return
    records = find_mixture(name).source.records(split_of(name) if held_out else 'train')
    rows = [records[i] for i in range(min(len(records), examples) if held_out else len(records))]
    pairs = [
        (row['input'], row['outputs'][0]) if 'outputs' in row else (row['question'], row['answer']) for row in rows
    ]
    lines = (json.dumps({'inputs': inputs, 'targets': targets}) + '\n' for inputs, targets in pairs)
    plain_file(root, name).write_text(''.join(lines), encoding='utf-8')


def split_of(name: str) -> str:
    """The split of a held-out task that is asked: its test split, or what it would have been trained on."""
    splits = find_mixture(name).splits
    return 'test' if 'test' in splits else 'train'


# -- Runs ----------------------------------------------------------------------------------------------------------------


def is_done(workdir: Path, steps: int) -> bool:
    return (workdir / 'checkpoints' / str(steps)).is_dir()


def pretrain(root: Path, arguments: argparse.Namespace) -> None:
    gin = root / 'pretrain.gin'
    gin.write_text(MODEL + PRETRAIN.format(lengths=LENGTHS, warmup=arguments.pretrain_steps // 20))
    if not is_done(root / 'pretrained', arguments.pretrain_steps):
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
    if is_done(workdir, arguments.steps):
        return
    gin = root / f'{arm}.gin'
    gin.write_text(
        plain_gin(root, held_out)
        if arm == 'plain'
        else FINETUNE.format(lengths=LENGTHS, cap=CAP, parts=['natural_instructions', 'cot'], without=list(held_out))
    )
    settings = (
        []
        if arm == 'plain'
        else [
            f'--gin.NATURAL_INSTRUCTIONS_DIR={arguments.natural_instructions}',
            f'--gin.COT_DIR={arguments.cot}',
            *(f'--gin.InstructionConfig.{name}={value}' for name, value in ASKED.items()),
            f'--gin.InstructionConfig.rationale={0.5 if arm == "cot" else 0}',
        ]
    )
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
    """The same blend, of file tasks."""
    lines, tasks = [], []
    for number, path in enumerate(sorted((root / 'plain').glob('*.jsonl'))):
        if path.stem not in held_out:
            lines += [f"f{number}/FileTask.name = 'plain_{path.stem}'", f"f{number}/FileTask.train = '{path}'"]
            tasks.append(f'@f{number}/FileTask()')
    head = FINETUNE.format(lengths=LENGTHS, cap=CAP, parts=['plain_*'], without=[])
    return '\n'.join([head, *lines, f'DataConfig.file_tasks = [{", ".join(tasks)}]', ''])


# -- Questions -----------------------------------------------------------------------------------------------------------


def questions(held_out: Sequence[str], run_name: str) -> Iterator[tuple[str, list[str], str, dict[str, Any]]]:
    """(what is asked, tasks, split, InstructionConfig) of a model."""
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
        yield 'taught', ['taught'], 'validation', {'rationale': 0}


def ask(root: Path, name: str, held_out: Sequence[str], arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """{question: {'exact_match', 'f1'}}, means over the tasks, in percent."""
    found: dict[str, Any] = {}
    folders = [
        f'--gin.DataConfig.natural_instructions={arguments.natural_instructions}',
        f'--gin.DataConfig.cot={arguments.cot}',
    ]
    for what, tasks, split, settings in questions(held_out, name):
        out = root / 'answers' / f'{name}_{what}.json'
        if not out.exists():
            out.parent.mkdir(exist_ok=True)
            names = [f'asked_{task}' for task in tasks] if what == 'plain' else tasks
            run(
                'evaluate',
                f'--checkpoint={root}/{name}',
                f'--tasks={",".join(names)}',
                f'--split={split}',
                f'--limit={arguments.examples if what != "taught" else arguments.examples // 20}',
                *(plain_tests(root, held_out) if what == 'plain' else folders),
                *(f'--gin.InstructionConfig.{key}={value}' for key, value in (ASKED | settings).items()),
                f'--json={out}',
                f'--predictions={out.with_suffix(".jsonl")}',
            )
        for task, metrics in json.loads(out.read_text())['tasks'].items():
            kind = f'plain_{task.removeprefix("asked_")[:2]}' if what == 'plain' else what
            kind = 'natural' if what.startswith('natural') else kind
            found.setdefault(kind, {})[task] = {key: metrics[key] for key in ('exact_match', 'f1') if key in metrics}
    made = {what: {'tasks': tasks} | mean(list(tasks.values())) for what, tasks in found.items()}
    for what, files in (('natural', ['natural_test', 'natural_train']), ('cot_direct', ['cot_direct'])):
        made[what]['nats'] = nats(root, name, files)
    return made


def nats(root: Path, name: str, files: Sequence[str]) -> float:
    """What the right answer costs a model that is asked with instructions, in nats a token (its end among them)."""
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
    lines = [f"t{i}/FileTask.name = 'asked_{name}'" for i, name in enumerate(held_out)]
    for split in ('train', 'test'):
        lines += [f"t{i}/FileTask.{split} = '{plain_file(root, name)}'" for i, name in enumerate(held_out)]
    tasks = ', '.join(f'@t{i}/FileTask()' for i in range(len(held_out)))
    gin.write_text('\n'.join([*lines, f'DataConfig.file_tasks = [{tasks}]', 'DataConfig.blends = []', '']))
    return [f'--gin_file={gin}']


def baselines(root: Path, held_out: Sequence[str]) -> dict[str, dict[int, dict[str, Any]]]:
    """What copying the bare input and what a task's most frequent answer would score."""
    found: dict[str, dict[str, dict[str, Any]]] = {'copying': {}, 'most frequent answer': {}}
    for name in held_out:
        rows = [json.loads(line) for line in plain_file(root, name).read_text('utf-8').splitlines()]
        targets = [row['targets'] for row in rows]
        top = collections.Counter(targets).most_common(1)[0][0]
        for who, answers in (('copying', [row['inputs'] for row in rows]), ('most frequent answer', [top] * len(rows))):
            what = 'natural' if name.startswith('ni_') else 'cot_direct'
            found[who].setdefault(what, {})[name] = exact_match(targets, answers) | squad(targets, answers)
    return {
        who: {0: {what: {'tasks': tasks} | mean(list(tasks.values())) for what, tasks in whats.items()}}
        for who, whats in found.items()
    }


def mean(metrics: Sequence[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for one in metrics for name in one)
    return {name: statistics.mean(one[name] for one in metrics if name in one) for name in names}


COLUMNS = (
    ('taught tasks: EM', 'taught', 'exact_match'),
    ('NI held out, with instructions: EM', 'natural', 'exact_match'),
    ('F1', 'natural', 'f1'),
    ('nats a token', 'natural', 'nats'),
    ('bare: EM', 'plain_ni', 'exact_match'),
    ('CoT sets held out, direct: EM', 'cot_direct', 'exact_match'),
    ('nats a token', 'cot_direct', 'nats'),
    ('with rationale: EM', 'cot_rationale', 'exact_match'),
    ('bare: EM', 'plain_co', 'exact_match'),
)


def table(results: dict[str, dict[int, dict[str, Any]]]) -> str:
    """Markdown: a row each way of finetuning, mean and standard deviation over its seeds."""
    titles = ['finetuned on, or answering by', *(title for title, _, _ in COLUMNS)]
    lines = [f'| {" | ".join(titles)} |', '|---' * len(titles) + '|']
    for arm, seeds in results.items():
        cells = []
        for _, what, metric in COLUMNS:
            values = [found[what][metric] for found in seeds.values() if metric in found.get(what, {})]
            digits = 2 if metric == 'nats' else 1
            spread = f' ± {statistics.stdev(values):.{digits}f}' if len(values) > 1 else ''
            cells.append(f'{statistics.mean(values):.{digits}f}{spread}' if values else '')
        lines.append(f'| {arm} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)


if __name__ == '__main__':
    main()
