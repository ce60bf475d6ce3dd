"""Fits scaling laws to finished runs: L(N, D) by a robust fit, and parabolas at equal FLOPs; with uncertainty.

    N parameters, D tokens, C FLOPs, L loss in nats per token

Both are Chinchilla's (https://arxiv.org/abs/2203.15556): approach 3 minimizes the Huber loss (delta = 1e-3) between the
logarithms of predicted and observed losses from many starts (by least squares in a trust region, which takes fewer
evaluations than the paper's L-BFGS to the same minimum); approach 2 fits a parabola over log N to the
runs of each budget, then a power law through the minima. The uncertainty is from resampling the runs (bootstrap).
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from t5flan.errors import UserError
from t5flan.planning.laws import Frontier, LossLaw, fitted_frontier

DELTA = 1e-3
"""Where the Huber loss changes from quadratic to linear, in nats of log loss."""
FEWEST_RUNS, FEWEST_SIZES = 8, 3
LEAST_SPREAD = 4.0
"""The largest N, and D, over the smallest."""
SAME_BUDGET = 1.25
"""Runs whose FLOPs differ by less than this factor are of one budget."""
_GRID = (
    np.linspace(-1.0, 1.0, 5),  # log E
    np.arange(0.0, 26.0, 5.0),  # log A
    np.arange(0.0, 26.0, 5.0),  # log B
    np.linspace(0.0, 2.0, 5),  # alpha
    np.linspace(0.0, 2.0, 5),  # beta
)
"""Starts of the paper."""
_STARTS_RESAMPLED = 3
_MOST_MEANINGLESS = 0.2
"""Share of resampled fits that may be no power law."""
EXPONENTS = (0.01, 3.0)
"""Bounds of alpha and beta; a fit at one of them means nothing."""


@dataclasses.dataclass(frozen=True)
class Point:
    """A finished run."""

    name: str
    parameters: float
    tokens: float
    flops: float
    loss: float


@dataclasses.dataclass(frozen=True)
class Budget:
    """The runs of one budget and the parabola loss = c0 + c1 x + c2 x^2 over x = log(parameters).

    Attributes:
        flops: the geometric mean of the runs' FLOPs.
        points: the runs, by size.
        coefficients: (c2, c1, c0).
        parameters: the size at the minimum; None if the parabola has none between the smallest and the largest run.
    """

    flops: float
    points: tuple[Point, ...]
    coefficients: tuple[float, float, float]
    parameters: float | None


@dataclasses.dataclass(frozen=True)
class Fit:
    """Laws fitted to runs.

    Attributes:
        points: the runs.
        law: the best fit.
        resampled: fits to resampled runs.
        budgets: the parabolas, by FLOPs.
        error: root mean square of (predicted - observed) / observed loss.
    """

    points: tuple[Point, ...]
    law: LossLaw
    resampled: tuple[LossLaw, ...]
    budgets: tuple[Budget, ...]
    error: float

    @property
    def studied(self) -> tuple[float, float]:
        """The least and the most FLOPs of the runs, as 6 N D."""
        flops = [6.0 * point.parameters * point.tokens for point in self.points]
        return min(flops), max(flops)

    @property
    def frontier(self) -> Frontier:
        """The optimum of the best fit."""
        return self.law.frontier(self.studied, 'fit to runs')

    @property
    def frontiers(self) -> list[Frontier]:
        """The optima of the fits to resampled runs."""
        return [law.frontier(self.studied, '') for law in self.resampled]

    @property
    def isoflop(self) -> Frontier | None:
        """The power law through the minima of the parabolas; None with fewer than two."""
        found = [(budget.parameters, budget.flops) for budget in self.budgets if budget.parameters is not None]
        if len(found) < 2:
            return None
        return fitted_frontier(tuple(n for n, _ in found), tuple(c for _, c in found), 'parabolas')


def fit(points: Sequence[Point], resamples: int = 100, seed: int = 0) -> Fit:
    """Fits the laws to runs.

    Args:
        points: finished runs.
        resamples: how often the runs are drawn again with replacement, for the uncertainty.
        seed: of the draws.

    Raises:
        UserError: the runs are too few or too alike to determine five constants, or their loss is no power law.
    """
    check(points)
    n, d, loss = _logs(points)
    law, starts = _fit_loss(n, d, loss, _starts(n, d, loss))
    if not _means_something(law, n, d, loss):
        found = f'alpha={law.alpha:.3g}, beta={law.beta:.3g}'
        raise UserError(
            f'the loss of these runs does not fall with size and tokens as a power law ({found}). Remove runs that '
            'diverged or are not comparable, or add runs over more sizes and tokens'
        )
    rng = np.random.default_rng(seed)
    resampled: list[LossLaw] = []
    meaningless = 0
    while len(resampled) < resamples:
        drawn = rng.integers(len(n), size=len(n))
        if len(np.unique(drawn)) < 6 or min(len(np.unique(n[drawn])), len(np.unique(d[drawn]))) < FEWEST_SIZES:
            continue  # five constants need more than five different runs
        again = n[drawn], d[drawn], loss[drawn]
        new = _starts(*again)
        new = new[np.argsort(_objective(new, *again), kind='stable')]
        both = np.concatenate([starts[:_STARTS_RESAMPLED], new[:_STARTS_RESAMPLED]])
        one, _ = _fit_loss(*again, both)
        if _means_something(one, *again):
            resampled.append(one)
        else:
            meaningless += 1
            if meaningless > _MOST_MEANINGLESS * resamples:
                raise UserError(
                    'the runs do not determine the law: without some of them, the loss does not fall with size and '
                    f'tokens ({meaningless} of {len(resampled) + meaningless} resampled fits). Add runs'
                )
    predicted = np.array([law.loss(point.parameters, point.tokens) for point in points])
    error = float(np.sqrt(np.mean((predicted / np.exp(loss) - 1.0) ** 2)))
    return Fit(tuple(points), law, tuple(resampled), tuple(budgets(points)), error)


def _means_something(law: LossLaw, n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> bool:
    """Whether both exponents are inside their bounds and both terms change the loss by what the Huber loss resolves."""
    inside = all(1.1 * EXPONENTS[0] < one < 0.9 * EXPONENTS[1] for one in (law.alpha, law.beta))
    changes = [np.ptp(law.A * np.exp(-law.alpha * n)), np.ptp(law.B * np.exp(-law.beta * d))]
    return inside and bool(min(changes) > DELTA * float(np.exp(loss).mean()))


def check(points: Sequence[Point]) -> None:
    """Requires enough runs that differ enough, and not all in the same way.

    Raises:
        UserError: they do not; the message says which runs to add.
    """
    if len(points) < FEWEST_RUNS:
        problem = f'{len(points)} finished runs, expected {FEWEST_RUNS} or more: the law has five constants'
        raise UserError(f'{problem}. Add runs (experiments/scaling.py makes them)')
    for point in points:
        if not (point.loss > 0 and math.isfinite(point.loss)):
            raise UserError(
                f'{point.name} has loss {point.loss}, expected a finite number above 0. Remove it from --fit'
            )
    for what, values in (('sizes', [p.parameters for p in points]), ('tokens', [p.tokens for p in points])):
        different, spread = len(set(values)), max(values) / min(values)
        if different < FEWEST_SIZES or spread < LEAST_SPREAD:
            problem = f'the runs have {different} different {what}, the largest {spread:.3g} times the smallest'
            raise UserError(f'{problem}; expected {FEWEST_SIZES} or more over a factor of {LEAST_SPREAD:g}. Add runs')
    n, d, _ = _logs(points)
    line = np.polyfit(n, d, 1)
    if float(np.std(d - np.polyval(line, n))) < 0.25:
        problem = 'the tokens of the runs are a function of their size, so the two cannot be told apart'
        raise UserError(f'{problem}. Add runs of the same size with other numbers of tokens')


def budgets(points: Sequence[Point]) -> list[Budget]:
    """The parabola of each budget with runs of at least three sizes, by FLOPs."""
    groups: list[list[Point]] = []
    for point in sorted(points, key=lambda point: point.flops):
        if groups and point.flops < SAME_BUDGET * groups[-1][0].flops:
            groups[-1].append(point)
        else:
            groups.append([point])
    found = []
    for group in groups:
        group.sort(key=lambda point: point.parameters)
        sizes = np.log([point.parameters for point in group])
        if len(set(sizes)) < FEWEST_SIZES:
            continue
        middle = sizes.mean()  # a parabola over large numbers is badly conditioned
        c2, c1, c0 = np.polyfit(sizes - middle, [point.loss for point in group], 2)
        best = middle - c1 / (2 * c2) if c2 > 0 else math.inf
        inside = sizes[0] <= best <= sizes[-1]
        flops = math.exp(np.mean(np.log([point.flops for point in group])))
        whole = (float(c2), float(c1 - 2 * c2 * middle), float(c0 - c1 * middle + c2 * middle**2))
        found.append(Budget(flops, tuple(group), whole, math.exp(best) if inside else None))
    return found


def interval(values: Sequence[float], share: float = 0.9) -> tuple[float, float]:
    """The middle `share` of the values; (nan, nan) of none."""
    if not len(values):
        return math.nan, math.nan
    low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def left_out(points: Sequence[Point]) -> tuple[Point, float] | None:
    """The run with the most FLOPs, and its loss as the others predict it; None if the others cannot be fitted."""
    last = max(points, key=lambda point: point.flops)
    others = [point for point in points if point is not last]
    try:
        return last, fit(others, resamples=0).law.loss(last.parameters, last.tokens)
    except UserError:
        return None


# -- The robust fit -------------------------------------------------------------------------------------------------


def _logs(points: Sequence[Point]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    columns = np.array([(point.parameters, point.tokens, point.loss) for point in points])
    n, d, loss = np.log(columns).T
    return n, d, loss


def _terms(x: np.ndarray, n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """Log of E, A / N^alpha and B / D^beta, [..., 3, runs]; x [..., 5] has log E, log A, log B, alpha, beta."""
    e, a, b, alpha, beta = (x[..., i, None] for i in range(5))
    return np.stack(np.broadcast_arrays(e, a - alpha * n, b - beta * d), axis=-2)


def _objective(x: np.ndarray, n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """The Huber loss [...]."""
    residual = np.abs(np.logaddexp.reduce(_terms(x, n, d), axis=-2) - loss)
    value = np.where(residual <= DELTA, 0.5 * residual**2, DELTA * (residual - 0.5 * DELTA))
    return np.asarray(value.sum(axis=-1))


def _starts(n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> np.ndarray:
    """For each alpha and beta of the grid the best of its points, [starts, 5]."""
    grid = np.array(list(itertools.product(*_GRID)))
    values = _objective(grid, n, d, loss)
    exponents = len(_GRID[3]) * len(_GRID[4])
    best = values.reshape(-1, exponents).argmin(axis=0)
    return grid.reshape(-1, exponents, 5)[best, np.arange(exponents)]


def _fit_loss(n: np.ndarray, d: np.ndarray, loss: np.ndarray, starts: np.ndarray) -> tuple[LossLaw, np.ndarray]:
    """The best law found, and all solutions [starts, 5], best first."""
    ones = np.ones_like(n)

    def shares(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The log of the predicted loss [runs], and the share of each term in it [3, runs]."""
        terms = _terms(x, n, d)
        total = np.logaddexp.reduce(terms, axis=0)
        return total, np.exp(terms - total)

    def jacobian(x: np.ndarray) -> np.ndarray:
        of_e, of_a, of_b = shares(x)[1]
        return np.stack([of_e * ones, of_a, of_b, -of_a * n, -of_b * d], axis=1)

    residuals = lambda x: shares(x)[0] - loss

    low, high = EXPONENTS  # the loss must fall with N and D
    bounds = np.array([-np.inf] * 3 + [low] * 2), np.array([np.inf] * 3 + [high] * 2)

    def solve(start: np.ndarray, delta: float) -> Any:
        robust = {'loss': 'huber', 'f_scale': delta, 'x_scale': 'jac', 'max_nfev': 300}
        with np.errstate(over='ignore', invalid='ignore'):  # a start may lead nowhere; others do not
            return least_squares(residuals, np.clip(start, *bounds), jacobian, bounds, **robust)

    # Far from the data the Huber loss is nearly flat, so a wider one leads there.
    found = [solve(solve(start, 100 * DELTA).x, DELTA) for start in starts]
    found.sort(key=lambda one: one.cost)
    e, a, b, alpha, beta = (float(x) for x in found[0].x)
    law = LossLaw(math.exp(e), math.exp(a), math.exp(b), alpha, beta)
    return law, np.array([one.x for one in found])
