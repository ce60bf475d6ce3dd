"""The losses of eight steps of two tiny models equal recorded ones.

A change that should not move numbers leaves tests/golden alone. One that should (a new initialiser, default or formula)
records them again and says why in the commit:

    python -m tests.training.golden_test
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from t5flan.models.parameters import logical_axes
from t5flan.training.config import LossConfig, OptimizerConfig
from t5flan.training.optimizer import make_optimizer
from t5flan.training.state import create_state
from t5flan.training.step import make_train_step
from tests.training.examples import DECODER, ENCODER_DECODER, make_batch, make_model

pytestmark = pytest.mark.golden

GOLDEN = Path(__file__).resolve().parent.parent / 'golden'
STEPS = 8
RUNS = {
    'encoder_decoder': (
        ENCODER_DECODER,
        OptimizerConfig(learning_rate=0.02, schedule='linear', warmup_steps=2, min_dim_to_factor=16),
        LossConfig(),
    ),
    'decoder': (
        DECODER,
        OptimizerConfig(name='adamw', learning_rate=3e-3, weight_decay=0.1, clip_by_global_norm=1.0),
        LossConfig(label_smoothing=0.1),
    ),
}


def losses(name: str) -> list[float]:
    """Loss of each step, float32, from parameters of key 0, cycling through three batches."""
    config, settings, loss = RUNS[name]
    optimizer = make_optimizer(settings, logical_axes(make_model(config)), STEPS)
    state = create_state(make_model(config), optimizer)
    step = jax.jit(make_train_step(settings, loss, optimizer, 0))
    values = []
    for i in range(STEPS):
        state, metrics = step(state, make_batch(config, seed=i % 3))
        values.append(float(metrics['loss']))
    return values


def path(name: str) -> Path:
    return GOLDEN / f'train_{name}.json'


@pytest.mark.parametrize('name', RUNS)
def test_losses_are_the_golden_ones(name):
    golden = json.loads(path(name).read_text())['losses']
    np.testing.assert_allclose(
        losses(name),
        golden,
        rtol=1e-4,
        err_msg=f'the losses of {STEPS} steps differ from {path(name).name}. If this change should not move numbers, '
        'it has a bug. If it should, run `python -m tests.training.golden_test` and say why in the commit.',
    )


if __name__ == '__main__':
    GOLDEN.mkdir(exist_ok=True)
    for run in RUNS:
        path(run).write_text(json.dumps({'losses': [round(value, 6) for value in losses(run)]}, indent=1) + '\n')
        print(f'wrote {path(run)}')
