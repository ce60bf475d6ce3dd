"""How certain a score is, which of two models is better, and one number for all benchmarks."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from t5flan.errors import UserError

BASELINES = {
    'mmlu_direct': 25.0, 'mmlu_cot': 25.0, 'bbh_direct': 25.7, 'bbh_cot': 25.7, 'tydiqa': 0.0, 'mgsm': 0.0,
}  # fmt: skip
"""Benchmarks of the normalized average -> the score of random answers, in percent.

MMLU has four options a question; that of BBH is the mean in table 2 of arXiv:2210.09261.
"""

Groups = Sequence[Sequence[Sequence[float]]]
"""Categories' members: each is a task's values, or several tasks' values whose means are averaged first."""


def normalized_average(scores: Mapping[str, float]) -> float:
    """The Flan papers' normalized average (arXiv:2210.11416, section 2.3), in percent.

    The mean of (score - random) / (100 - random) over MMLU and BBH, with and without chain of thought, TyDiQA and MGSM,
    as BIG-bench normalizes its preferred metrics (arXiv:2206.04615).

    Args:
        scores: name of the benchmark -> its score in percent.

    Raises:
        UserError: one of the six is missing.

    >>> round(normalized_average(BASELINES | {'mmlu_direct': 100.0, 'tydiqa': 50.0}))
    25
    """
    if missing := [name for name in BASELINES if name not in scores]:
        raise UserError(f'the normalized average lacks {", ".join(missing)}. Evaluate {", ".join(BASELINES)}.')
    return float(np.mean([100 * (scores[name] - random) / (100 - random) for name, random in BASELINES.items()]))


def bootstrap_interval(
    groups: Groups, *, level: float = 0.95, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron 1979) of a mean over tasks: the questions of each task are drawn anew.

    Args:
        groups: the values of the questions.
        level: the share of resampled means inside.
        resamples: how often the questions are drawn.

    Returns:
        The lower and the upper bound, in the unit of the values; (0, 0) without values.
    """
    if not groups:
        return 0.0, 0.0
    means_R = _resampled_means(groups, resamples, seed)
    low, high = np.quantile(means_R, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def share_interval(hits: int, count: int, *, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share: of use where few, none or all of the values are hits.

    >>> [round(bound, 3) for bound in share_interval(0, 20)]
    [0.0, 0.161]
    """
    from scipy.stats import binomtest  # takes a while to import

    if not count:
        return 0.0, 1.0
    found = binomtest(hits, count).proportion_ci(level, 'wilson')
    return float(found.low), float(found.high)


def _resampled_means(groups: Groups, resamples: int, seed: int) -> np.ndarray:
    """[R] means over groups of means over tasks of means over resampled questions."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    total_R = np.zeros(resamples)
    for group in groups:
        for task in group:
            values = np.asarray(task, np.float64)
            # Counts of the values decide the mean: one multinomial draw instead of `resamples` times `len(task)` draws.
            different, counts = np.unique(values, return_counts=True)
            drawn_RU = rng.multinomial(len(values), counts / len(values), size=resamples)
            total_R += drawn_RU @ different / len(values) / len(group)
    return total_R / len(groups)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two results on the same questions.

    Attributes:
        questions: questions that both have.
        difference: the first minus the second, the mean over tasks of the mean over questions.
        low, high: its 95 % bootstrap interval; the questions are drawn in pairs.
        wins, losses: questions on which the first is better, and worse.
        p_value: of the exact sign test on them (McNemar's test): how likely so uneven a count is by chance.
    """

    questions: int
    difference: float
    low: float
    high: float
    wins: int
    losses: int
    p_value: float

    def __str__(self) -> str:
        return (
            f'{self.difference:+.2f} (95 % interval {self.low:+.2f} to {self.high:+.2f}) on {self.questions} questions '
            f'and is better on {self.wins}, worse on {self.losses}, p = {self.p_value:.2g}'
        )


def compare(
    first: Mapping[tuple[str, int], float], second: Mapping[tuple[str, int], float], *, seed: int = 0
) -> Comparison:
    """Compares two results question by question.

    Args:
        first: (task, index) -> the metric of a question.
        second: the same of another model.

    Raises:
        UserError: they share no question.
    """
    from scipy.stats import binomtest  # takes a while to import

    shared = sorted(set(first) & set(second))
    if not shared:
        raise UserError('the two results share no question. Compare predictions of the same tasks and questions.')
    differences: dict[str, list[float]] = {}
    for task, index in shared:
        differences.setdefault(task, []).append(first[task, index] - second[task, index])
    groups = [[values] for values in differences.values()]
    low, high = bootstrap_interval(groups, seed=seed)
    every = np.concatenate([group[0] for group in groups])
    wins, losses = int(np.sum(every > 0)), int(np.sum(every < 0))
    return Comparison(
        questions=len(shared),
        difference=float(np.mean([np.mean(group[0]) for group in groups])),
        low=low,
        high=high,
        wins=wins,
        losses=losses,
        p_value=float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0,
    )
