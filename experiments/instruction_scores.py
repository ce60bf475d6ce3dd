"""Scores of `instruction_tuning.py`: from predictions to a table with confidence intervals, and a figure.

Held-out tasks of Natural Instructions are scored as its paper does (arXiv:2204.07705): ROUGE-L, and exact match without
case and punctuation, the best over an instance's outputs. Answers to reasoning questions are read by fixed rules
(`reasoning_answer`), and the metric is accuracy.
"""

import collections
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from t5flan.scoring.answers import clean, extract_answer, extract_choice, normalize_answer
from t5flan.scoring.benchmark import Answer
from t5flan.scoring.statistics import bootstrap_interval, compare
from t5flan.tasks.benchmarks import find

from runs import markdown

KINDS = {'zero_shot': 'zero-shot', 'two_shot': 'two-shot', 'direct': 'direct', 'rationale': 'with rationale'}
METRICS = {'rouge_l': 'ROUGE-L', 'exact_match': 'exact match', 'accuracy': 'accuracy'}
NAMES = {'strategyqa': 'StrategyQA', 'qasc': 'QASC', 'gsm8k': 'GSM8K'}
_OPTION = re.compile(r'^- \((\w)\) (.*)$', re.MULTILINE)

Row = dict[str, Any]
Scores = dict[str, dict[str, list[float]]]
"""Evaluation ('zero_shot.TASK') -> metric -> the value of each question, in [0, 1]."""


# -- One question ------------------------------------------------------------------------------------------------------


def score_rows(kind: str, task: str, questions: Sequence[Row], predictions: Sequence[str]) -> dict[str, list[float]]:
    """Metric -> the value of each question."""
    if kind in ('direct', 'rationale'):
        pairs = zip(questions, predictions, strict=True)
        return {'accuracy': [float(is_right(task, row, prediction)) for row, prediction in pairs]}
    answers = [
        Answer(task, i, samples=(prediction,), target=row['targets'])
        for i, (row, prediction) in enumerate(zip(questions, predictions, strict=True))
    ]
    judged = find('natural_instructions').judge_all(answers)
    return {metric: [one[metric] for one in judged] for metric in ('rouge_l', 'exact_match')}


def is_right(task: str, question: Row, prediction: str) -> bool:
    """Whether a prediction has the right answer of a reasoning question."""
    given = reasoning_answer(task, question['bare'], prediction)
    if given is not None and task == 'gsm8k':
        return find('gsm8k').is_right(given, question['targets'][0], task)
    return given == clean(question['targets'][0])


def reasoning_answer(task: str, question: str, prediction: str) -> str | None:
    """The answer in a prediction, by the rules of the benchmarks; None if there is none.

    Everywhere, an answer follows the last "answer is", and without these words it is looked for in the whole text.
    StrategyQA: the first "yes" or "no". QASC: the first letter in brackets or alone, or else the option that is the
    answer word for word; the result is '(A)'. GSM8K: the number of `tasks/benchmarks/grade_school_math.py`.
    """
    if task == 'gsm8k':
        return find('gsm8k').extract(prediction, task)
    text = extract_answer(prediction, 'answer is')
    if task == 'strategyqa':
        found = re.search(r'\b(yes|no)\b', text.lower())
        return found[1] if found else None
    options = {normalize_answer(option): letter for letter, option in _OPTION.findall(question)}
    letter = options.get(normalize_answer(text)) or extract_choice(text)
    return f'({letter})' if letter in options.values() else None


# -- Many questions ----------------------------------------------------------------------------------------------------


class Estimate(NamedTuple):
    """A score in percent: its mean over seeds, the 95 % interval over questions, the deviation over seeds."""

    mean: float
    low: float
    high: float
    spread: float | None
    seeds: tuple[float, ...]

    def __str__(self) -> str:
        spread = '' if self.spread is None else f' ± {self.spread:.1f}'
        return f'{self.mean:.1f}{spread} ({self.low:.1f} to {self.high:.1f})'


def estimate(runs: Sequence[Scores], evaluations: Sequence[str], metric: str) -> Estimate | None:
    """The mean over tasks of one metric.

    The interval is a bootstrap over the questions of each task, with each question's mean over the seeds; the spread is
    the standard deviation of the seeds' means.

    Args:
        runs: the scores of each seed.
        evaluations: which tasks, such as all 'zero_shot.TASK'.
    """
    if not runs or not evaluations:
        return None
    seeds = [100 * statistics.mean(statistics.mean(run[name][metric]) for name in evaluations) for run in runs]
    groups = [
        [[100 * statistics.mean(values) for values in zip(*(run[name][metric] for run in runs), strict=True)]]
        for name in evaluations
    ]
    low, high = bootstrap_interval(groups)
    spread = statistics.stdev(seeds) if len(seeds) > 1 else None
    return Estimate(statistics.mean(seeds), low, high, spread, tuple(seeds))


def columns(evaluations: Mapping[str, Row]) -> dict[tuple[str, str, str], list[str]]:
    """(group, kind, metric) -> evaluations; the group is '' for Natural Instructions or the name of a reasoning set."""
    found: dict[tuple[str, str, str], list[str]] = {}
    order = list(KINDS)
    is_reasoning = lambda one: one['kind'] in ('direct', 'rationale')
    group_of = lambda one: one['task'] if is_reasoning(one) else ''
    for name, one in sorted(evaluations.items(), key=lambda item: (group_of(item[1]), order.index(item[1]['kind']))):
        for metric in ('accuracy',) if is_reasoning(one) else ('rouge_l', 'exact_match'):
            found.setdefault((group_of(one), one['kind'], metric), []).append(name)
    return found


def summarize(arms: Mapping[str, Sequence[Scores]], evaluations: Mapping[str, Row]) -> dict[str, dict[str, Estimate]]:
    """Arm -> 'kind metric' or 'set kind' -> estimate."""
    found: dict[str, dict[str, Estimate]] = {}
    for arm, runs in arms.items():
        for (group, kind, metric), names in columns(evaluations).items():
            if (value := estimate(runs, names, metric)) is not None:
                found.setdefault(arm, {})[title(group, kind, metric)] = value
    return found


def title(group: str, kind: str, metric: str) -> str:
    """The heading of a column."""
    return f'{NAMES.get(group, group)}, {KINDS[kind]}' if group else f'{KINDS[kind]}: {METRICS[metric]}'


def differences(
    arms: Mapping[str, Sequence[Scores]], base: str, evaluations: Mapping[str, Row]
) -> dict[str, dict[str, Row]]:
    """Arm -> column -> how it differs from the arm `base`, question by question (means over seeds), in percent."""
    found: dict[str, dict[str, Row]] = {}
    for arm, runs in arms.items():
        for (group, kind, metric), names in columns(evaluations).items() if arm != base and runs else ():
            first, second = (by_question(one, names, metric) for one in (runs, arms[base]))
            found.setdefault(arm, {})[title(group, kind, metric)] = compare(first, second).__dict__
    return found


def by_question(runs: Sequence[Scores], names: Sequence[str], metric: str) -> dict[tuple[str, int], float]:
    """(evaluation, number) -> the mean over seeds, in percent."""
    return {
        (name, i): 100 * statistics.mean(values)
        for name in names
        for i, values in enumerate(zip(*(run[name][metric] for run in runs), strict=True))
    }


def baselines(questions: Mapping[str, Sequence[Row]], evaluations: Mapping[str, Row]) -> dict[str, list[Scores]]:
    """Two arms that read no instruction: the input as the answer, and each task's most frequent answer."""
    found: dict[str, list[Scores]] = {'copying the input': [{}], 'most frequent answer': [{}]}
    for name, one in evaluations.items():
        rows = questions[name]
        top = collections.Counter(row['targets'][0] for row in rows).most_common(1)[0][0]
        for arm, answers in zip(found, ([row['bare'] for row in rows], [top] * len(rows))):
            found[arm][0][name] = score_rows(one['kind'], one['task'], rows, answers)
    return found


# -- What is shown -----------------------------------------------------------------------------------------------------


def table(summary: Mapping[str, Mapping[str, Estimate]]) -> str:
    """Markdown: a table of Natural Instructions and one of the reasoning sets, a row for each arm."""
    parts = []
    for chosen in groups_of(summary):
        rows = [[arm, *(str(values.get(name, '')) for name in chosen)] for arm, values in summary.items()]
        parts.append(markdown(['', *chosen], rows))
    return '\n\n'.join(parts)


def groups_of(summary: Mapping[str, Mapping[str, Estimate]]) -> list[list[str]]:
    """The columns of Natural Instructions and those of the reasoning sets."""
    titles = list(dict.fromkeys(name for values in summary.values() for name in values))
    groups = [[name for name in titles if (':' in name) == is_natural] for is_natural in (True, False)]
    return [group for group in groups if group]


def draw(summary: Mapping[str, Mapping[str, Estimate]], path: Path) -> None:
    """One picture: a panel for each column, a row for each arm, with interval and the points of the seeds."""
    from matplotlib.figure import Figure

    arms, groups = list(summary), groups_of(summary)
    across = max(map(len, groups))
    figure = Figure(figsize=(2.4 * across + 1.5, (0.28 * len(arms) + 0.9) * len(groups)), layout='constrained')
    panels = figure.subplots(len(groups), across, sharey=True, squeeze=False)
    for panel in panels.flat:
        panel.set_visible(False)
    for panel, name in [pair for row, group in zip(panels, groups) for pair in zip(row, group)]:
        panel.set_visible(True)
        for height, arm in enumerate(reversed(arms)):
            if (value := summary[arm].get(name)) is None:
                continue
            panel.plot([value.low, value.high], [height] * 2, color='#8a97a8', lw=2, solid_capstyle='round')
            panel.plot(value.seeds, [height] * len(value.seeds), 'o', color='#3b6ea8', ms=3, alpha=0.6)
            panel.plot([value.mean], [height], '|', color='#14304f', ms=10, mew=2)
        panel.set_title(name, fontsize=9)
        panel.set_yticks(range(len(arms)), reversed(arms), fontsize=8)
        panel.tick_params(axis='x', labelsize=8)
        panel.set_xlim(left=0)
        panel.grid(axis='x', alpha=0.3)
        for side in ('top', 'right'):
            panel.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
