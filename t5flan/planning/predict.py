"""What a fit says, as JSON: constants with their intervals, and predictions for larger budgets."""

import operator
from collections.abc import Callable, Sequence
from typing import Any

from t5flan.planning.fit import Fit, interval, left_out
from t5flan.planning.laws import FLOPS_PER_PARAMETER, Frontier, LossLaw

AHEAD = (10.0, 100.0)
"""Budgets that are predicted, over the largest one of the runs."""


def describe_fit(fit: Fit, flops: Sequence[float] = ()) -> dict[str, Any]:
    """The fit as JSON.

    Args:
        fit: the fit.
        flops: budgets to predict for (6 N D); none takes 10 and 100 times the largest one of the runs.
    """

    def constant(of: Callable[[LossLaw], float]) -> dict[str, float]:
        low, high = interval([of(law) for law in fit.resampled])
        return {'value': of(fit.law), 'low': low, 'high': high}

    names = ('E', 'A', 'B', 'alpha', 'beta')
    constants = {name: constant(operator.attrgetter(name)) for name in names}
    constants['a in N ~ C^a'] = constant(lambda law: law.beta / (law.alpha + law.beta))
    check = left_out(fit.points)
    asked = list(flops) or [times * fit.studied[1] for times in AHEAD]
    return {
        'runs': len(fit.points),
        'constants': constants,
        'error': fit.error,
        'studied_flops': list(fit.studied),
        'budgets': [{'flops': one.flops, 'runs': len(one.points), 'parameters': one.parameters} for one in fit.budgets],
        'isoflop_exponent': None if fit.isoflop is None else fit.isoflop.exponent,
        'predictions': [_prediction(fit, one) for one in asked],
        'left_out': None
        if check is None
        else {'run': check[0].name, 'predicted': check[1], 'measured': float(check[0].loss)},
        'points': [
            {'run': p.name, 'parameters': p.parameters, 'tokens': p.tokens, 'flops': p.flops, 'loss': float(p.loss)}
            for p in fit.points
        ],
    }


def _prediction(fit: Fit, flops: float) -> dict[str, Any]:
    """The optimal size and tokens for a budget, and the loss there, each with its interval."""
    pairs = [(fit.law, fit.frontier), *zip(fit.resampled, fit.frontiers, strict=True)]

    def values(law: LossLaw, frontier: Frontier) -> dict[str, float]:
        parameters = frontier.parameters(flops)
        tokens = flops / (FLOPS_PER_PARAMETER * parameters)
        return {'parameters': parameters, 'tokens': tokens, 'loss': law.loss(parameters, tokens)}

    found = [values(*pair) for pair in pairs]
    rows: dict[str, Any] = {'flops': flops}
    for name, value in found[0].items():
        low, high = interval([one[name] for one in found[1:]])
        rows[name] = {'value': value, 'low': low, 'high': high}
    return rows
