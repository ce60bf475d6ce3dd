"""What a benchmark is: tasks in a folder, exact prompts, a rule that finds the answer in a completion, metrics.

    benchmark.tasks(folder)                  ['boolean_expressions', ...]
    benchmark.questions(folder, task)        questions with their exemplars and targets
    benchmark.extract(completion, task)      'True', or None where the completion has no answer
    score(benchmark, answers)                metrics of every task, of every category, and of all

The public benchmarks are in tasks/benchmarks; `t5flan score` scores completions made anywhere, `t5flan evaluate
--benchmark` makes them first.
"""

import abc
import dataclasses
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5flan.errors import UserError
from t5flan.scoring.voting import vote

Metrics = dict[str, float]
"""Name -> value: in [0, 1] for one question, in percent for a task."""

Member = str | Sequence[str]
"""A task of a category, or several tasks that count as one: their mean is taken first."""

ALL = 'all'
"""The category of all tasks."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A question of a benchmark as it is asked.

    Attributes:
        task: the task, subject or language it belongs to.
        index: its number in the task, from 0.
        exemplars: worked examples, in the order of the prompt, each with the separator that follows it.
        text: the question itself, up to where the answer starts.
        target: the right answer, a list of right answers, or what the benchmark's rule needs to judge one (JSON).
        header: what stands before the exemplars, with its separator.
        options: continuations whose likelihoods are compared; () for a question that is answered with text.
        drop_last: whether a prompt that is too long loses its last exemplars first, and not its first.
    """

    task: str
    index: int
    exemplars: tuple[str, ...]
    text: str
    target: Any
    header: str = ''
    options: tuple[str, ...] = ()
    drop_last: bool = False

    def prompt(self, dropped: int = 0) -> str:
        """The whole prompt, with `dropped` exemplars left out."""
        count = len(self.exemplars)
        shown = self.exemplars[: count - dropped] if self.drop_last else self.exemplars[dropped:]
        return self.header + ''.join(shown) + self.text


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a model answered to one question.

    Attributes:
        task: the task, subject or language.
        index: the number of the question in the task, from 0.
        samples: completions of the prompt, usually one.
        target: as in `Question`.
    """

    task: str
    index: int
    samples: tuple[str, ...]
    target: Any


class Benchmark(abc.ABC):
    """The interface of a benchmark.

    Attributes:
        name: as `--benchmark` takes it.
        metric: the metric that is compared and averaged.
        shots: exemplars in a prompt.
        max_new_tokens: limit on the tokens of a completion.
        categories: name -> its tasks, for the averages that are reported.
        reported: the category whose mean the papers report.
        known_tasks: the tasks of the whole public release.
    """

    name: str
    metric: str
    shots: int = 0
    max_new_tokens: int = 512
    categories: Mapping[str, Sequence[Member]] = {}
    reported: str = ALL
    known_tasks: tuple[str, ...] = ()

    @abc.abstractmethod
    def tasks(self, folder: str) -> list[str]:
        """The tasks whose files are in the folder, sorted.

        Raises:
            UserError: the folder is missing or has no file of this benchmark.
        """

    @abc.abstractmethod
    def questions(self, folder: str, task: str, limit: int | None = None) -> list[Question]:
        """The questions of a task, in the order of its file.

        Args:
            limit: only the first N questions; None is all.

        Raises:
            UserError: a file is missing, or does not have the layout of the public release.
        """

    def stop_strings(self, task: str) -> tuple[str, ...]:
        """Texts that end an answer: `t5flan evaluate` generates nothing after the first of them.

        Only texts after which `extract` ignores everything, so that a completion has the same score with and without
        what follows them.
        """
        return ()

    @abc.abstractmethod
    def extract(self, completion: str, task: str) -> str | None:
        """The answer in a completion, or None if it has none."""

    def is_right(self, answer: str, target: Any, task: str) -> bool:
        """Whether an extracted answer is (one of) the right ones: equal strings."""
        return answer in ([target] if isinstance(target, str) else target)

    def judge(self, answer: Answer) -> Metrics:
        """The metrics of one question, each in [0, 1]; of several samples, their most frequent answer counts."""
        extracted = vote([self.extract(sample, answer.task) for sample in answer.samples])
        is_right = extracted is not None and self.is_right(extracted, answer.target, answer.task)
        return {self.metric: float(is_right), 'no_answer': float(extracted is None)}

    def judge_all(self, answers: Sequence[Answer]) -> list[Metrics]:
        """`judge` of every answer."""
        return [self.judge(answer) for answer in answers]

    def summarize(self, answers: Sequence[Answer], judged: Sequence[Metrics]) -> Metrics:
        """The metrics of a task in percent: the mean over its questions."""
        names = dict.fromkeys(name for one in judged for name in one)
        return {name: 100 * mean([one[name] for one in judged if name in one]) for name in names}

    def categorize(self, answers: Sequence[Answer]) -> Mapping[str, Sequence[Member]]:
        """`categories`, or those that the answers' targets name."""
        return self.categories


@dataclasses.dataclass(frozen=True)
class Scores:
    """The result of `score`.

    Attributes:
        tasks: task -> its metrics in percent, and 'examples', the number of its questions.
        averages: category -> unweighted mean of the metrics over its tasks, and 'tasks', how many of them there are.
        categories: category -> its tasks, 'all' included.
        missing: tasks of the public release that have no answers.
        judged: (task, index) -> the metrics of that question, in [0, 1].
    """

    tasks: dict[str, dict[str, float]]
    averages: dict[str, dict[str, float]]
    categories: dict[str, Sequence[Member]]
    missing: tuple[str, ...]
    judged: dict[tuple[str, int], Metrics]


def score(benchmark: Benchmark, answers: Sequence[Answer], progress: Callable[[str], None] | None = None) -> Scores:
    """Scores a benchmark's answers.

    Args:
        progress: called with the name of every task before it is scored.

    Raises:
        UserError: there are no answers.
    """
    if not answers:
        raise UserError(f'no predictions of {benchmark.name}. Set --predictions.')
    by_task: dict[str, list[Answer]] = {}
    for answer in answers:
        by_task.setdefault(answer.task, []).append(answer)
    tasks: dict[str, dict[str, float]] = {}
    judged: dict[tuple[str, int], Metrics] = {}
    for task in sorted(by_task):
        if progress is not None:
            progress(task)
        found = benchmark.judge_all(by_task[task])
        judged |= {(task, answer.index): one for answer, one in zip(by_task[task], found, strict=True)}
        tasks[task] = {'examples': len(found), **benchmark.summarize(by_task[task], found)}
    missing = tuple(task for task in benchmark.known_tasks if task not in tasks)
    categories: dict[str, Sequence[Member]] = {ALL: sorted(tasks), **benchmark.categorize(answers)}
    return Scores(tasks, averages(tasks, categories), categories, missing, judged)


def averages(
    tasks: Mapping[str, Mapping[str, float]], categories: Mapping[str, Sequence[Member]]
) -> dict[str, dict[str, float]]:
    """Unweighted means of the tasks' metrics over every category that has one of them."""
    found = {}
    for category, members in categories.items():
        groups = [[member] if isinstance(member, str) else list(member) for member in members]
        present = [[task for task in group if task in tasks] for group in groups]
        present = [group for group in present if group]
        if present:
            means = _group_means([_group_means([tasks[task] for task in group]) for group in present])
            found[category] = {'tasks': len(present), **means}
    return found


def _group_means(results: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for result in results for name in result if name != 'examples')
    return {name: mean([result[name] for result in results if name in result]) for name in names}


def mean(values: Sequence[float]) -> float:
    """The mean, 0 of nothing."""
    return math.fsum(values) / len(values) if values else 0.0


def after_space(*labels: str) -> tuple[str, ...]:
    r"""Stop strings for labels that start the next question, on a new line or after a space.

    T5's vocabulary has no newline: models that use it write a space instead.

    >>> after_space('Q:')
    ('\nQ:', ' Q:')
    """
    return tuple(f'{space}{label}' for label in labels for space in ('\n', ' '))


def find_folder(folder: str, names: Sequence[str], marks: Sequence[str], benchmark: str) -> Path:
    """The folder of a release: `folder` itself or the first of its subfolders `names` that has a file like `marks`.

    Args:
        marks: glob patterns, relative to the release.

    Raises:
        UserError: there is no such folder, or no file like these in it.
    """
    root = Path(folder)
    if not os.path.isdir(root):
        raise UserError(f'{folder}: no such folder. Set --benchmark_dir to the folder of the benchmarks.')
    for path in (root, *(root / name for name in names)):
        if any(next(path.glob(mark), None) is not None for mark in marks):
            return path
    shown = ' or '.join([marks[0], *(f'{name}/{marks[0]}' for name in names)])
    raise UserError(f'{folder} has no {shown}, the files of {benchmark}. Set --benchmark_dir.')
