"""experiments/scaling.py: the runs of a sweep have equal FLOPs in each budget, and vary sizes and tokens apart."""

import argparse
import sys

import numpy as np

from t5flan.configurables import parse, training_settings
from tests.docs.markdown import ROOT

sys.path.insert(0, str(ROOT / 'experiments'))

import scaling

from t5flan.planning.cost import batch_of, count_parameters
from t5flan.planning.fit import Point, check
from t5flan.training.throughput import model_flops


def test_the_default_sweep_can_be_fitted(tmp_path, capsys):
    given = {'text': 'a.txt', 'held_out': 'b.txt', 'vocabulary': 'bytes', 'vocab_size': 384, 'batches': 2}
    given |= {'sizes': scaling.SIZES, 'budgets': scaling.BUDGETS, 'rows': 16, 'length': 128, 'rate': 1e-2}
    planned = scaling.sweep(tmp_path, argparse.Namespace(**given))
    points = []
    for gin, steps, per_step in planned:
        settings = training_settings(parse([str(gin)]))  # a name that does not exist is an error
        data, model = settings['data'], settings['model']
        batch = batch_of(model, data.batch_size, data.feature_lengths)
        assert settings['run'].steps == settings['evaluation'].every == steps >= scaling.FEWEST_STEPS
        assert model_flops(model, batch.shapes) == per_step
        size = float(count_parameters(model))
        points.append(Point(gin.stem, size, steps * batch.tokens, steps * per_step, 3 + np.log(1e9 / size) / 10))
    check(points)
    for point in points:
        budget = min((3e11, 1e12, 3e12, 1e13), key=lambda one: abs(np.log(one / point.flops)))
        assert 0.97 * budget < point.flops <= budget
    assert 'left out: fewer than 40 steps' in capsys.readouterr().out
