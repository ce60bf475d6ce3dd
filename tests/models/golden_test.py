"""The losses of eight steps of gradient descent from fixed parameters and batches, as in tests/golden/models.json.

A change that should not affect numbers leaves the file as it is. One that should updates it, and its commit says why:

    T5FLAN_UPDATE_GOLDEN=1 python -m pytest tests/models/golden_test.py
"""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from t5flan.configurables import parse
from t5flan.models.build import build_model
from t5flan.models.config import ModelConfig
from tests.models.small_models import mean_loss, random_batch

pytestmark = pytest.mark.golden

GOLDEN = Path(__file__).resolve().parents[1] / 'golden' / 'models.json'
STEPS, RATE = 8, 0.1
RTOL = 1e-4  # rounding in another order of summation grows over eight steps; measured below 1e-5
UPDATE = 'T5FLAN_UPDATE_GOLDEN=1 python -m pytest tests/models/golden_test.py'


@jax.jit
def descend(model, batch):
    loss, gradient = jax.value_and_grad(mean_loss)(model, batch)
    norm = sum((x**2).sum() for x in jax.tree.leaves(gradient)) ** 0.5
    return jax.tree.map(lambda x, g: x - RATE * g, model, gradient), {'loss': loss, 'gradient_norm': norm}


@pytest.mark.parametrize('name, family', [('tiny_encoder_decoder', 't5_1_1'), ('tiny_decoder', 'palm')])
def test_losses_match_the_golden_file(name, family):
    config = parse([f'models/{name}']).read(ModelConfig)
    model = jax.jit(build_model, static_argnums=0)(config, jax.random.key(0))
    rows = []
    for step in range(STEPS):
        model, row = descend(model, random_batch(family, rows=4, source=24, target=12, seed=step % 2))
        rows.append({metric: float(value) for metric, value in row.items()})

    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get('T5FLAN_UPDATE_GOLDEN'):
        GOLDEN.write_text(json.dumps({**golden, name: rows}, indent=1, sort_keys=True) + '\n')
        return
    assert name in golden, f'nothing is recorded for {name}; record it with {UPDATE}'
    for step, (row, expected) in enumerate(zip(rows, golden[name], strict=True)):
        for metric, value in expected.items():
            assert row[metric] == pytest.approx(value, rel=RTOL), (
                f'{name}: {metric} of step {step} is {row[metric]!r}, golden {value!r}. If this change should affect '
                f'numbers, run {UPDATE} and say why in the commit; otherwise it broke something.'
            )
    assert rows[-1]['loss'] < rows[0]['loss'] and np.isfinite([row['loss'] for row in rows]).all()
