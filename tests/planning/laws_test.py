"""t5flan/planning/laws.py against the numbers that the papers print."""

import math

import pytest

from t5flan.errors import UserError
from t5flan.planning.laws import (
    CHINCHILLA_FLOPS,
    CHINCHILLA_LOSS,
    CHINCHILLA_PARAMETERS,
    LAWS,
    LossLaw,
    find_law,
)

# Exponents and their 80 % intervals, table 2.
TABLE_2 = {
    'chinchilla1': (0.50, 0.488, 0.502),
    'chinchilla2': (0.49, 0.462, 0.534),
    'chinchilla3': (0.46, 0.454, 0.455),
}
GOPHER_FLOPS = 5.76e23


@pytest.mark.parametrize('name', TABLE_2)
def test_exponents_are_those_of_table_2(name):
    published, low, high = TABLE_2[name]
    assert round(LAWS[name].exponent, 2) == published
    assert low - 0.005 < LAWS[name].exponent < high + 0.005


@pytest.mark.parametrize(('approach', 'error'), [(1, 0.03), (2, 0.07), (3, 0.20)])
def test_tables_3_and_a3(approach, error):
    law = LAWS[f'chinchilla{approach}']
    for parameters, flops in zip(CHINCHILLA_PARAMETERS, CHINCHILLA_FLOPS[approach], strict=True):
        assert law.flops_of_parameters(parameters) == pytest.approx(flops, rel=error)


def test_tokens_of_table_3():
    for parameters, tokens in ((4e8, 8.0e9), (1e9, 20.2e9), (1e10, 205.1e9), (1.75e11, 3.7e12), (1e13, 216.2e12)):
        assert LAWS['chinchilla1'].tokens(parameters) == pytest.approx(tokens, rel=0.02)


def test_gophers_budget_gives_chinchilla():
    """67, 63 and 40 billion parameters by the three approaches (section 3.4)."""
    for name, parameters in (('chinchilla1', 67e9), ('chinchilla2', 63e9), ('chinchilla3', 40e9)):
        assert LAWS[name].parameters(GOPHER_FLOPS) == pytest.approx(parameters, rel=0.02)


def test_the_closed_form_is_the_minimum():
    flops, law = 1e21, LAWS['chinchilla3']
    best = law.parameters(flops)
    loss = lambda parameters: CHINCHILLA_LOSS.loss(parameters, flops / 6 / parameters)
    assert all(loss(best) < loss(best * factor) for factor in (0.5, 0.99, 1.01, 2))


def test_palm2_grows_parameters_and_tokens_equally():
    law = LAWS['palm2']
    assert law.parameters(1e22) == pytest.approx(9.5e9)
    assert law.parameters(100 * 1e22) / law.parameters(1e22) == pytest.approx(10)
    assert law.tokens(1e12) / 1e12 == pytest.approx(law.tokens(1e9) / 1e9)
    assert LAWS['chinchilla1'].parameters(1e22) == pytest.approx(law.parameters(1e22), rel=0.07)


@pytest.mark.parametrize('name', LAWS)
def test_the_three_directions_agree(name):
    law = LAWS[name]
    parameters = law.parameters(3e20)
    tokens = law.tokens(parameters)
    assert 6 * parameters * tokens == pytest.approx(3e20)
    assert law.flops_of_tokens(tokens) == pytest.approx(3e20)


def test_loss_falls_to_the_entropy():
    law = LossLaw(E=1.5, A=100.0, B=200.0, alpha=0.3, beta=0.4)
    assert law.loss(1e9, 1e9) > law.loss(2e9, 1e9) > 1.5
    assert math.isclose(law.loss(1e60, 1e60), 1.5, rel_tol=1e-9)


def test_an_unknown_law_is_one_line():
    with pytest.raises(UserError, match='did you mean chinchilla1'):
        find_law('chinchila1')
