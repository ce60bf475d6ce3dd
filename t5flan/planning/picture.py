"""Plots of a plan and of a fit."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from t5flan.files import open_whole
from t5flan.planning.fit import Fit
from t5flan.planning.laws import Frontier


def _new_figure(columns: int) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * columns, 4.2), layout='constrained')
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.set_xscale('log')
    return figure, axes


def _save(figure: Any, path: str) -> None:
    with open_whole(path, 'wb') as file:
        figure.savefig(file, format=path.rpartition('.')[2], dpi=110)


def draw_plan(path: str, plan: Mapping[str, Any], laws: Mapping[str, Frontier]) -> None:
    """Plots the optimal size of each law over FLOPs, and the models of the plan, into `path` (.png, .svg or .pdf)."""
    figure, (axis,) = _new_figure(1)
    middle = [row['flops'] for row in plan['laws']] + [row['flops'] for row in plan['models']]
    flops = np.geomspace(min(middle) / 100, max(middle) * 100, 50)
    for name, law in laws.items():
        axis.plot(flops, law.factor * flops**law.exponent, label=name)
    for row in plan['models']:
        axis.plot(row['flops'], row['parameters'], 'k*' if row['nearest'] else 'k.')
        axis.annotate(
            row['model'], (row['flops'], row['parameters']), fontsize=7, xytext=(4, 2), textcoords='offset points'
        )
    axis.set(xlabel='FLOPs of training', ylabel='parameters', yscale='log')
    axis.legend(frameon=False)
    _save(figure, path)


def draw_fit(path: str, fit: Fit) -> None:
    """Plots the parabolas at equal FLOPs, and predicted over measured losses, into `path`."""
    figure, (left, right) = _new_figure(2)
    if not fit.budgets:
        left.plot([point.parameters for point in fit.points], [point.loss for point in fit.points], '.')
    for budget in fit.budgets:
        sizes = np.array([point.parameters for point in budget.points])
        (line,) = left.plot(sizes, [point.loss for point in budget.points], 'o', label=f'{budget.flops:.2g} FLOPs')
        x = np.geomspace(sizes.min(), sizes.max(), 60)
        left.plot(x, np.polyval(budget.coefficients, np.log(x)), color=line.get_color())
    left.set(xlabel='parameters', ylabel='loss (nats per token)')
    if fit.budgets:
        left.legend(frameon=False)
    measured = np.array([point.loss for point in fit.points])
    predicted = [fit.law.loss(point.parameters, point.tokens) for point in fit.points]
    right.set_xscale('linear')
    right.plot(measured, predicted, 'o')
    ends = [measured.min(), measured.max()]
    right.plot(ends, ends, color='gray', linewidth=1)
    right.set(xlabel='measured loss', ylabel='loss by the fitted law')
    _save(figure, path)
