"""From what a model generated and scored for a task's examples to the task's metrics."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5flan.data.batches.pipeline import EvalExamples
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.decoding.generate import Generation

SAMPLES = 3
"""Rows of each task that are kept with its metrics."""

Result = dict[str, Any]
"""A task's metrics, 'examples' (their number), 'cut' (how many were longer than the features) and 'samples' (rows)."""

Row = dict[str, Any]
"""An example and what the model made of it: task, index, prompt, input, target, prediction, correct, score."""


def needs_predictions(task: Any) -> bool:
    """Whether a SeqIO task has metrics of predictions."""
    return bool(task.predict_metric_fns or task.predict_with_aux_metric_fns)


def measure(
    task: Any,
    examples: EvalExamples,
    vocabulary: Vocabulary,
    generations: Sequence[Generation],
    scores: Sequence[float],
) -> tuple[Result, list[Row]]:
    """Computes a SeqIO task's metrics.

    Args:
        generations: one for each example, if the task `needs_predictions`.
        scores: the log-likelihood of each example's target, if the task has `score_metric_fns`.

    Returns:
        The result, and a row for each example.
    """
    targets = [
        task.postprocess_fn(example['targets_pretokenized'], example=example, is_target=True) for example in examples
    ]
    result: Result = {'examples': len(examples)}
    if examples.counts.trimmed:
        result['cut'] = examples.counts.trimmed
    rows: list[Row] = [
        {
            'task': task.name,
            'index': i,
            'prompt': _prompt(vocabulary, example.get('inputs', ())),
            'input': example.get('inputs_pretokenized', ''),
            'target': example['targets_pretokenized'],
        }
        for i, example in enumerate(examples)
    ]
    if needs_predictions(task):
        texts = [generation.text(vocabulary) for generation in generations]
        predictions = [
            task.postprocess_fn(text, example=example, is_target=False)
            for text, example in zip(texts, examples, strict=True)
        ]
        for row, text, target, prediction in zip(rows, texts, targets, predictions, strict=True):
            is_one_of = isinstance(target, (list, tuple)) and prediction in target
            row |= {'prediction': text, 'correct': bool(prediction == target or is_one_of)}
        for metric in task.predict_metric_fns:
            result |= _numbers(metric(targets, predictions))
        aux = {'scores': [float(generation.log_probs.sum()) for generation in generations]}
        for metric in task.predict_with_aux_metric_fns:
            result |= _numbers(metric(targets, predictions, aux))
    if task.score_metric_fns:
        for row, score in zip(rows, scores, strict=True):
            row['score'] = score
        for metric in task.score_metric_fns:
            result |= _numbers(metric(targets, list(scores)))
    return result | {'samples': rows[:SAMPLES]}, rows


def _prompt(vocabulary: Vocabulary, ids: Sequence[int]) -> str:
    """The text that the model reads: cut to the feature length and worded by the prompt format."""
    read = np.asarray(ids, np.int64).tolist()
    return vocabulary.spell(read[:-1] if read and read[-1] == vocabulary.eos_id else read)


def metric_names(task: Any) -> list[str]:
    """The names of a SeqIO task's metrics, found by calling its metric functions on one made-up example."""
    made = [metric(['a'], ['a']) for metric in task.predict_metric_fns]
    made += [metric(['a'], ['a'], {'scores': [0.0]}) for metric in task.predict_with_aux_metric_fns]
    made += [metric(['a'], [0.0]) for metric in task.score_metric_fns]
    return [name for numbers in made for name in _numbers(numbers)]


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that fit in a table: plain numbers and SeqIO's Scalars."""
    values = {name: np.asarray(getattr(value, 'value', value)) for name, value in metrics.items()}
    is_number = lambda value: value.ndim == 0 and np.issubdtype(value.dtype, np.number)
    return {name: float(value) for name, value in values.items() if is_number(value)}


def mean_metrics(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The unweighted mean of every metric over the tasks that have it."""
    names = dict.fromkeys(name for result in results for name in metrics_of(result))
    return {name: float(np.mean([result[name] for result in results if name in result])) for name in names}


def metrics_of(result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of a task's result, without its counts and samples."""
    return {name: value for name, value in result.items() if name not in ('examples', 'cut', 'samples')}
