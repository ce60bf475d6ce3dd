"""Adapts a pretrained decoder into an encoder-decoder, with UL2 and as a prefix LM, and compares ways to begin.

    python experiments/adaptation.py --workdir=runs/adaptation --checkpoint=runs/smollm2 --texts='data/books/*.txt' \
        --natural_instructions=data/natural_instructions --chat=data/chat

For each objective, one architecture (merged attention) is trained for equal steps on the same batches from four
beginnings: both stacks copied from the decoder, the encoder alone, the decoder alone, or nothing of it. The loss on
held-out text is recorded every --every steps. Then the copies, adapted with each objective, and the decoder itself are
finetuned on instructions and asked held-out tasks by `instruction_tuning.py`, with its defaults for all else.

Every step is a t5flan command, which is printed first. A stopped run continues when started again with the same flags,
and what is finished is skipped. Prints tables and writes results.json, table.md and curves.png.

The defaults take about three hours on two cores. --smoke takes two steps of everything, to see that it runs.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t5flan.errors import UserError
from t5flan.files import write_json, write_whole
from t5flan.training.metric_writer import read_metrics

import instruction_tuning
from runs import Children, is_trained, markdown, require_same_settings

OBJECTIVES = {'ul2': 'UL2', 'prefix_lm': 'prefix LM'}
BEGINNINGS = {'none': 'both stacks', 'encoder': 'decoder alone', 'decoder': 'encoder alone', 'all': 'from scratch'}
"""What `t5flan adapt --fresh` draws anew -> what is copied from the decoder."""
TOKENS = '[NLU],[NLG],[S2S]'
DECODER = 'decoder'
SMOKE = {'steps': 2, 'every': 1, 'batch_size': 2, 'input_tokens': 48, 'target_tokens': 48, 'batches': 1, 'smoke': True}

SETTINGS = """
include 'runs/adapt_{objective}.gin'
TEXT_FILES = {texts!r}
TEXT_UNIT = 'paragraph'
TextFiles.held_out = 0.05
FEATURE_LENGTHS = {lengths}
BATCH_SIZE = {batch_size}
STEPS = {steps}
LEARNING_RATE = {learning_rate}
OptimizerConfig.schedule = 'linear'
WARMUP_STEPS = {warmup}
ModelConfig.dtype = '{dtype}'
ModelConfig.remat = 'minimal'  # saves memory; the numbers are the same
RunConfig.log_every = {every}
EvaluationConfig.every = {every}
EvaluationConfig.batches = {batches}
EvaluationConfig.tasks = []
CheckpointConfig.every = {save_every}
CheckpointConfig.keep = 1
"""


def main(argv: list[str] | None = None) -> None:
    arguments = parse(argv)
    root = Path(arguments.workdir)
    try:
        check_settings(root, arguments)
        with Children() as children:
            failed = [name for name in arms() if not run_arm(children, root, *name, arguments)]
        if not failed and arguments.natural_instructions:
            for name, checkpoint in finetuned(root, arguments.checkpoint).items():
                instruct(root, name, checkpoint, arguments)
        report(root, arguments)
    except UserError as error:
        raise SystemExit(f'error: {error}') from None
    if failed:
        names = ', '.join('-'.join(name) for name in failed)
        raise SystemExit(f'error: {names} failed; see {root}/logs. Fix the cause and start again.')


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--workdir', default='runs/adaptation')
    add('--checkpoint', required=True, help='a converted decoder (`t5flan convert`)')
    add('--texts', required=True, help='a glob of text files; 5 %% of their chunks are held out')
    add('--natural_instructions', help='a folder of Super-NaturalInstructions (default: without finetuning)')
    add('--chat', help='a folder of conversations (.json, .jsonl)')
    add('--steps', type=int, default=60)
    add('--every', type=int, default=10, help='steps between evaluations (default: %(default)s)')
    add('--batches', type=int, default=4, help='batches of held-out text in an evaluation (default: %(default)s)')
    add('--batch_size', type=int, default=8)
    add('--input_tokens', type=int, default=128)
    add('--target_tokens', type=int, default=128)
    add('--learning_rate', type=float, default=3e-4)
    add('--dtype', default='bfloat16', help='of the computation (default: %(default)s)')
    add('--smoke', action='store_true', help='two steps of everything')
    arguments = parser.parse_args(argv)
    if arguments.smoke:
        vars(arguments).update(SMOKE)
    return arguments


def arms() -> list[tuple[str, str]]:
    """(objective, what is drawn anew) of every run: the copies of each objective first."""
    return [(objective, fresh) for fresh in BEGINNINGS for objective in OBJECTIVES]


# -- Stages ------------------------------------------------------------------------------------------------------------


def check_settings(root: Path, arguments: argparse.Namespace) -> None:
    """Refuses to continue with settings that would make the parts differ.

    Raises:
        UserError: the folder was started with others.
    """
    names = ('steps', 'every', 'batches', 'batch_size', 'input_tokens', 'target_tokens', 'learning_rate', 'dtype')
    settings = {name: getattr(arguments, name) for name in (*names, 'checkpoint', 'texts')}
    require_same_settings(root, settings)


def run_arm(children: Children, root: Path, objective: str, fresh: str, arguments: argparse.Namespace) -> bool:
    """Builds and trains a model; what is there already is skipped. True if it is trained."""
    workdir, log = root / 'runs' / f'{objective}-{fresh}', root / 'logs' / f'{objective}-{fresh}.log'
    if is_trained(workdir, arguments.steps):
        return True
    model = root / 'models' / fresh
    if not (model / 't5flan.json').exists():
        adapt = [f'--from={arguments.checkpoint}', f'--fresh={fresh}', '--add_sentinels=100', f'--add_tokens={TOKENS}']
        if children.run(log, 'adapt', *adapt, str(model)):
            return False
    gin = root / f'{objective}.gin'
    write_whole(gin, settings_gin(objective, arguments))
    given = [f'--workdir={workdir}', f'--gin_file={gin}', f'--gin.INITIALIZE_FROM={model}']
    return not children.run(log, 'train', *given) and is_trained(workdir, arguments.steps)


def settings_gin(objective: str, arguments: argparse.Namespace) -> str:
    """The settings that all beginnings share."""
    names = ('texts', 'batch_size', 'steps', 'learning_rate', 'dtype', 'every', 'batches')
    return SETTINGS.format(
        objective=objective,
        lengths={'inputs': arguments.input_tokens, 'targets': arguments.target_tokens},
        warmup=max(1, arguments.steps // 10),
        save_every=max(1, arguments.steps // 2),
        **{name: getattr(arguments, name) for name in names},
    )


def finetuned(root: Path, decoder: str) -> dict[str, str]:
    """Name -> checkpoint of the models that are finetuned on instructions."""
    return {DECODER: decoder} | {objective: str(root / 'runs' / f'{objective}-none') for objective in OBJECTIVES}


def instruct(root: Path, name: str, checkpoint: str, arguments: argparse.Namespace) -> None:
    """Finetunes a model on instructions and evaluates it, in a folder of its own."""
    folders = {'natural_instructions': arguments.natural_instructions, 'chat': arguments.chat}
    given = [f'--{flag}={folder}' for flag, folder in folders.items() if folder]
    given += [f'--workdir={root}/instructions/{name}', f'--checkpoint={checkpoint}', f'--dtype={arguments.dtype}']
    given += ['--methods=full', '--rates=', '--cot_rate=0', '--seeds=1', '--prompt_tokens=512']
    instruction_tuning.main([*given, *(['--smoke', '--methods=full'] if arguments.smoke else [])])


# -- Report ------------------------------------------------------------------------------------------------------------


def report(root: Path, arguments: argparse.Namespace) -> None:
    """Prints and writes the tables of what is finished."""
    curves = {arm: losses(root / 'runs' / '-'.join(arm)) for arm in arms()}
    curves = {arm: curve for arm, curve in curves.items() if curve}
    text = loss_table(curves)
    summaries = {name: summary(root / 'instructions' / name) for name in finetuned(root, arguments.checkpoint)}
    if any(summaries.values()):
        text += f'\n\n{instruction_table(summaries)}'
    write_json(
        root / 'results.json',
        {
            'arguments': vars(arguments),
            'losses': {'-'.join(arm): curve for arm, curve in curves.items()},
            'instructions': summaries,
        },
    )
    write_whole(root / 'table.md', f'{text}\n')
    draw(curves, root / 'curves.png')
    print(f'\n{text}\n\nSee {root}/results.json, table.md and curves.png')


def losses(workdir: Path) -> dict[int, float]:
    """Step -> loss on the held-out text."""
    return {int(row['step']): row['eval/loss'] for row in read_metrics(workdir) if 'eval/loss' in row}


def loss_table(curves: Mapping[tuple[str, str], Mapping[int, float]]) -> str:
    """A row for each arm, a column for each recorded step."""
    steps = sorted({step for curve in curves.values() for step in curve})
    rows = [
        [OBJECTIVES[objective], BEGINNINGS[fresh], *(f'{curve[step]:.3f}' if step in curve else '' for step in steps)]
        for objective in OBJECTIVES
        for (named, fresh), curve in curves.items()
        if named == objective
    ]
    return markdown(['objective', 'copied', *(f'step {step}' for step in steps)], rows)


def summary(workdir: Path) -> dict[str, Any]:
    """Arm -> column -> estimate of `instruction_tuning.py`; empty if it has not run."""
    path = workdir / 'results.json'
    found: dict[str, Any] = json.loads(path.read_text('utf-8'))['summary'] if path.exists() else {}
    return found


def instruction_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each model before and after finetuning, with 95 % intervals."""
    labels = {DECODER: 'the decoder', **{name: f'adapted with {title}' for name, title in OBJECTIVES.items()}}
    rows: list[Sequence[str]] = []
    titles: list[str] = []
    for name, arm_values in summaries.items():
        for arm, values in arm_values.items():
            if arm in ('before', 'full finetuning') or name == DECODER:
                label = arm if arm not in ('before', 'full finetuning') else f'{labels[name]}, {arm}'
                titles = list(values)
                cells = [f'{one["mean"]:.1f} ({one["low"]:.1f} to {one["high"]:.1f})' for one in values.values()]
                rows.append([label, *cells])
    return markdown(['', *titles], rows)


def draw(curves: Mapping[tuple[str, str], Mapping[int, float]], path: Path) -> None:
    """The curves, a panel for each objective."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout='constrained')
    for panel, (objective, title) in zip(figure.subplots(1, len(OBJECTIVES)), OBJECTIVES.items(), strict=True):
        for (named, fresh), curve in curves.items():
            if named == objective:
                panel.plot(list(curve), list(curve.values()), marker='o', ms=3, label=BEGINNINGS[fresh])
        panel.set_title(title, fontsize=10)
        panel.set_xlabel('step')
        panel.set_ylabel('nats per target token')
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8, frameon=False, title='copied from the decoder', title_fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == '__main__':
    main()
