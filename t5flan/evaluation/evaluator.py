"""`t5flan evaluate`: a checkpoint's SeqIO metrics on held-out splits, as a table and as JSON.

    evaluate('runs/mine', ['practice'], limit=50)

Every task's own metric functions and postprocessing are used, as SeqIO's Evaluator would: predictions are generated
(greedily by default) for `metric_fn(targets, predictions)`, targets are scored for `metric_fn(targets, scores)`.
"""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from t5flan.data.batches.pipeline import eval_examples
from t5flan.data.config import DataConfig, InstructionConfig
from t5flan.data.mixtures.mixing import find_mixture
from t5flan.decoding.generate import Generation
from t5flan.decoding.sampling import Sampling
from t5flan.errors import UserError
from t5flan.files import write_whole
from t5flan.language_model import LanguageModel, load

SAMPLES = 3
"""Rows of each task that are kept with its metrics."""

Result = dict[str, Any]


def evaluate(
    checkpoint: str,
    tasks: Sequence[str],
    *,
    split: str = 'validation',
    limit: int | None = None,
    step: int | None = None,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 64,
    predictions: str | None = None,
    json_file: str | None = None,
    instructions: InstructionConfig = InstructionConfig(),
) -> dict[str, Any]:
    """Loads a checkpoint folder, measures it on tasks and mixtures, prints a table.

    Args:
        tasks: names of SeqIO tasks and mixtures; a mixture means all of its tasks, and their mean.
        limit: the first so many examples of each task; None for all.
        predictions: a .jsonl to write every row to (task, index, input, target, prediction).
        json_file: where the table goes as JSON.
        instructions: how instruction tasks ask (few-shot or not, for a rationale or not).

    Raises:
        UserError: the folder, a task, its split or a setting is wrong, or a task has no metrics.
    """
    expanded = expand(tasks, split)
    model = load(checkpoint, step)
    started = time.monotonic()
    rows: list[dict[str, Any]] = []
    results = evaluate_tasks(
        model,
        list(expanded),
        split,
        limit,
        max_new_tokens=max_new_tokens,
        seed=seed,
        sampling=Sampling(temperature, top_k, top_p),
        batch_size=batch_size,
        rows=None if predictions is None else rows,
        progress=_Progress(),
        instructions=instructions,
    )
    summary = {
        'checkpoint': model.folder,
        'step': model.step,
        'split': split,
        'seconds': round(time.monotonic() - started, 1),
        'tasks': {
            task: {name: value for name, value in result.items() if name != 'samples'}
            for task, result in results.items()
        },
        'means': {
            name: mean_metrics([results[task] for task in inside]) for name, inside in _mixtures(tasks, split).items()
        },
    }
    print_table(summary)
    for path, text in (
        (json_file, json.dumps(summary, indent=2, ensure_ascii=False) + '\n'),
        (predictions, ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)),
    ):
        if path is not None:
            write_whole(path, text)
    return summary


def evaluate_tasks(
    model: LanguageModel,
    tasks: Sequence[str],
    split: str = 'validation',
    limit: int | None = None,
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling = Sampling(),
    seed: int = 0,
    batch_size: int = 64,
    rows: list[dict[str, Any]] | None = None,
    progress: Callable[[int, int], None] | None = None,
    instructions: InstructionConfig = InstructionConfig(),
) -> dict[str, Result]:
    """{task: {'examples': 50, 'exact_match': 96.0, …, 'samples': [row, …]}}; of a mixture, each of its tasks.

    The examples of all tasks are generated for together, in full batches sorted by length.

    Args:
        rows: a list that takes every row: task, index, input, target, prediction and score as far as they were needed.
        progress: called with (examples done, examples in all).

    Raises:
        UserError: no such task or split, or a task has no metric functions.
    """
    names = list(expand(tasks, split))
    asked = {name: _examples(model, name, split, limit, instructions) for name in names}
    pool = [(name, i) for name in names for i in range(len(asked[name]))]
    inputs = [_ids(asked[name][i], 'inputs') for name, i in pool]
    generating = [k for k, (name, _) in enumerate(pool) if _predicted(find_mixture(name))]
    scoring = [k for k, (name, _) in enumerate(pool) if find_mixture(name).score_metric_fns]
    report = None if progress is None else lambda done: progress(done, len(generating))
    generated: dict[int, Generation] = {
        k: samples[0]
        for k, samples in zip(
            generating,
            model.generate_ids(
                [inputs[k] for k in generating],
                max_new_tokens,
                sampling,
                seed=seed,
                batch_size=batch_size,
                rows=[pool[k][1] for k in generating],
                progress=report,
            ),
            strict=True,
        )
    }
    scores = dict(
        zip(
            scoring,
            model.score_ids(
                [inputs[k] for k in scoring],
                [_ids(asked[pool[k][0]][pool[k][1]], 'targets') for k in scoring],
                batch_size,
            ),
        )
    )

    results: dict[str, Result] = {}
    start = 0
    for name in names:
        places = range(start, start + len(asked[name]))
        results[name], task_rows = _measure(
            model, name, asked[name], [generated.get(k) for k in places], [scores.get(k) for k in places]
        )
        start = places.stop
        if rows is not None:
            rows.extend(task_rows)
    return results


def expand(tasks: Sequence[str], split: str) -> dict[str, Any]:
    """Task names and mixture names -> {task name: SeqIO task}, each once, those of a mixture that have the split and metrics.

    Raises:
        UserError: no such name, or a task without that split or without metric functions.
    """
    chosen: dict[str, Any] = {}
    for name in tasks:
        found = find_mixture(name)
        inside = sorted(getattr(found, 'tasks', [found]), key=lambda task: task.name)
        fitting = [task for task in inside if split in task.splits and task.metric_fns]
        if not fitting:
            splits = sorted({known for task in inside for known in task.splits})
            what = (
                f'has no split {split!r}; it has {", ".join(splits)}. Set --split.'
                if split not in splits
                else ('has no metric_fns: there is nothing to measure. Name another in --tasks.')
            )
            raise UserError(f'{name} {what}')
        chosen |= {task.name: task for task in fitting}
    if not chosen:
        raise UserError('no task is given. Set --tasks=NAME,NAME.')
    return chosen


def mean_metrics(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean over tasks of every metric, each task with equal weight; of tasks that lack one, it is left out."""
    names = dict.fromkeys(name for result in results for name in metrics_of(result))
    return {name: float(np.mean([result[name] for result in results if name in result])) for name in names}


def metrics_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a task's result, without its counts and samples."""
    return {name: value for name, value in result.items() if name not in ('examples', 'cut', 'samples')}


def print_table(summary: Mapping[str, Any]) -> None:
    """The summary of `evaluate` as a table on the terminal."""
    from rich.console import Console
    from rich.table import Table

    metrics = list(dict.fromkeys(name for result in summary['tasks'].values() for name in metrics_of(result)))
    table = Table(title=f'{summary["checkpoint"]}, step {summary["step"]}, {summary["split"]}', title_justify='left')
    table.add_column('task', overflow='fold')
    for column in ('examples', *metrics):
        table.add_column(column, justify='right')
    cells = lambda result: [f'{result[name]:.2f}' if name in result else '' for name in metrics]
    for task, result in summary['tasks'].items():
        table.add_row(task, str(result['examples']), *cells(result))
    if summary['means']:
        table.add_section()
    for mixture, means in summary['means'].items():
        table.add_row(f'mean of {mixture}', '', *cells(means), style='bold')
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    cut = {task: result['cut'] for task, result in summary['tasks'].items() if result.get('cut')}
    if cut:
        print(
            f'longer than the feature lengths and cut: {", ".join(f"{count} of {task}" for task, count in cut.items())}'
        )


def _examples(model: LanguageModel, task: str, split: str, limit: int | None, instructions: InstructionConfig) -> Any:
    lengths = model.feature_lengths or {'inputs': 512, 'targets': 512}
    data = DataConfig(
        mixture=task,
        batch_size=1,
        feature_lengths=lengths,
        vocabulary='bytes',
        format=model.format,
        split=split,
        shuffle=False,
        instructions=instructions,
    )  # the model's own vocabulary is given beside it
    examples = eval_examples(data, model.vocabulary, task, limit)
    if not examples:
        raise UserError(f'{task} has no examples in split {split!r}. Set --split or --limit.')
    return examples


def _ids(example: Mapping[str, Any], feature: str) -> list[int]:
    return np.asarray(example.get(feature, ()), np.int64).tolist()


def _predicted(task: Any) -> bool:
    return bool(task.predict_metric_fns or task.predict_with_aux_metric_fns)


def _measure(
    model: LanguageModel,
    name: str,
    examples: Sequence[Mapping[str, Any]],
    generated: Sequence[Generation | None],
    scores: Sequence[float | None],
) -> tuple[Result, list[dict[str, Any]]]:
    """A task's metrics and rows, from what was generated and scored for its examples."""
    task = find_mixture(name)
    targets = [
        task.postprocess_fn(example['targets_pretokenized'], example=example, is_target=True) for example in examples
    ]
    result: Result = {'examples': len(examples)}
    if getattr(examples, 'counts', None) is not None and examples.counts.trimmed:
        result['cut'] = examples.counts.trimmed
    rows = [
        {
            'task': name,
            'index': i,
            'input': example.get('inputs_pretokenized', ''),
            'target': example['targets_pretokenized'],
        }
        for i, example in enumerate(examples)
    ]
    if _predicted(task):
        texts = [model.vocabulary.decode(one.tokens) for one in generated]
        predictions = [
            task.postprocess_fn(text, example=example, is_target=False) for text, example in zip(texts, examples)
        ]
        for row, text, target, prediction in zip(rows, texts, targets, predictions):
            row |= {
                'prediction': text,
                'correct': bool(prediction == target or (isinstance(target, (list, tuple)) and prediction in target)),
            }
        for metric in task.predict_metric_fns:
            result |= _numbers(metric(targets, predictions))
        aux = {'scores': [float(one.log_probs.sum()) for one in generated]}
        for metric in task.predict_with_aux_metric_fns:
            result |= _numbers(metric(targets, predictions, aux))
    if task.score_metric_fns:
        for row, score in zip(rows, scores):
            row['score'] = score
        for metric in task.score_metric_fns:
            result |= _numbers(metric(targets, list(scores)))
    return result | {'samples': rows[:SAMPLES]}, rows


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """What can stand in a table: plain numbers and SeqIO's Scalars."""
    values = {name: getattr(value, 'value', value) for name, value in metrics.items()}
    return {
        name: float(value)
        for name, value in values.items()
        if np.ndim(value) == 0 and np.issubdtype(np.asarray(value).dtype, np.number)
    }


def _mixtures(tasks: Sequence[str], split: str) -> dict[str, list[str]]:
    """The mixtures (and the whole list, where several tasks were named) that a mean is shown of."""
    named = {name: list(expand([name], split)) for name in tasks}
    means = {name: inside for name, inside in named.items() if len(inside) > 1}
    if len(tasks) > 1:
        means['all'] = list(expand(tasks, split))
    return means


class _Progress:
    """`generated 128 of 960` in place on a terminal; every tenth as a line elsewhere."""

    def __init__(self):
        self._tenth = 0

    def __call__(self, done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f'\rgenerated {done} of {total}', end='' if done < total else '\n', file=sys.stderr, flush=True)
        elif 10 * done // total > self._tenth:
            self._tenth = 10 * done // total
            print(f'generated {done} of {total}', file=sys.stderr, flush=True)
