"""`t5flan evaluate`: a checkpoint's SeqIO metrics on held-out splits, as a table and as JSON.

    evaluate('runs/mine', ['practice'], limit=50)

As in SeqIO's Evaluator, every task's own metric functions and postprocessor are used: predictions are generated for
`metric_fn(targets, predictions)`, targets are scored for `metric_fn(targets, scores)`.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from t5flan.data.batches.pipeline import EvalExamples, eval_examples
from t5flan.data.config import DataConfig
from t5flan.data.instruction_config import InstructionConfig
from t5flan.data.mixtures.mixing import find_mixture
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.decoding.config import GREEDY, Decoding
from t5flan.decoding.generate import Generation
from t5flan.errors import UserError
from t5flan.evaluation.inference import which_parameters
from t5flan.evaluation.measures import Result, Row, mean_metrics, measure, metric_names, metrics_of, needs_predictions
from t5flan.evaluation.results import StepResults, StepRows
from t5flan.evaluation.row_files import Prompt, record_path
from t5flan.evaluation.steps import each_step, load_on_all
from t5flan.evaluation.terminal import Progress, print_steps, print_table
from t5flan.files import locks, to_path
from t5flan.language_model import LanguageModel
from t5flan.processes.gathering import divide, follow, is_leader, lead
from t5flan.sharding import Sharding
from t5flan.training.checkpoints import checkpoint_root, find_step, saved_at
from t5flan.training.config import EvaluationConfig

INSTRUCTIONS = InstructionConfig()

Tasks = Mapping[str, Any]
"""Name -> SeqIO task."""

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class _Request:
    """What is measured at each step."""

    checkpoint: str
    adapter: str | None
    expanded: Mapping[str, Tasks]
    split: str
    limit: int | None
    decoding: Decoding
    instructions: InstructionConfig
    feature_lengths: Mapping[str, int] | None

    def wanted(self) -> Tasks:
        """All tasks, by name."""
        return {name: task for group in self.expanded.values() for name, task in group.items()}

    def evaluate(self, model: LanguageModel, names: Sequence[str], rows: list[Row]) -> dict[str, Result]:
        """The results of some of the tasks; `rows` grows by their rows. With several processes, all call it."""
        wanted = self.wanted()
        return evaluate_tasks(
            model,
            {name: {name: wanted[name]} for name in names},
            self.split,
            self.limit,
            decoding=self.decoding,
            instructions=self.instructions,
            feature_lengths=self.feature_lengths,
            rows=rows,
            progress=Progress() if is_leader() else None,
            together=True,
        )

    def header(self) -> dict[str, Any]:
        """What decides the results besides the step."""
        decoding = {name: value for name, value in dataclasses.asdict(self.decoding).items() if name != 'batch_size'}
        settings = {
            'limit': self.limit,
            'decoding': decoding,
            'instructions': dataclasses.asdict(self.instructions),
            'feature_lengths': self.feature_lengths and dict(self.feature_lengths),
        }
        if self.adapter is not None:
            settings['adapter'] = which_parameters(self.adapter)
        root = os.fspath(checkpoint_root(self.checkpoint))
        return json.loads(json.dumps({'checkpoint': root, 'split': self.split, 'settings': settings}))


def evaluate(
    checkpoint: str,
    tasks: Sequence[str],
    *,
    split: str = 'validation',
    limit: int | None = None,
    step: int | None = None,
    steps: Iterator[int] | None = None,
    decoding: Decoding = GREEDY,
    predictions: str | None = None,
    json_file: str | None = None,
    instructions: InstructionConfig = INSTRUCTIONS,
    feature_lengths: Mapping[str, int] | None = None,
    adapter: str | None = None,
) -> dict[str, Any]:
    """Evaluates checkpoints on tasks and mixtures and prints a table for each.

    With a file of results, tasks that it has for the same checkpoint and settings are not evaluated again. Several
    processes share the examples; the first one measures, prints and writes, and the others return {}.

    Args:
        tasks: names of SeqIO tasks and mixtures; a mixture stands for all of its tasks, and their mean is reported.
        limit: only the first N examples of each task; None is all.
        step: the checkpoint; None is the latest.
        steps: several checkpoints, see `steps.chosen_steps`; those that a run removes meanwhile are skipped.
        predictions: write every row (step, task, index, prompt, input, target, prediction) to this .jsonl file.
        json_file: write the table to this file as JSON. Without it, it is kept beside the predictions.
        instructions: how instruction tasks build their prompts (few-shot or not, with a rationale or not).
        feature_lengths: longer examples are cut to these; None is the lengths in training.
        adapter: the folder of an adapter of the checkpoint, which every example then has.

    Returns:
        The table: checkpoint, split, settings, step, saved, seconds, `tasks` (name -> metrics) and `means` (mixture ->
        metrics); of several steps, the last one's.

    Raises:
        UserError: the folder, a task, its split or a setting is wrong, or a task has no metrics.
    """
    decoding.require_one_sample('evaluate')
    wanted = expand(tasks, split)
    request = _Request(checkpoint, adapter, wanted, split, limit, decoding, instructions, feature_lengths)
    if not is_leader():
        _follow(request)
        return {}
    header, several = request.header(), steps is not None
    kept_in = json_file if json_file is not None or predictions is None else record_path(to_path(predictions))
    with contextlib.ExitStack() as held:
        if predictions is not None:
            held.enter_context(locks.hold_file(predictions, '--predictions'))
        found = _evaluate_all(
            request, step, steps, StepResults(kept_in, header, several=several), StepRows(predictions)
        )
        lead(None)
        return found


def _follow(request: _Request) -> None:
    """Generates and scores with the first process, until it has evaluated all steps."""
    while (order := follow()) is not None:
        step, names = order
        model = load_on_all(request.checkpoint, step, request.adapter)
        if model is not None:
            request.evaluate(model, names, [])


def _evaluate_all(
    request: _Request, step: int | None, steps: Iterator[int] | None, results: StepResults, rows: StepRows
) -> dict[str, Any]:
    """Evaluates one or several steps; see `evaluate`."""
    several = steps is not None
    chosen = iter([find_step(request.checkpoint, step)]) if steps is None else steps

    def measured(one: int) -> dict[str, Any] | None:
        summary = _evaluate_step(request, one, results, rows)
        if summary is not None:
            print_table(summary)
        return summary

    found = each_step(chosen, measured)
    if several:
        print_steps(found)
    return found[-1]


def _evaluate_step(request: _Request, step: int, results: StepResults, rows: StepRows) -> dict[str, Any] | None:
    """The results of one step, of which `results` may have some; None if a run has removed its checkpoint."""
    started = time.monotonic()
    saved = saved_at(checkpoint_root(request.checkpoint), step)
    entry = results.known(step, saved)
    wanted = request.wanted()
    before, old_means = entry.get('tasks', {}), entry.get('means', {})
    known = {name: before[name] for name in wanted if name in before and rows.has(step, name, before[name]['examples'])}
    missing = [name for name in wanted if name not in known]
    if known:
        print(f'step {step}: the results of {len(known)} of {len(wanted)} tasks are there already', file=sys.stderr)
    new: dict[str, Result] = {}
    new_rows: list[Row] = []
    if missing:
        lead([step, missing])
        model = load_on_all(request.checkpoint, step, request.adapter)
        if model is None:
            return None
        new = request.evaluate(model, missing, new_rows)
    plain = {task: {key: value for key, value in one.items() if key != 'samples'} for task, one in new.items()}
    every = before | plain
    groups = {name: list(group) for name, group in request.expanded.items() if len(group) > 1}
    if len(request.expanded) > 1:
        groups['all'] = list(wanted)
    means = {name: mean_metrics([every[task] for task in group]) for name, group in groups.items()}
    seconds = round(entry.get('seconds', 0) + time.monotonic() - started, 1)
    entry = {'step': step, 'saved': saved, 'seconds': seconds, 'tasks': every, 'means': old_means | means}
    others = [(one['step'], task) for one in results.others(step) for task in one['tasks']]
    rows.add([{'step': step, **row} for row in new_rows], [*others, *((step, task) for task in every)])
    results.add(entry)
    shown = {'tasks': {task: every[task] for task in wanted}, 'means': means}
    return request.header() | entry | shown


def evaluate_tasks(
    model: LanguageModel,
    tasks: Sequence[str] | Mapping[str, Tasks],
    split: str = 'validation',
    limit: int | None = None,
    *,
    decoding: Decoding = GREEDY,
    instructions: InstructionConfig = INSTRUCTIONS,
    feature_lengths: Mapping[str, int] | None = None,
    rows: list[Row] | None = None,
    progress: Callable[[int, int], None] | None = None,
    together: bool = False,
) -> dict[str, Result]:
    """Evaluates a model on tasks and mixtures: {'practice_add': {'examples': 50, 'exact_match': 96.0, ...}, ...}.

    Args:
        tasks: names, or what `expand` returned for them.
        rows: a list to append every row to.
        progress: called with (examples done, number of examples).
        together: each process of the job has the whole model and generates its share; all of them call this, and only
            the first one measures, the others return {}.

    Raises:
        UserError: no such task or split, or a task has no metric functions.
    """
    expanded = tasks if isinstance(tasks, Mapping) else expand(tasks, split)
    chosen = {name: task for group in expanded.values() for name, task in group.items()}
    model = model.in_format(prompt_format_of(instructions))
    lengths = feature_lengths or model.feature_lengths
    examples = {name: _examples(model, name, split, limit, instructions, lengths) for name in chosen}
    predicted = {name: examples[name] for name, task in chosen.items() if needs_predictions(task)}
    inputs, numbers = _ids(predicted, 'inputs'), [i for group in predicted.values() for i in range(len(group))]
    answered = _generated(model, inputs, numbers, decoding, progress, together)
    generations = _by_task(answered, predicted)
    scored = {name: examples[name] for name, task in chosen.items() if task.score_metric_fns}
    scores = _by_task(_scored(model, _ids(scored, 'inputs'), _ids(scored, 'targets'), decoding, together), scored)
    if together and not is_leader():
        return {}
    results: dict[str, Result] = {}
    for name, task in chosen.items():
        own = generations.get(name, []), scores.get(name, [])
        results[name], task_rows = measure(task, examples[name], model.vocabulary, *own)
        if rows is not None:
            rows.extend(task_rows)
    return results


def _generated(
    model: LanguageModel,
    inputs: Sequence[Sequence[int]],
    numbers: Sequence[int],
    decoding: Decoding,
    progress: Callable[[int, int], None] | None,
    together: bool,
) -> list[Generation]:
    """The continuation of each input."""

    def generate(places: Sequence[int]) -> list[Generation]:
        report = None if progress is None else lambda done: progress(done, len(places))
        chosen, rows = [inputs[i] for i in places], [numbers[i] for i in places]
        return [best for best, *_ in model.generate_ids(chosen, decoding=decoding, rows=rows, progress=report)]

    if not together or jax.process_count() == 1:
        return generate(range(len(inputs)))
    answers = divide(lambda places: [_as_json(one) for one in generate(places)], [len(ids) for ids in inputs])
    arrays = lambda tokens, log_probs: (np.asarray(tokens, np.int32), np.asarray(log_probs, np.float32))
    return [Generation(*arrays(tokens, log_probs), *rest) for tokens, log_probs, *rest in answers]


def _as_json(one: Generation) -> list[Any]:
    return [one.tokens.tolist(), one.log_probs.tolist(), one.ended, one.score, one.before_stop]


def _scored(
    model: LanguageModel,
    inputs: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    decoding: Decoding,
    together: bool,
) -> list[float]:
    """The log-likelihood of each target."""
    if not together or jax.process_count() == 1:
        return model.score_ids(inputs, targets, decoding.batch_size)
    score = lambda places: model.score_ids(
        [inputs[i] for i in places], [targets[i] for i in places], decoding.batch_size
    )
    return divide(score, [len(ids) for ids in inputs])


def prompt_format_of(instructions: InstructionConfig) -> str:
    """The format for `LanguageModel.in_format`; 'plain' is the default, and the checkpoint folder knows better."""
    return 'auto' if instructions.prompt_format == 'plain' else instructions.prompt_format


def task_prompts(
    model: LanguageModel,
    tasks: Sequence[str],
    split: str,
    limit: int | None = None,
    *,
    instructions: InstructionConfig = INSTRUCTIONS,
    feature_lengths: Mapping[str, int] | None = None,
) -> list[Prompt]:
    """The inputs of SeqIO tasks and mixtures as prompts of `infer`; a row has task, inputs, target and index.

    Raises:
        UserError: no such task, or no such split.
    """
    prompts: list[Prompt] = []
    for name in _with_split(tasks, split):
        for example in _examples(model, name, split, limit, instructions, feature_lengths or model.feature_lengths):
            text = example.get('inputs_pretokenized', '')
            row = {'task': name, 'inputs': text, 'target': example['targets_pretokenized'], 'index': len(prompts)}
            prompts.append(Prompt(len(prompts), text, row, np.asarray(example.get('inputs', ()), np.int64).tolist()))
    return prompts


def _with_split(tasks: Sequence[str], split: str) -> list[str]:
    """The names of tasks, and of the tasks of mixtures, that have a split."""
    found: dict[str, Any] = {}
    for name in tasks:
        mixture = find_mixture(name, '--task')
        inside = sorted(getattr(mixture, 'tasks', [mixture]), key=lambda task: task.name)
        having = {task.name: task for task in inside if split in task.splits}
        if not having:
            splits = sorted({known for task in inside for known in task.splits})
            raise UserError(f'{name} has no split {split!r}; it has {", ".join(splits)}. Set --split.')
        found |= having
    return list(found)


class GeneratedMetrics:
    """Metrics of text that a model generates while it trains (EvaluationConfig.generate).

    Args:
        data: the data settings of the run.
        config: its split, tasks (by default the run's mixture) and number of examples apply.
        vocabulary: the vocabulary of the run.

    Raises:
        UserError: a task has no metrics or no such split.
    """

    def __init__(self, data: DataConfig, config: EvaluationConfig, vocabulary: Vocabulary) -> None:
        self._data, self._config, self._vocabulary = data, config, vocabulary
        self._expanded = expand(config.tasks or (data.mixture,), config.split, 'EvaluationConfig')
        self.samples: list[Row] = []
        tasks = {name: task for group in self._expanded.values() for name, task in group.items()}
        self._has_one = len(tasks) == 1
        found = {name: metric_names(task) for name, task in tasks.items()}
        self.names = tuple(dict.fromkeys(f'eval/{metric}' for metrics in found.values() for metric in metrics))
        if not self._has_one:
            self.names += tuple(f'eval/{metric}/{name}' for name, metrics in found.items() for metric in metrics)

    def __call__(self, model: Any, sharding: Sharding) -> dict[str, float]:
        """Generates greedily; returns the mean of each metric over the tasks, and each task's own."""
        data, config = self._data, self._config
        settings: dict[str, Any] = {'sharding': sharding, 'prompt_format': data.instructions.prompt_format}
        own = LanguageModel(model, self._vocabulary, data.format, data.feature_lengths, **settings)
        decoding = Decoding(batch_size=data.batch_size)
        results = evaluate_tasks(
            own, self._expanded, config.split, config.generate, decoding=decoding, instructions=data.instructions
        )
        self.samples = [row for result in results.values() for row in result['samples']]
        means = {f'eval/{metric}': value for metric, value in mean_metrics(list(results.values())).items()}
        if self._has_one:
            return means
        each = [
            (f'eval/{metric}/{name}', value)
            for name, one in results.items()
            for metric, value in metrics_of(one).items()
        ]
        return means | dict(each)


def expand(tasks: Sequence[str], split: str, setting: str = '') -> dict[str, Tasks]:
    """Returns, for each task or mixture, its SeqIO tasks that have the split and metric functions, by name.

    Args:
        setting: the settings class that messages name; '' stands for the command line.

    Raises:
        UserError: no such name, or none of its tasks has that split or metric functions.
    """
    expanded: dict[str, Tasks] = {}
    for name in tasks:
        found = find_mixture(name, f'{setting}.tasks' if setting else '--tasks')
        inside = sorted(getattr(found, 'tasks', [found]), key=lambda task: task.name)
        expanded[name] = {task.name: task for task in inside if split in task.splits and task.metric_fns}
        if not expanded[name]:
            splits = sorted({known for task in inside for known in task.splits})
            if split in splits:
                fix = f'Remove it from {setting}.tasks' if setting else 'Remove it from --tasks'
                raise UserError(f'{name} has no metric_fns: there is nothing to measure. {fix}.')
            fix = f'Set {setting}.split' if setting else 'Set --split'
            raise UserError(f'{name} has no split {split!r}; it has {", ".join(splits)}. {fix}.')
    if not expanded:
        raise UserError('no task is given. Set --tasks=NAME,NAME.')
    return expanded


def _examples(
    model: LanguageModel,
    task: str,
    split: str,
    limit: int | None,
    instructions: InstructionConfig,
    feature_lengths: Mapping[str, int],
) -> EvalExamples:
    data = DataConfig(
        mixture=task,
        batch_size=1,
        feature_lengths=feature_lengths or {'inputs': 512, 'targets': 512},
        vocabulary='bytes',  # not used: the model's own vocabulary is passed below
        format=model.format,
        split=split,
        shuffle=False,
        instructions=dataclasses.replace(instructions, prompt_format=model.prompt_format or 'plain'),
    )
    examples = eval_examples(data, model.vocabulary, task, limit)
    if not examples:
        raise UserError(f'{task} has no examples in split {split!r}. Set --split or --limit.')
    return examples


def _ids(examples: Mapping[str, EvalExamples], feature: str) -> list[list[int]]:
    """A feature of the examples of all tasks, which are decoded together in full batches sorted by length."""
    return [np.asarray(example.get(feature, ()), np.int64).tolist() for group in examples.values() for example in group]


def _by_task(results: Iterable[T], examples: Mapping[str, EvalExamples]) -> dict[str, list[T]]:
    left = iter(results)
    return {name: list(itertools.islice(left, len(group))) for name, group in examples.items()}
