"""t5flan/planning/fit.py: known constants are found again, and runs that cannot tell are refused."""

import dataclasses

import numpy as np
import pytest

from t5flan.errors import UserError
from t5flan.planning.fit import Point, budgets, check, fit, interval, left_out
from t5flan.planning.laws import CHINCHILLA_LOSS, LossLaw
from t5flan.planning.predict import describe_fit

SMALL = LossLaw(E=1.2, A=60.0, B=150.0, alpha=0.3, beta=0.35)
"""As of runs with 1e5 parameters."""


def points(law: LossLaw, budgets: tuple[float, ...], noise: float = 0.0, sizes: int = 5) -> list[Point]:
    rng = np.random.default_rng(1)
    found = []
    for flops in budgets:
        best = law.frontier((0, 1), '').parameters(flops)
        for factor in np.geomspace(0.2, 5.0, sizes):
            parameters, tokens = best * factor, flops / 6 / best / factor
            loss = law.loss(parameters, tokens) * np.exp(noise * rng.standard_normal())
            found.append(Point(f'{flops:g}/{factor:.2g}', parameters, tokens, flops, loss))
    return found


@pytest.mark.parametrize('law', [CHINCHILLA_LOSS, SMALL])
def test_known_constants_are_found(law):
    budgets_ = (1e19, 1e20, 1e21) if law is CHINCHILLA_LOSS else (1e12, 1e13, 1e14)
    found = fit(points(law, budgets_), resamples=0)
    for name, value in dataclasses.asdict(law).items():
        assert getattr(found.law, name) == pytest.approx(value, rel=1e-3), name
    assert found.error < 1e-6


def test_noise_is_within_the_interval():
    found = fit(points(CHINCHILLA_LOSS, (1e19, 1e20, 1e21, 1e22), noise=0.002, sizes=5), resamples=20)
    exponent = CHINCHILLA_LOSS.frontier((0, 1), '').exponent
    low, high = interval([one.exponent for one in found.frontiers], 0.98)
    assert low < exponent < high and high - low < 0.15
    assert found.error == pytest.approx(0.002, rel=0.5)
    assert found.isoflop is not None and found.isoflop.exponent == pytest.approx(exponent, abs=0.05)
    again = fit(found.points, resamples=2)
    assert again.resampled == found.resampled[:2]  # reproducible


def test_a_run_that_failed_does_not_move_the_fit():
    """The robust fit: one loss of 21 is 10 % too high."""
    given = points(CHINCHILLA_LOSS, (1e19, 1e20, 1e21), sizes=7)
    given[3] = dataclasses.replace(given[3], loss=given[3].loss * 1.1)
    found = fit(given, resamples=0)
    assert found.frontier.exponent == pytest.approx(CHINCHILLA_LOSS.frontier((0, 1), '').exponent, abs=0.01)


def test_parabolas_find_the_best_size_of_each_budget():
    given = points(CHINCHILLA_LOSS, (1e19, 1e21))
    found = budgets(given)
    assert [len(one.points) for one in found] == [5, 5]
    for one in found:
        best = CHINCHILLA_LOSS.frontier((0, 1), '').parameters(one.flops)
        assert one.parameters == pytest.approx(best, rel=0.25)
        for point in one.points:
            assert np.polyval(one.coefficients, np.log(point.parameters)) == pytest.approx(point.loss, rel=0.02)
    edge = [point for point in given if point.parameters > 1.5 * given[0].parameters * 5]
    assert all(one.parameters is None for one in budgets(edge[:3]))


def test_the_largest_run_is_predicted_by_the_others():
    given = points(SMALL, (1e12, 1e13, 1e14))
    run, predicted = left_out(given)
    assert run.flops == 1e14 and predicted == pytest.approx(run.loss, rel=1e-3)
    assert left_out(given[:8]) is None  # seven others are too few


def test_predictions_have_intervals():
    found = describe_fit(fit(points(SMALL, (1e12, 1e13, 1e14), noise=0.001), resamples=20))
    assert [one['flops'] for one in found['predictions']] == pytest.approx([1e15, 1e16])
    for one in found['predictions']:
        for name in ('parameters', 'tokens', 'loss'):
            assert 0.7 * one[name]['value'] < one[name]['low'] < one[name]['high'] < 1.4 * one[name]['value']
        assert 6 * one['parameters']['value'] * one['tokens']['value'] == pytest.approx(one['flops'])


def line(count: int, **changes) -> list[Point]:
    base = points(SMALL, (1e12, 1e13, 1e14))[:count]
    return [dataclasses.replace(one, **{name: value(one) for name, value in changes.items()}) for one in base]


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        (line(7), '7 finished runs, expected 8 or more'),
        (line(15, parameters=lambda one: 1e5), '1 different sizes'),
        (line(15, tokens=lambda one: 1e6 * (1 + one.loss % 0.1)), 'different tokens, the largest'),
        (line(15, tokens=lambda one: 20 * one.parameters), 'the tokens of the runs are a function of their size'),
        (line(15, loss=lambda one: float('nan')), 'has loss nan'),
    ],
)
def test_runs_that_cannot_tell_are_refused(given, message):
    with pytest.raises(UserError, match=message) as raised:
        check(given)
    assert '\n' not in str(raised.value)


def test_runs_that_do_not_determine_the_law_are_refused():
    """Differences of the losses are mostly noise."""
    given = points(LossLaw(E=3.0, A=2.0, B=2.0, alpha=0.3, beta=0.3), (1e12, 1e13, 1e14), noise=0.05, sizes=3)
    with pytest.raises(UserError, match='do not determine the law|does not fall'):
        fit(given, resamples=20)


def test_a_loss_that_rises_is_refused():
    given = [dataclasses.replace(one, loss=1 / one.loss) for one in points(SMALL, (1e12, 1e13, 1e14))]
    with pytest.raises(UserError, match='does not fall with size and tokens as a power law'):
        fit(given, resamples=0)
