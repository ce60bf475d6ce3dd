"""`t5flan quickstart`: from nothing to a tiny model that follows instructions, on any machine.

Pretrains on the documentation of the running Python, finetunes on generated instructions, and evaluates both models on
the same questions: unseen examples of the tasks, unseen wordings, and tasks that are in no training mixture. Every step
is also a command (`train`, `evaluate`, `infer`) with a gin file that you can change.
"""

import dataclasses
import os
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from t5flan import configurables
from t5flan.data.mixtures.mixing import find_mixture, tasks_and_rates
from t5flan.data.vocabulary.training import train_sentencepiece
from t5flan.decoding.config import Decoding
from t5flan.errors import UserError
from t5flan.evaluation.evaluator import evaluate_tasks
from t5flan.files import remove_partial, to_path
from t5flan.language_model import LanguageModel, load
from t5flan.reporting import page
from t5flan.reporting.run_report import curve
from t5flan.training.metric_writer import read_metrics
from t5flan.training.trainer import train

VOCABULARY_SIZE = 2048
VOCABULARY_TEXTS = {'practice': 20_000, 'stdlib_docs_causal_lm': 1_000}
"""Mixtures that the vocabulary is trained on, and the number of texts from each."""

RATIONALE = '_cot'
"""Suffix of the practice tasks whose targets are rationales; the rest of the name is the direct task."""

ARITHMETIC = ('practice_add_three', 'practice_multiply', 'practice_two_steps')
"""The harder arithmetic tasks, in the table of what rationales add."""

PROMPTS = (
    'Sort these words: sun dog cup',
    "What is 4 + 7 + 9? Let's think step by step.",
    'Say the number 42 in French.',
)


@dataclasses.dataclass(frozen=True)
class Questions:
    """Rows of the table: the tasks of a mixture, on a split."""

    title: str
    mixture: str
    split: str


QUESTIONS = (
    Questions('unseen examples', 'practice', 'validation'),
    Questions('unseen wordings', 'practice', 'test_wordings'),
    Questions('unseen tasks', 'practice_unseen_tasks', 'validation'),
)


def main(workdir: str, examples: int = 32) -> None:
    """Runs every step in `workdir`, then prints the results and the path of the report.

    Args:
        workdir: folder for vocabulary.model, pretrained/, finetuned/, report.html and report.png; replaces the results
            of an earlier quickstart.
        examples: evaluation questions per task.

    Raises:
        UserError: `workdir` has files that are not from a quickstart.
    """
    clock = Clock()
    folder = _empty_folder(to_path(workdir))
    vocabulary = str(folder / 'vocabulary.model')

    print(f'1/4  training a vocabulary of {VOCABULARY_SIZE:,} pieces', flush=True)
    train_sentencepiece(_texts(), VOCABULARY_SIZE, mode_tokens=()).save_model(vocabulary)
    clock.lap('vocabulary')

    print('2/4  pretraining on the documentation of this Python', flush=True)
    pretrained = str(folder / 'pretrained')
    run('runs/quickstart_pretrain', pretrained, VOCABULARY=vocabulary)
    clock.lap('pretraining')

    print('3/4  finetuning on generated instructions', flush=True)
    finetuned = str(folder / 'finetuned')
    run('runs/quickstart_finetune', finetuned, VOCABULARY=vocabulary, INITIALIZE_FROM=pretrained)
    clock.lap('finetuning')

    print('4/4  evaluating both models on the same questions', flush=True)
    before, after = (evaluate(load(path), examples) for path in (pretrained, finetuned))
    prompts = load(finetuned).generate(PROMPTS)
    clock.lap('evaluation')

    curves = loss_curves(pretrained, finetuned)
    sections = report_sections(before, after, prompts, clock)
    subtitle = 'A tiny encoder-decoder, from raw text to instructions, on this machine'
    path = page.write_report(folder / 'report.html', 't5flan quickstart', [curves, *sections], subtitle)
    page.save_picture(curves, folder / 'report.png')
    _print_outcome(before, after, prompts, path, finetuned, clock)


def run(gin_file: str, workdir: str, **macros: str) -> None:
    """Does what `t5flan train --workdir=… --gin_file=… --gin.NAME=…` does."""
    settings = configurables.parse([gin_file], [f'{name}={value}' for name, value in macros.items()])
    train(workdir, **configurables.training_settings(settings), gin=settings.operative_config())


# -- Steps ------------------------------------------------------------------------------------------------------------

Results = dict[str, dict[str, Any]]


def evaluate(model: LanguageModel, examples: int) -> dict[str, Results]:
    """Returns, for each of `QUESTIONS`, task -> exact match in percent and a few samples."""
    large = Decoding(batch_size=256)
    return {one.title: evaluate_tasks(model, [one.mixture], one.split, examples, decoding=large) for one in QUESTIONS}


def _texts() -> Iterator[str]:
    """The texts that the vocabulary is trained on: records of the mixtures, round-robin over the tasks."""
    for mixture, count in VOCABULARY_TEXTS.items():
        sources = [task.source.records('train') for task, _ in tasks_and_rates(find_mixture(mixture))]
        for number in range(count):
            records = sources[number % len(sources)]
            record = records[number // len(sources) % len(records)]
            yield from (record[field] for field in ('inputs', 'targets', 'text') if field in record)


def _empty_folder(folder: Path) -> Path:
    """Empties the folder of an earlier quickstart, or creates it.

    Raises:
        UserError: it has other files.
    """
    made = {'vocabulary.model', 'vocabulary.json', 'pretrained', 'finetuned', 'report.html', 'report.png'}
    remove_partial(folder)
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if there - made:
        raise UserError(
            f'{folder} has {min(there - made)!r}, which is not from a quickstart. Set --workdir to a new folder.'
        )
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    else:  # in a bucket
        folder.rmtree(missing_ok=True)
    folder.mkdir(parents=True)
    return folder


class Clock:
    """Measures the wall time of each step, in seconds."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Ends the step `name`."""
        now = time.monotonic()
        self.laps[name], self._last = now - self._last, now

    @property
    def total(self) -> float:
        """Seconds of all steps."""
        return sum(self.laps.values())


# -- Results ----------------------------------------------------------------------------------------------------------


OUTCOME_COLUMNS = ('questions', 'answers', 'tasks', 'pretrained', 'finetuned')


def outcome_rows(before: dict[str, Results], after: dict[str, Results]) -> list[list[Any]]:
    """Returns the rows of the table, with the columns `OUTCOME_COLUMNS`."""
    rows = []
    for title in before:
        for rationale, answers in ((False, 'direct'), (True, 'with a rationale')):
            tasks = [task for task in before[title] if task.endswith(RATIONALE) == rationale]
            means = [
                statistics.mean(results[title][task]['exact_match'] for task in tasks) for results in (before, after)
            ]
            rows.append([title, answers, len(tasks), *means])
    return rows


def rationale_rows(after: dict[str, Results]) -> list[list[Any]]:
    """Returns exact match in percent on unseen examples of `ARITHMETIC`: task, direct, with a rationale."""
    results = after[QUESTIONS[0].title]
    rows = []
    for task in ARITHMETIC:
        direct, with_rationale = (results[name]['exact_match'] for name in (task, task + RATIONALE))
        rows.append([task.removeprefix('practice_').replace('_', ' '), direct, with_rationale])
    return rows


def loss_curves(pretrained: str, finetuned: str) -> page.Curves:
    """Returns the training loss of both runs."""
    panels = []
    for title, folder in (('pretraining: masked spans', pretrained), ('finetuning: instructions', finetuned)):
        loss = curve(read_metrics(folder), 'loss')
        panels.append(page.Panel(title, {'loss': loss}, y_label='nats per token'))
    return page.Curves('Loss', panels)


def report_sections(
    before: dict[str, Results], after: dict[str, Results], prompts: Sequence[str], clock: Clock
) -> list[page.Section]:
    """Returns the sections of the report below the curves."""
    tasks = [
        [task.removeprefix('practice_')] + [after[title].get(task, {}).get('exact_match') for title in after]
        for task in sorted({task for results in after.values() for task in results})
    ]
    samples = []
    for title, results in after.items():
        for task in list(results)[::6]:
            earlier, row = (asked[title][task]['samples'][0] for asked in (before, after))
            predictions = {'pretrained': earlier['prediction'], 'finetuned': row['prediction']}
            correct = {'finetuned': row['prediction'].strip() == row['target'].strip()}
            samples.append(page.Sample(row['input'], predictions, row['target'], correct, f'{title}: {task}'))
    outcome = 'Means over tasks. None of these questions was in the training data.'
    rationale_columns = ('arithmetic', 'direct', 'with a rationale')
    rationales = 'Exact match on unseen examples, percent.'
    return [
        page.Table('Exact match, percent', OUTCOME_COLUMNS, outcome_rows(before, after), outcome),
        page.Table('What rationales add', rationale_columns, rationale_rows(after), rationales),
        page.Samples('Prompts', [page.Sample(prompt, {'finetuned': text}) for prompt, text in zip(PROMPTS, prompts)]),
        page.Samples('Sample questions', samples),
        page.Table('Exact match by task, percent', ['task', *after], tasks),
        page.Table('Time', ['step', 'seconds'], [*clock.laps.items(), ('all', clock.total)], total=True),
    ]


def _print_outcome(
    before: dict[str, Results],
    after: dict[str, Results],
    prompts: Sequence[str],
    report: os.PathLike[str],
    checkpoint: str,
    clock: Clock,
) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=100)
    table = Table(title='exact match, percent', title_justify='left')
    for i, column in enumerate(OUTCOME_COLUMNS):
        table.add_column(column, justify='left' if i < 2 else 'right')
    for *words, tasks, first, last in outcome_rows(before, after):
        table.add_row(*words, str(tasks), f'{first:.1f}', f'{last:.1f}')
    console.print(table)
    table = Table(title='what rationales add on the harder arithmetic', title_justify='left')
    for column in ('unseen examples of', 'direct', 'with a rationale'):
        table.add_column(column, justify='left' if column.startswith('unseen') else 'right')
    for name, direct, reasoned in rationale_rows(after):
        table.add_row(name, f'{direct:.1f}', f'{reasoned:.1f}')
    console.print(table)
    for prompt, text in zip(PROMPTS, prompts):
        console.print(f'> {prompt}\n  {text}', markup=False, highlight=False)
    times = ', '.join(f'{name} {seconds:.0f} s' for name, seconds in clock.laps.items())
    print(
        f'\n{times}; {clock.total / 60:.1f} minutes in all\nreport: {report}\n\ntry next:\n'
        f'  t5flan infer --checkpoint={checkpoint} --prompt="{PROMPTS[0]}"\n'
        f'  t5flan evaluate --checkpoint={checkpoint} --tasks=practice_unseen_tasks\n'
        f'  t5flan train --workdir=runs/mine --gin_file=runs/finetune_file --gin.INITIALIZE_FROM={checkpoint} '
        '--gin.TRAIN_FILE=YOUR.jsonl'
    )
