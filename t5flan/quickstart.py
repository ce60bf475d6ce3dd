"""From nothing to a model that follows instructions, on any machine: `t5flan quickstart`.

Pretrains on the running Python's own documentation, finetunes on generated instructions, and asks both models the same
questions: unseen examples of the tasks, unseen wordings, and tasks that no training mixture holds. Each part is a
command of its own (`train`, `evaluate`, `infer`) with a gin file that can be changed; this page runs them in turn.
"""

import dataclasses
import itertools
import os
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from t5flan import configurables
from t5flan.data.config import DataConfig
from t5flan.data.mixtures.mixing import find_mixture, tasks_and_rates
from t5flan.data.vocabulary.training import train_sentencepiece
from t5flan.decoding.config import Decoding
from t5flan.errors import UserError
from t5flan.evaluation.evaluator import evaluate_tasks
from t5flan.language_model import LanguageModel, load
from t5flan.mesh import MeshConfig
from t5flan.models.config import ModelConfig
from t5flan.reporting import page
from t5flan.training.config import CheckpointConfig, EvaluationConfig, LossConfig, OptimizerConfig, RunConfig
from t5flan.training.metric_writer import read_metrics
from t5flan.training.trainer import train

VOCABULARY_SIZE = 2048
VOCABULARY_TEXTS = {'practice': 20_000, 'stdlib_docs_causal_lm': 1_000}
"""How many texts of each mixture the vocabulary is learned from."""

RATIONALE = '_cot'
"""How the practice tasks whose targets are rationales end; the direct task has the name before it."""

ARITHMETIC = ('practice_add_three', 'practice_multiply', 'practice_two_steps')
"""The harder arithmetic, on which the table shows what rationales add."""

PROMPTS = (
    'Sort these words: sun dog cup',
    "What is 4 + 7 + 9? Let's think step by step.",
    'Say the number 42 in French.',
)


@dataclasses.dataclass(frozen=True)
class Questions:
    """A row of the table: the tasks of a mixture, on a split."""

    title: str
    mixture: str
    split: str


QUESTIONS = (
    Questions('unseen examples', 'practice', 'validation'),
    Questions('unseen wordings', 'practice', 'test_wordings'),
    Questions('unseen tasks', 'practice_unseen_tasks', 'validation'),
)


def main(workdir: str, examples: int = 32) -> None:
    """Does all of it in `workdir` and prints what came out and where the report is.

    Args:
        workdir: holds vocabulary.model, pretrained/, finetuned/ and report.html afterwards. An earlier quickstart's is
            removed first.
        examples: how many questions each task is asked.
    """
    clock = Clock()
    folder = _empty(Path(workdir))
    vocabulary = str(folder / 'vocabulary.model')

    print(f'1/4  a vocabulary of {VOCABULARY_SIZE:,} pieces', flush=True)
    train_sentencepiece(_texts(), VOCABULARY_SIZE, mode_tokens=()).save_model(vocabulary)
    clock.lap('vocabulary')

    print("2/4  pretraining on this Python's documentation", flush=True)
    pretrained = str(folder / 'pretrained')
    run('runs/quickstart_pretrain', pretrained, VOCABULARY=vocabulary)
    clock.lap('pretraining')

    print('3/4  finetuning on generated instructions', flush=True)
    finetuned = str(folder / 'finetuned')
    run('runs/quickstart_finetune', finetuned, VOCABULARY=vocabulary, INITIALIZE_FROM=pretrained)
    clock.lap('finetuning')

    print('4/4  the same questions before and after', flush=True)
    before, after = (ask(load(path), examples) for path in (pretrained, finetuned))
    prompts = load(finetuned).generate(PROMPTS)
    clock.lap('evaluation')

    sections = report_sections(before, after, prompts, pretrained, finetuned, clock)
    path = page.write_report(
        folder / 'report.html',
        't5flan quickstart',
        sections,
        'a tiny encoder-decoder, from raw text to instructions, on this machine',
    )
    page.save_picture(sections[0], folder / 'report.png')
    _print_outcome(before, after, prompts, path, finetuned, clock)


def run(gin_file: str, workdir: str, **macros: str) -> None:
    """What `t5flan train --workdir=… --gin_file=… --gin.NAME=…` does."""
    settings = configurables.parse([gin_file], [f'{name}={value}' for name, value in macros.items()])
    kinds = {
        'model': ModelConfig,
        'data': DataConfig,
        'run': RunConfig,
        'optimizer': OptimizerConfig,
        'loss': LossConfig,
        'mesh': MeshConfig,
        'checkpoints': CheckpointConfig,
        'evaluation': EvaluationConfig,
    }
    values = dict(zip(kinds, settings.read_all(list(kinds.values()), 'train'), strict=True))
    train(workdir, **values, gin=settings.operative_config())


# -- Questions and answers ----------------------------------------------------------------------------------------------

Results = dict[str, dict[str, Any]]


def ask(model: LanguageModel, examples: int) -> dict[str, Results]:
    """For each row of the table: task -> its exact match in percent and a few samples."""
    large = Decoding(batch_size=256)
    return {one.title: evaluate_tasks(model, [one.mixture], one.split, examples, decoding=large) for one in QUESTIONS}


def mean(results: Results, rationale: bool) -> float:
    """Mean exact match over the tasks with rationales, or over the direct ones."""
    return statistics.mean(
        result['exact_match'] for task, result in results.items() if task.endswith(RATIONALE) == rationale
    )


def _texts() -> Iterator[str]:
    """What the vocabulary is learned from: records of the mixtures, the tasks taking turns."""
    for mixture, count in VOCABULARY_TEXTS.items():
        sources = [task.source.records('train') for task, _ in tasks_and_rates(find_mixture(mixture))]
        for number in range(count):
            records = sources[number % len(sources)]
            record = records[number // len(sources) % len(records)]
            yield from (record[field] for field in ('inputs', 'targets', 'text') if field in record)


def _empty(folder: Path) -> Path:
    """The folder, without what an earlier quickstart left there.

    Raises:
        UserError: it holds something else.
    """
    made = {'vocabulary.model', 'vocabulary.json', 'pretrained', 'finetuned', 'report.html', 'report.png'}
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if there - made:
        raise UserError(
            f'{folder} holds {min(there - made)!r}, which no quickstart made. Set --workdir to a new folder.'
        )
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


class Clock:
    """Wall seconds of each part."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name], self._last = now - self._last, now

    @property
    def total(self) -> float:
        """Seconds of all parts."""
        return sum(self.laps.values())


# -- What came out ------------------------------------------------------------------------------------------------------


def outcome_rows(before: dict[str, Results], after: dict[str, Results]) -> list[list[Any]]:
    """The table: what was asked, how, number of tasks, before, after."""
    rows = []
    for title in before:
        for rationale, how in ((False, 'direct'), (True, 'with a rationale')):
            tasks = [task for task in before[title] if task.endswith(RATIONALE) == rationale]
            rows.append([title, how, len(tasks), mean(before[title], rationale), mean(after[title], rationale)])
    return rows


def rationale_rows(after: dict[str, Results]) -> list[list[Any]]:
    """What rationales add on the harder arithmetic: task, direct, with a rationale (unseen examples)."""
    results = after[QUESTIONS[0].title]
    return [
        [
            task.removeprefix('practice_').replace('_', ' '),
            results[task]['exact_match'],
            results[task + RATIONALE]['exact_match'],
        ]
        for task in ARITHMETIC
    ]


def report_sections(
    before: dict[str, Results],
    after: dict[str, Results],
    prompts: Sequence[str],
    pretrained: str,
    finetuned: str,
    clock: Clock,
) -> list[page.Section]:
    """The report, the curves first."""
    curves = []
    for title, folder in (('pretraining: masked spans', pretrained), ('finetuning: instructions', finetuned)):
        rows = [row for row in read_metrics(folder) if 'loss' in row]
        curves.append(
            page.Panel(
                title,
                {'loss': ([row['step'] for row in rows], [row['loss'] for row in rows])},
                y_label='nats per token',
            )
        )
    tasks = [
        [task.removeprefix('practice_')] + [after[title].get(task, {}).get('exact_match') for title in after]
        for task in sorted({task for results in after.values() for task in results})
    ]
    samples = [
        page.Sample(
            row['input'],
            {'before': _answer(before, title, task), 'after': row['prediction']},
            row['target'],
            {'after': row['prediction'].strip() == row['target'].strip()},
            f'{title}: {task}',
        )
        for title, results in after.items()
        for task, result in itertools.islice(results.items(), 0, None, 6)
        for row in result['samples'][:1]
    ]
    return [
        page.Curves('Loss', curves),
        page.Table(
            'Exact match, percent',
            ['asked', 'how', 'tasks', 'pretrained', 'instructed'],
            outcome_rows(before, after),
            'Means over tasks; no question was trained on.',
        ),
        page.Table(
            'What rationales add',
            ['arithmetic', 'direct', 'with a rationale'],
            rationale_rows(after),
            'Exact match on unseen examples, percent.',
        ),
        page.Samples('Prompts', [page.Sample(prompt, {'instructed': text}) for prompt, text in zip(PROMPTS, prompts)]),
        page.Samples('Some of the questions', samples),
        page.Table('Each task', ['task', *after], tasks),
        page.Table('Time', ['part', 'seconds'], [*clock.laps.items(), ('all', clock.total)], total=True),
    ]


def _answer(asked: dict[str, Results], title: str, task: str) -> str:
    return asked[title][task]['samples'][0]['prediction']


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
    for column in ('asked', 'how', 'tasks', 'pretrained', 'instructed'):
        table.add_column(column, justify='left' if column in ('asked', 'how') else 'right')
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
    said = ', '.join(f'{name} {seconds:.0f} s' for name, seconds in clock.laps.items())
    print(
        f'\n{said}; {clock.total / 60:.1f} minutes in all\nreport: {report}\n\nwhat to try next:\n'
        f'  t5flan infer --checkpoint={checkpoint} --prompt="{PROMPTS[0]}"\n'
        f'  t5flan evaluate --checkpoint={checkpoint} --tasks=practice_unseen_tasks\n'
        f'  t5flan train --workdir=runs/mine --gin_file=runs/finetune_file --gin.INITIALIZE_FROM={checkpoint} '
        '--gin.TRAIN_FILE=YOUR.jsonl'
    )
