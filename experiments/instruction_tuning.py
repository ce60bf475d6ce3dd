"""Finetunes a pretrained chat model on instructions, fully and with adapters, and evaluates it on unseen tasks.

    python experiments/instruction_tuning.py --workdir=runs/instruction_tuning --checkpoint=runs/smollm2 \
        --natural_instructions=data/natural_instructions --cot=data/cot --chat=data/chat --gsm8k=data/gsm8k/test.jsonl

An arm is a method (METHODS), a share of chain of thought in the training mixture, and a seed. Each is trained on as
many rows of Natural Instructions, sets with rationales and conversations, and evaluated, as is the untouched model:

    zero_shot, two_shot   held-out tasks of Natural Instructions, by category; the exemplars are other rows of the task
    direct, rationale     reasoning questions without and with "Let's think step by step."

`instruction_data.py` has the data and the prompts, `instruction_scores.py` the scores. Every training and evaluation is
a t5flan command, which is printed first; --jobs=N runs N arms at once. A stopped run continues when started again with
the same flags, and what is finished is skipped. --prepare_only writes WORKDIR/data, which later runs need instead of
the data folders. Prints tables and writes results.json, table.md and figure.png.

The defaults take about three hours on two cores. A GPU takes more rows and steps (docs/instruction_tuning.md).
"""

import argparse
import concurrent.futures
import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.errors import UserError
from t5flan.files import write_json, write_whole

import instruction_scores as scores
from instruction_data import prepare, read_rows
from runs import Children, is_trained, require_same_settings


class Method(NamedTuple):
    """A way to finetune: its name, its adapter in gin, and a learning rate that is common for it."""

    label: str
    adapter: str
    learning_rate: float


METHODS = {
    'full': Method('full finetuning', 'None', 5e-5),
    'lora': Method('LoRA', '@Lora()', 2e-4),
    'dora': Method('DoRA', '@Dora()', 2e-4),
    'ia3': Method('(IA)³', '@Ia3()', 5e-3),
}
BEFORE = 'before'
CHAT_RATE = 0.1
SMOKE = {
    'seeds': 1, 'methods': 'full,lora', 'steps': 2, 'batch_size': 2, 'input_tokens': 96, 'target_tokens': 32,
    'tasks': 2, 'rows': 3, 'reasoning_rows': 3, 'cot_rows': 50, 'prompt_tokens': 300, 'max_new_tokens': 8,
}  # fmt: skip
"""What --smoke sets: the whole experiment in a few minutes, for nothing but to see that it runs."""

MIXTURE = """
include 'runs/instruct.gin'
NATURAL_INSTRUCTIONS_DIR = '{data}/natural_instructions'
COT_DIR = {cot!r}
CHAT_FILES = ['{data}/chat/*']
MIXTURE = 'training'
Mixture.name = 'training'
Mixture.rates = {rates}
DataConfig.mixtures = [@Mixture()]
InstructionConfig.max_exemplars = 2
InstructionConfig.inverted = 0.0
InstructionConfig.chat_format = {chat_format!r}

FEATURE_LENGTHS = {lengths}
BATCH_SIZE = {batch_size}
STEPS = {steps}
SCHEDULE = 'linear'
WARMUP_STEPS = {warmup}
RunConfig.log_every = {log_every}
EvaluationConfig.every = 0
CheckpointConfig.every = {save_every}
CheckpointConfig.keep = 1
"""


@dataclasses.dataclass(frozen=True)
class Arm:
    """One training run."""

    method: str
    cot_rate: float
    seed: int

    @property
    def name(self) -> str:
        """Of its files."""
        return f'{self.method}-cot{self.cot_rate:g}-seed{self.seed}'

    def label(self, main_rate: float) -> str:
        """Of its row in the table; the arms of all seeds share it."""
        label = METHODS[self.method].label
        if self.cot_rate == main_rate:
            return label
        return f'{label}, {self.cot_rate:.0%} CoT' if self.cot_rate else f'{label}, without CoT'


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    root = Path(arguments.workdir)
    try:
        prepared = prepare_data(root, arguments)
        check_settings(root, arguments)
        if arguments.prepare_only:
            print(f'{root / "data"} is complete')
            return
        failed = [] if arguments.report_only else run_all(root, arguments, prepared)
        report(root, arguments, prepared)
    except UserError as error:
        raise SystemExit(f'error: {error}') from None
    if failed:
        raise SystemExit(f'error: {", ".join(failed)} failed; see {root}/logs. Fix the cause and start again.')


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--workdir', default='runs/instruction_tuning')
    add('--checkpoint', required=True, help='a converted chat model (`t5flan convert`)')
    add('--natural_instructions', help='a folder of Super-NaturalInstructions')
    add('--cot', help="a folder of FLAN's chain-of-thought sets; not needed if all rates are 0")
    add('--chat', help='a folder of conversations (.json, .jsonl)')
    add('--chat_format', default='template', help="the model's template, or markers (default: %(default)s)")
    add('--gsm8k', help="GSM8K's test.jsonl (default: without GSM8K's questions)")
    add('--methods', default='full,lora,dora,ia3', help=f'of {", ".join(METHODS)} (default: %(default)s)')
    add('--seeds', type=int, default=2)
    add('--cot_rate', type=float, default=0.3, help='share of the sets with rationales (default: %(default)s)')
    add('--rates', default='0', help='more such shares for --rate_methods; 0 is without (default: %(default)s)')
    add('--rate_methods', default='full', help='methods that are also trained with --rates (default: %(default)s)')
    add('--steps', type=int, default=40)
    add('--batch_size', type=int, default=4, help='packed rows of a step (default: %(default)s)')
    add('--input_tokens', type=int, default=256)
    add('--target_tokens', type=int, default=96, help='a row holds both (default: %(default)s)')
    add('--dtype', default='float32', help='of the computation (default: %(default)s)')
    add('--tasks', type=int, default=12, help='held-out tasks of Natural Instructions (default: %(default)s)')
    add('--rows', type=int, default=8, help='questions of each (default: %(default)s)')
    add('--reasoning_rows', type=int, default=16, help='questions of each reasoning set (default: %(default)s)')
    add('--cot_rows', type=int, default=2000, help='training rows of each set with rationales (default: %(default)s)')
    add('--prompt_tokens', type=int, default=1024, help='questions with longer prompts are left out')
    add('--max_new_tokens', type=int, default=96)
    add('--decoding_batch', type=int, default=32, help='prompts decoded together (default: %(default)s)')
    add('--jobs', type=int, default=1, help='arms at once (default: %(default)s)')
    add('--prepare_only', action='store_true', help='write WORKDIR/data and stop')
    add('--report_only', action='store_true', help='write the tables of what is finished')
    add('--smoke', action='store_true', help='two steps and three rows of everything')
    arguments = parser.parse_args(argv)
    if arguments.smoke:
        vars(arguments).update(SMOKE)
    for flag in ('methods', 'rate_methods'):
        if unknown := set(words(getattr(arguments, flag))) - set(METHODS):
            parser.error(f'--{flag} has {", ".join(sorted(unknown))}, expected of {", ".join(METHODS)}')
    return arguments


def words(text: str) -> list[str]:
    return [word.strip() for word in text.split(',') if word.strip()]


def arms_of(arguments: argparse.Namespace) -> list[Arm]:
    """Every training run: first all arms of a seed, so that a stopped experiment has whole seeds."""
    methods = words(arguments.methods)
    pairs = [(method, arguments.cot_rate) for method in methods]
    pairs += [(method, float(rate)) for method in words(arguments.rate_methods) for rate in words(arguments.rates)]
    pairs = list(dict.fromkeys((method, rate) for method, rate in pairs if method in methods))
    return [Arm(method, rate, seed) for seed in range(arguments.seeds) for method, rate in pairs]


# -- Stages ------------------------------------------------------------------------------------------------------------


def prepare_data(root: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Writes WORKDIR/data, or reads it if it is complete."""
    sizes = {
        name: getattr(arguments, name) for name in ('tasks', 'rows', 'reasoning_rows', 'cot_rows', 'prompt_tokens')
    }
    names = ('natural_instructions', 'cot', 'chat', 'gsm8k')
    sources = {name: getattr(arguments, name) for name in names}
    if arguments.cot is None and not any(arm.cot_rate for arm in arms_of(arguments)):
        del sources['cot']
    vocabulary = load_vocabulary(Path(arguments.checkpoint) / 'vocabulary')
    return prepare(root / 'data', sources, sizes, lambda text: len(vocabulary.encode(text)))


def check_settings(root: Path, arguments: argparse.Namespace) -> None:
    """Refuses to continue a run with settings that would make its parts differ."""
    names = ('steps', 'batch_size', 'input_tokens', 'target_tokens', 'dtype', 'max_new_tokens')
    require_same_settings(root, {name: getattr(arguments, name) for name in names})


def run_all(root: Path, arguments: argparse.Namespace, prepared: Mapping[str, Any]) -> list[str]:
    """Trains and evaluates every arm, --jobs at once; returns the names of those that failed."""
    write_whole(root / 'evaluation.gin', evaluation_gin(root / 'data', list(prepared['evaluations']), arguments))
    failed = []
    pool = concurrent.futures.ThreadPoolExecutor(arguments.jobs)
    try:
        with Children() as children:
            chains = {BEFORE: lambda: evaluate(children, root, BEFORE, arguments.checkpoint, arguments)}
            for arm in arms_of(arguments):
                chains[arm.name] = lambda arm=arm: run_arm(children, root, arm, arguments)
            futures = {pool.submit(timed, name, chain): name for name, chain in chains.items()}
            for future in concurrent.futures.as_completed(futures):
                if not future.result():
                    failed.append(futures[future])
    finally:
        pool.shutdown(cancel_futures=True)
    return failed


def timed(name: str, chain: Any) -> bool:
    """Runs an arm's commands and prints how long they took."""
    started = time.monotonic()
    is_done = chain()
    print(f'{name}: {"done" if is_done else "FAILED"} after {time.monotonic() - started:.0f} s', flush=True)
    return is_done


def run_arm(children: Children, root: Path, arm: Arm, arguments: argparse.Namespace) -> bool:
    """Trains and evaluates an arm; what is there already is skipped."""
    if is_evaluated(root, arm.name):
        return True
    workdir = root / 'runs' / arm.name
    if not is_trained(workdir, arguments.steps):
        gin = root / f'training-cot{arm.cot_rate:g}.gin'
        write_whole(gin, training_gin(root / 'data', arm.cot_rate, arguments))
        method = METHODS[arm.method]
        code = children.run(
            root / 'logs' / f'{arm.name}.log',
            'train',
            f'--workdir={workdir}',
            f'--gin_file={gin}',
            f'--gin.INITIALIZE_FROM={arguments.checkpoint}',
            f'--gin.ADAPTER={method.adapter}',
            f'--gin.LEARNING_RATE={method.learning_rate}',
            f'--gin.SEED={arm.seed}',
            f'--gin.ModelConfig.dtype={arguments.dtype}',
            '--gin.ModelConfig.remat=minimal',  # saves memory; the numbers are the same
        )
        if code or not is_trained(workdir, arguments.steps):
            return False
    return evaluate(children, root, arm.name, str(workdir), arguments)


def evaluate(children: Children, root: Path, name: str, checkpoint: str, arguments: argparse.Namespace) -> bool:
    """Evaluates a checkpoint on all held-out questions, in one process; True if the results are there."""
    if not is_evaluated(root, name):
        children.run(
            root / 'logs' / f'{name}.log',
            'evaluate',
            f'--checkpoint={checkpoint}',
            f'--gin_file={root}/evaluation.gin',
            '--tasks=file_tasks',
            '--split=test',
            f'--max_new_tokens={arguments.max_new_tokens}',
            f'--batch_size={arguments.decoding_batch}',
            f'--predictions={root}/evaluations/{name}.jsonl',
            f'--json={root}/evaluations/{name}.json',
        )
    return is_evaluated(root, name)


def is_evaluated(root: Path, name: str) -> bool:
    """Whether an arm's predictions are complete: `evaluate` writes the .json last."""
    return all((root / 'evaluations' / f'{name}{suffix}').is_file() for suffix in ('.json', '.jsonl'))


# -- Settings in gin ---------------------------------------------------------------------------------------------------


def training_gin(data: Path, cot_rate: float, arguments: argparse.Namespace) -> str:
    """The mixture and the schedule of all arms with this share of chain of thought."""
    others = {'natural_instructions': 1 - CHAT_RATE, 'chat': CHAT_RATE}
    rates = {name: round(rate * (1 - cot_rate), 4) for name, rate in others.items()}
    return MIXTURE.format(
        data=data,
        cot=f'{data}/cot' if cot_rate else None,
        chat_format=arguments.chat_format,
        rates=rates | ({'cot': cot_rate} if cot_rate else {}),
        lengths={'inputs': arguments.input_tokens, 'targets': arguments.target_tokens},
        batch_size=arguments.batch_size,
        steps=arguments.steps,
        warmup=max(1, arguments.steps // 20),
        log_every=max(1, arguments.steps // 10),
        save_every=max(1, arguments.steps // 2),
    )


def evaluation_gin(data: Path, names: list[str], arguments: argparse.Namespace) -> str:
    """A file task for each evaluation; nothing of the training data is read."""
    lines = []
    for number, name in enumerate(names):
        lines.append(f"t{number}/FileTask.name = '{name}'")
        lines += [f"t{number}/FileTask.{split} = '{data}/evaluation/{name}.jsonl'" for split in ('train', 'test')]
    lengths = {'inputs': arguments.prompt_tokens + 64, 'targets': arguments.max_new_tokens}
    lines += [
        f"ModelConfig.dtype = '{arguments.dtype}'  # that of training, for the untouched model too",
        f'DataConfig.file_tasks = [{", ".join(f"@t{number}/FileTask()" for number in range(len(names)))}]',
        f'DataConfig.feature_lengths = {lengths}  # 64 for the chat template',
        'DataConfig.mixtures = []',
        *(f'DataConfig.{source} = None' for source in ('natural_instructions', 'cot', 'chat')),
    ]
    return '\n'.join([*lines, ''])


# -- Report ------------------------------------------------------------------------------------------------------------


def report(root: Path, arguments: argparse.Namespace, prepared: Mapping[str, Any]) -> None:
    """Prints and writes the tables of all arms whose evaluations are there."""
    evaluations = prepared['evaluations']
    questions = {name: read_rows(root / 'data' / 'evaluation' / f'{name}.jsonl') for name in evaluations}
    arms = scores.baselines(questions, evaluations)
    finished = {arm.name: arm.label(arguments.cot_rate) for arm in arms_of(arguments)}
    for name, label in {BEFORE: BEFORE, **finished}.items():
        if is_evaluated(root, name):
            arms.setdefault(label, []).append(read_scores(root, name, questions, evaluations))
    summary = scores.summarize(arms, evaluations)
    text = scores.table(summary)
    content = {
        'arguments': vars(arguments),
        'learning_rates': {name: method.learning_rate for name, method in METHODS.items()},
        'data': {name: prepared[name] for name in ('held_out', 'trained', 'evaluations', 'sizes')},
        'seeds': {arm: len(runs) for arm, runs in arms.items()},
        'summary': {arm: {name: value._asdict() for name, value in one.items()} for arm, one in summary.items()},
        'differences from before': scores.differences(arms, BEFORE, evaluations) if BEFORE in arms else {},
    }
    write_json(root / 'results.json', content)
    write_whole(root / 'table.md', f'{text}\n')
    scores.draw(summary, root / 'figure.png')
    print(f'\n{text}\n\nSee {root}/results.json, table.md and figure.png')


def read_scores(
    root: Path, name: str, questions: Mapping[str, list[scores.Row]], evaluations: Mapping[str, Any]
) -> scores.Scores:
    """The value of each question of an arm.

    Raises:
        UserError: its predictions are of other questions.
    """
    predicted: dict[str, dict[int, str]] = {}
    path = root / 'evaluations' / f'{name}.jsonl'
    for row in read_rows(path):
        predicted.setdefault(row['task'], {})[row['index']] = row['prediction']
    found: scores.Scores = {}
    for task, one in evaluations.items():
        rows = questions[task]
        if sorted(predicted.get(task, {})) != list(range(len(rows))):
            raise UserError(f'{path} has not one prediction for each question of {task}. Remove it to evaluate again.')
        texts = [predicted[task][i] for i in range(len(rows))]
        found[task] = scores.score_rows(one['kind'], one['task'], rows, texts)
    return found


if __name__ == '__main__':
    main()
