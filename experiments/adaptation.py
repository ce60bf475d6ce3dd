"""Adapts a pretrained decoder into an encoder-decoder, with UL2 and as a prefix LM, and compares ways to begin.

    python experiments/adaptation.py --workdir=runs/adaptation --checkpoint=runs/smollm2 --texts='data/books/*.txt' \
        --natural_instructions=data/natural_instructions --chat=data/chat

For each objective, one architecture (merged attention) is trained for equal steps on the same batches from four
beginnings: both stacks copied from the decoder, nothing of it, the decoder alone, or the encoder alone. The loss on
held-out text is recorded before the first step and every --every steps. Then the copies, adapted with each objective,
and the decoder itself are finetuned on instructions and asked held-out tasks by `instruction_tuning.py`.

Every step is a t5flan command, which is printed first. A stopped run continues when started again with the same flags,
and what is finished is skipped. After each model, tables of what is there are printed and written: results.json,
table.md and curves.png; --report_only does nothing else, also while the experiment runs, and --page=FILE.md puts them
into a page. Of a finished model that is not finetuned, the metrics are kept and the checkpoints removed.

The defaults take about an hour and a half on two cores. --smoke takes two steps of everything.
"""

import argparse
import functools
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t5flan.errors import UserError
from t5flan.files import write_json, write_whole
from t5flan.training.metric_writer import read_metrics

import instruction_tuning
from runs import Children, is_trained, markdown, require_same_settings

OBJECTIVES = {'ul2': 'UL2', 'prefix_lm': 'prefix LM'}
COPIES, SCRATCH = 'none', 'all'
BEGINNINGS = {COPIES: 'both stacks', SCRATCH: 'nothing', 'encoder': 'the decoder', 'decoder': 'the encoder'}
"""What `t5flan adapt --fresh` draws anew -> what is copied, by how much a stopped experiment would miss it."""
TOKENS = '[NLU],[NLG],[S2S]'
DECODER = 'decoder'
BEFORE, AFTER = instruction_tuning.BEFORE, instruction_tuning.METHODS['full'].label
INSTRUCTION_FLAGS = {'instruction_steps': 'steps', 'tasks': 'tasks', 'rows': 'rows'}
INSTRUCTION_FLAGS |= {name: name for name in ('prompt_tokens', 'max_new_tokens', 'dtype', 'chat_format')}
"""Flags of this experiment -> those of `instruction_tuning.py`."""
SMOKE = {
    'steps': 2, 'every': 1, 'batch_size': 2, 'input_tokens': 48, 'target_tokens': 48, 'batches': 1,
    'instruction_steps': 2, 'tasks': 2, 'rows': 2, 'max_new_tokens': 4,
}  # fmt: skip
BEGIN, END = '<!-- begin of experiments/adaptation.py -->', '<!-- end of experiments/adaptation.py -->'
"""What --page writes is between these lines."""

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
    failed: list[str] = []
    try:
        check_settings(root, arguments)
        if not arguments.report_only:
            failed = run_all(root, arguments)
        report(root, arguments)
    except UserError as error:
        raise SystemExit(f'error: {error}') from None
    if failed:
        raise SystemExit(f'error: {", ".join(failed)} failed; see {root}/logs. Fix the cause and start again.')


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--workdir', default='runs/adaptation')
    add('--checkpoint', help='a converted decoder (`t5flan convert`)')
    add('--texts', help='a glob of text files; 5 %% of their chunks are held out')
    add('--natural_instructions', help='a folder of Super-NaturalInstructions (default: without finetuning)')
    add('--chat', help='a folder of conversations (.json, .jsonl)')
    add('--chat_format', default='template', help='of conversations: template or markers (default: %(default)s)')
    add('--steps', type=int, default=160)
    add('--every', type=int, default=20, help='steps between evaluations (default: %(default)s)')
    add('--batches', type=int, default=6, help='batches of held-out text in an evaluation (default: %(default)s)')
    add('--batch_size', type=int, default=4, help='packed rows of a step (default: %(default)s)')
    add('--input_tokens', type=int, default=128)
    add('--target_tokens', type=int, default=128)
    add('--learning_rate', type=float, default=3e-4)
    add('--dtype', default='bfloat16', help='of the computation (default: %(default)s)')
    add('--instruction_steps', type=int, default=60, help='steps of finetuning (default: %(default)s)')
    add('--tasks', type=int, default=12, help='held-out tasks of Natural Instructions (default: %(default)s)')
    add('--rows', type=int, default=6, help='questions of each (default: %(default)s)')
    add('--prompt_tokens', type=int, default=512, help='questions with longer prompts are left out')
    add('--max_new_tokens', type=int, default=64)
    add('--report_only', action='store_true', help='write the tables of what is finished')
    add('--page', help='a Markdown file to put the tables and the figure into, with --report_only')
    add('--smoke', action='store_true', help='two steps of everything')
    arguments = parser.parse_args(argv)
    if arguments.smoke:
        vars(arguments).update(SMOKE)
    needed = () if arguments.report_only else ('checkpoint', 'texts')
    needed += ('chat',) if arguments.natural_instructions else ()
    if missing := [f'--{name}' for name in needed if not getattr(arguments, name)]:
        parser.error(f'{", ".join(missing)} missing')
    if arguments.page and not arguments.report_only:
        parser.error('--page needs --report_only')
    return arguments


def arms() -> list[tuple[str, str]]:
    """(objective, what is drawn anew) of every run: first the copies and the new model of each objective."""
    order = list(BEGINNINGS)
    return [(objective, fresh) for pair in (order[:2], order[2:]) for objective in OBJECTIVES for fresh in pair]


# -- Stages ------------------------------------------------------------------------------------------------------------


def check_settings(root: Path, arguments: argparse.Namespace) -> None:
    """Refuses to continue with settings that would make the parts differ; a report has those of the folder.

    Raises:
        UserError: the folder was started with others, or there is nothing to report.
    """
    if arguments.report_only:
        path = root / 'settings.json'
        if not path.exists():
            raise UserError(f'{path}: no such file. Set --workdir to a folder that this experiment has written.')
        vars(arguments).update(json.loads(path.read_text('utf-8')))
        return
    names = ('steps', 'every', 'batches', 'batch_size', 'input_tokens', 'target_tokens', 'learning_rate', 'dtype')
    settings = {name: getattr(arguments, name) for name in (*names, *INSTRUCTION_FLAGS, 'checkpoint', 'texts')}
    require_same_settings(root, settings)


def run_all(root: Path, arguments: argparse.Namespace) -> list[str]:
    """Trains every model, then finetunes those of `finetuned`; returns the names of the runs that failed."""
    failed = []
    with Children() as children:
        for objective, fresh in arms():
            is_new = not is_finished(root, objective, fresh, arguments)
            name, run = f'{objective}-{fresh}', functools.partial(run_arm, children, root, objective, fresh, arguments)
            if not instruction_tuning.timed(name, run):
                failed.append(name)
            elif is_new:
                report(root, arguments)
    if arguments.natural_instructions:
        for name, checkpoint in finetuned(root, arguments.checkpoint).items():
            if f'{name}-{COPIES}' not in failed:
                instruct(root, name, checkpoint, arguments)
                report(root, arguments)
    return failed


def recorded_steps(arguments: argparse.Namespace) -> list[int]:
    """The steps whose loss every run records."""
    return [*range(0, arguments.steps, arguments.every), arguments.steps]


def is_finished(root: Path, objective: str, fresh: str, arguments: argparse.Namespace) -> bool:
    """Whether a model's losses are all there, and its checkpoint if it is finetuned later."""
    workdir = root / 'runs' / f'{objective}-{fresh}'
    is_kept = fresh != COPIES or is_trained(workdir, arguments.steps)
    return is_kept and set(recorded_steps(arguments)) <= losses(workdir).keys()


def run_arm(children: Children, root: Path, objective: str, fresh: str, arguments: argparse.Namespace) -> bool:
    """Builds and trains a model; what is there already is skipped. True if it is finished."""
    workdir, log = root / 'runs' / f'{objective}-{fresh}', root / 'logs' / f'{objective}-{fresh}.log'
    if not is_finished(root, objective, fresh, arguments):
        model = build(children, root, fresh, log, arguments)
        if model is None:
            return False
        gin = root / f'{objective}.gin'
        write_whole(gin, settings_gin(objective, arguments))
        given = [f'--workdir={workdir}', f'--gin_file={gin}', f'--gin.INITIALIZE_FROM={model}']
        if children.run(log, 'train', *given) or not is_finished(root, objective, fresh, arguments):
            return False
    if fresh != COPIES:
        shutil.rmtree(workdir / 'checkpoints', ignore_errors=True)  # 2.9 GB of SmolLM2, which nothing reads
    return True


def build(children: Children, root: Path, fresh: str, log: Path, arguments: argparse.Namespace) -> Path | None:
    """The encoder-decoder to start from; None if it could not be built."""
    model, partial = root / 'models' / fresh, root / 'models' / f'{fresh}.partial'
    if not model.exists():
        shutil.rmtree(partial, ignore_errors=True)  # of a killed run
        model.parent.mkdir(parents=True, exist_ok=True)
        adapt = [f'--from={arguments.checkpoint}', f'--fresh={fresh}', '--add_sentinels=100', f'--add_tokens={TOKENS}']
        if children.run(log, 'adapt', *adapt, str(partial)):
            return None
        partial.rename(model)
    return model


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
    adapted = {objective: str(root / 'runs' / f'{objective}-{COPIES}') for objective in OBJECTIVES}
    return {DECODER: decoder} | adapted


def instruct(root: Path, name: str, checkpoint: str, arguments: argparse.Namespace) -> None:
    """Finetunes a model on instructions and evaluates it, in a folder of its own."""
    given = [f'--natural_instructions={arguments.natural_instructions}', f'--chat={arguments.chat}']
    given += [f'--workdir={root}/instructions/{name}', f'--checkpoint={checkpoint}']
    given += [f'--{theirs}={getattr(arguments, ours)}' for ours, theirs in INSTRUCTION_FLAGS.items()]
    instruction_tuning.main([*given, '--methods=full', '--rates=', '--cot_rate=0', '--seeds=1'])


# -- Report ------------------------------------------------------------------------------------------------------------


def report(root: Path, arguments: argparse.Namespace) -> None:
    """Prints and writes the tables of what is there."""
    curves = {arm: losses(root / 'runs' / '-'.join(arm)) for arm in arms()}
    curves = {arm: curve for arm, curve in curves.items() if curve}
    summaries = {name: summary(root / 'instructions' / name) for name in finetuned(root, '')}
    parts = [described(arguments), loss_table(curves, recorded_steps(arguments)), *compared(curves)]
    if any(summaries.values()):
        parts.append(instruction_table(summaries))
    text = '\n\n'.join(parts)
    content = {'arguments': vars(arguments), 'losses': {'-'.join(arm): curve for arm, curve in curves.items()}}
    write_json(root / 'results.json', content | {'instructions': summaries})
    write_whole(root / 'table.md', f'{text}\n')
    draw(curves, root / 'curves.png')
    if arguments.page:
        write_page(Path(arguments.page), text, root / 'curves.png')
    print(f'\n{text}\n\nSee {root}/results.json, table.md and curves.png', flush=True)


def described(arguments: argparse.Namespace) -> str:
    """The settings that the numbers depend on."""
    rows = f'{arguments.batch_size} packed rows of {arguments.input_tokens} input and {arguments.target_tokens} target'
    trained = f'{arguments.steps} steps of {rows} tokens, learning rate {arguments.learning_rate:g}, {arguments.dtype}'
    return f'{trained}. The loss is in nats per target token, over {arguments.batches} batches of held-out text.'


def losses(workdir: Path) -> dict[int, float]:
    """Step -> loss on the held-out text."""
    return {int(row['step']): row['eval/loss'] for row in read_metrics(workdir) if 'eval/loss' in row}


def loss_table(curves: Mapping[tuple[str, str], Mapping[int, float]], steps: Sequence[int]) -> str:
    """A row for each model, a column for each of `steps`."""
    rows = [
        [OBJECTIVES[objective], BEGINNINGS[fresh], *(f'{curve[step]:.3f}' if step in curve else '' for step in steps)]
        for objective in OBJECTIVES
        for (named, fresh), curve in curves.items()
        if named == objective
    ]
    return markdown(['objective', 'copied', *(f'step {step}' for step in steps)], rows)


def compared(curves: Mapping[tuple[str, str], Mapping[int, float]]) -> list[str]:
    """For each objective, at how many steps the loss of the copies is below that from scratch."""
    found = []
    for objective, title in OBJECTIVES.items():
        copies, scratch = (curves.get((objective, fresh), {}) for fresh in (COPIES, SCRATCH))
        both = sorted(copies.keys() & scratch.keys())
        lower = sum(copies[step] < scratch[step] for step in both)
        if both:
            where = f'{lower} of the {len(both)} recorded steps that both have'
            found.append(f'{title}: with both stacks copied, the loss is below that from scratch at {where}.')
    return found


def summary(workdir: Path) -> dict[str, Any]:
    """Arm -> column -> estimate of `instruction_tuning.py`; empty if it has not run."""
    path = workdir / 'results.json'
    found: dict[str, Any] = json.loads(path.read_text('utf-8'))['summary'] if path.exists() else {}
    return found


def instruction_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each baseline, and for each model before and after finetuning, with 95 % intervals."""
    labels = {DECODER: 'the decoder', **{name: f'adapted with {title}' for name, title in OBJECTIVES.items()}}
    rows: dict[str, Sequence[str]] = {}
    titles: list[str] = []
    for name, arm_values in summaries.items():
        for arm, values in arm_values.items():
            label = f'{labels[name]}, {arm}' if arm in (BEFORE, AFTER) else arm  # baselines read no model
            titles = list(values)
            rows[label] = [f'{one["mean"]:.1f} ({one["low"]:.1f} to {one["high"]:.1f})' for one in values.values()]
    return markdown(['', *titles], [[label, *cells] for label, cells in rows.items()])


def write_page(page: Path, text: str, figure: Path) -> None:
    """Puts the tables and the figure between the lines BEGIN and END of a page; the figure lies beside it.

    Raises:
        UserError: the page lacks the lines.
    """
    if not page.is_file():
        raise UserError(f'--page={page}: no such file. Set it to a page with the lines {BEGIN} and {END}.')
    before, begin, rest = page.read_text('utf-8').partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UserError(f'--page={page} lacks the lines {BEGIN} and {END}. Add them where the tables belong.')
    name = f'{page.stem}.png'
    shutil.copyfile(figure, page.with_name(name))
    image = f'![Loss on held-out text of each model]({name})'
    write_whole(page, f'{before}{BEGIN}\n\n{text}\n\n{image}\n\n{END}{after}')


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
        if panel.lines:
            panel.legend(fontsize=8, frameon=False, title='copied from the decoder', title_fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == '__main__':
    main()
