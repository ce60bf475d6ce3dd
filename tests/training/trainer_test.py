"""t5flan/training/trainer.py: a run killed anywhere goes on to the same numbers; every bad start ends in one clear line."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from t5flan import tasks
from t5flan.data.config import DataConfig, FileTask, InstructionConfig, Stage
from t5flan.data.mixtures.mixing import find_mixture
from t5flan.errors import UserError
from t5flan.mesh import MeshConfig
from t5flan.models.config import ModelConfig
from t5flan.training import checkpoints as checkpoints_lib
from t5flan.training.config import CheckpointConfig, EvaluationConfig, OptimizerConfig, RunConfig
from t5flan.training.metric_writer import read_metrics
from t5flan.training.trainer import train

MODEL = ModelConfig(
    architecture='encoder_decoder',
    vocab_size=384,
    emb_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=32,
    num_encoder_layers=2,
    num_decoder_layers=2,
    dropout_rate=0.1,
    dtype='float32',
)
WORDS = 'ant bee cat dog eel fox gnu hen'.split()


@pytest.fixture(scope='module')
def task_file(tmp_path_factory):
    """400 rows: words, and the same words reversed."""
    path = tmp_path_factory.mktemp('data') / 'reverse.jsonl'
    rng = random.Random(0)
    rows = [rng.choices(WORDS, k=rng.randint(1, 5)) for _ in range(400)]
    path.write_text(
        ''.join(json.dumps({'inputs': ' '.join(row), 'targets': ' '.join(row[::-1])}) + '\n' for row in rows)
    )
    return path


@pytest.fixture
def settings(task_file, request):
    """Arguments of train(): 12 steps, saved every 4."""
    name = 'reverse_' + ''.join(c if c.isalnum() else '_' for c in request.node.name)
    data = DataConfig(
        mixture=name,
        batch_size=8,
        feature_lengths={'inputs': 40, 'targets': 40},
        vocabulary='bytes',
        extra_ids=0,
        file_tasks=(FileTask(name=name, train=str(task_file)),),
    )
    tasks.register_all(data)
    return dict(
        model=MODEL,
        data=data,
        run=RunConfig(steps=12, log_every=1),
        optimizer=OptimizerConfig(learning_rate=0.01),
        checkpoints=CheckpointConfig(every=4, keep=2),
        mesh=MeshConfig(data=2, fsdp=2, tensor=2),
    )


def losses(workdir):
    rows = [row for row in read_metrics(workdir) if 'loss' in row]
    assert [row['step'] for row in rows] == list(range(1, len(rows) + 1)), 'a step is missing or stands twice'
    return [row['loss'] for row in rows]


def same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_stopping_and_going_on_gives_the_same_bits(tmp_path, settings):
    whole = train(str(tmp_path / 'whole'), **settings)
    train(str(tmp_path / 'parts'), **settings | {'run': RunConfig(steps=6, log_every=1)})
    parts = train(str(tmp_path / 'parts'), **settings)
    assert losses(tmp_path / 'parts') == losses(tmp_path / 'whole')
    same_bits(whole, parts)


def test_another_mesh_goes_on_from_the_same_data(tmp_path, settings):
    settings |= {'model': dataclasses.replace(MODEL, dropout_rate=0.0)}
    train(str(tmp_path / 'whole'), **settings)
    train(str(tmp_path / 'parts'), **settings | {'run': RunConfig(steps=4, log_every=1)})
    train(str(tmp_path / 'parts'), **settings | {'mesh': MeshConfig(data=8)})
    np.testing.assert_allclose(losses(tmp_path / 'parts'), losses(tmp_path / 'whole'), rtol=2e-5)


def test_loss_falls_and_evaluation_picks_the_best(tmp_path, settings):
    settings |= {
        'run': RunConfig(steps=40, log_every=1),
        'evaluation': EvaluationConfig(every=10, batches=1),
        'checkpoints': CheckpointConfig(every=10, keep=1, best_metric='eval/loss'),
    }
    train(str(tmp_path), **settings)
    assert losses(tmp_path)[-1] < 0.8 * losses(tmp_path)[0]
    evaluated = {row['step']: row['eval/loss'] for row in read_metrics(tmp_path) if 'eval/loss' in row}
    best = min(evaluated, key=evaluated.get)
    assert set(checkpoints_lib.saved_steps(tmp_path)) == {best, 40}


def test_initializing_takes_parameters_alone_or_all(tmp_path, settings):
    first = train(str(tmp_path / 'first'), **settings | {'run': RunConfig(steps=4)})
    for what, step in (('parameters', 0), ('all', 4)):
        from_first = CheckpointConfig(every=100, initialize_from=str(tmp_path / 'first'), initialize=what)
        frozen = OptimizerConfig(learning_rate=0.0)
        state = train(
            str(tmp_path / what),
            **settings | {'checkpoints': from_first, 'optimizer': frozen, 'run': RunConfig(steps=5, log_every=1)},
        )
        same_bits(state.model, first.model)
        assert [row['step'] for row in read_metrics(tmp_path / what)] == list(range(step + 1, 6))


def test_nan_stops_with_step_loss_and_last_good_checkpoint(tmp_path, settings):
    train(str(tmp_path), **settings | {'run': RunConfig(steps=4)})
    with pytest.raises(UserError, match=r'loss is (nan|inf).* at step \d+; the last good checkpoint is step 4 in '):
        train(str(tmp_path), **settings | {'optimizer': OptimizerConfig(learning_rate=1e30)})
    assert checkpoints_lib.saved_steps(tmp_path) == [4]


@pytest.mark.parametrize(
    'change, setting',
    [
        ({'model': dataclasses.replace(MODEL, mlp_dim=64)}, r'ModelConfig\.mlp_dim=32.*given is 64'),
        ({'seed': 3}, r'DataConfig\.seed=0.*given is 3'),
        ({'batch_size': 16}, r'DataConfig\.batch_size=8.*given is 16'),
        ({'mixed_in': {'practice': 0.1}}, r'DataConfig\.mixed_in=\{\}.*given is \{.practice.: 0\.1\}'),
        ({'stages': (Stage('practice', 2),)}, r'DataConfig\.stages=\[\], given is'),
        ({'instructions': InstructionConfig(few_shot=0)}, r'DataConfig\.instructions\.few_shot=0\.5.*given is 0'),
    ],
)
def test_a_workdir_of_another_run_is_refused(tmp_path, settings, change, setting):
    train(str(tmp_path), **settings | {'run': RunConfig(steps=1)})
    given = (
        {'model': change['model']} if 'model' in change else {'data': dataclasses.replace(settings['data'], **change)}
    )
    with pytest.raises(UserError, match=setting):
        train(str(tmp_path), **settings | given)
    assert checkpoints_lib.saved_steps(tmp_path) == [1]


def test_a_vocabulary_larger_than_the_model_is_refused(tmp_path, settings):
    with pytest.raises(UserError, match=r'ModelConfig\.vocab_size=128'):
        train(str(tmp_path), **settings | {'model': dataclasses.replace(MODEL, vocab_size=128)})


def test_a_batch_that_does_not_divide_over_the_mesh_is_refused(tmp_path, settings):
    with pytest.raises(UserError, match=r'DataConfig\.batch_size=6'):
        train(str(tmp_path), **settings | {'data': dataclasses.replace(settings['data'], batch_size=6)})


def test_a_length_that_does_not_divide_over_the_mesh_is_refused_before_anything_is_made(tmp_path, settings):
    data = dataclasses.replace(settings['data'], feature_lengths={'inputs': 40, 'targets': 42})
    with pytest.raises(
        UserError, match=r'DataConfig\.feature_lengths=42 .* context=8\..* or change MeshConfig\.context'
    ) as error:
        train(str(tmp_path), **settings | {'mesh': MeshConfig(data=1, context=8), 'data': data})
    assert '\n' not in str(error.value) and not list(tmp_path.iterdir())


# -- Killed from outside ------------------------------------------------------------------------------------------------


def start(workdir, task_file, steps=40):
    """The same training as a process of its own, on one device, saved every 5 steps."""
    bindings = [
        f'ModelConfig.{f.name}={getattr(MODEL, f.name)}'
        for f in dataclasses.fields(MODEL)
        if getattr(MODEL, f.name) is not None and getattr(MODEL, f.name) != f.default
    ]
    bindings += [
        'DataConfig.mixture=reverse_killed',
        'FileTask.name=reverse_killed',
        f'FileTask.train={task_file}',
        'DataConfig.file_tasks=[@FileTask()]',
        'DataConfig.batch_size=8',
        'DataConfig.vocabulary=bytes',
        'DataConfig.extra_ids=0',
        "DataConfig.feature_lengths={'inputs': 40, 'targets': 40}",
        f'RunConfig.steps={steps}',
        'RunConfig.log_every=1',
        'CheckpointConfig.every=5',
        'OptimizerConfig.learning_rate=0.01',
    ]
    environment = os.environ | {'XLA_FLAGS': ''}
    return subprocess.Popen(
        [
            sys.executable,
            '-m',
            't5flan',
            'train',
            f'--workdir={workdir}',
            *(f'--gin.{binding}' for binding in bindings),
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def wait_for(process, happened, seconds=120):
    """Until `happened()`; fails if the process ends first."""
    for _ in range(int(seconds / 0.005)):
        if happened():
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.kill()
    raise AssertionError('it did not happen')


def mid_step(workdir):
    return lambda: len(read_metrics(workdir)) >= 8


def mid_save(workdir):
    return lambda: any('tmp' in path.name for path in (workdir / 'checkpoints').glob('5*'))


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory, task_file):
    workdir = tmp_path_factory.mktemp('unbroken')
    process = start(workdir, task_file)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return losses(workdir)


@pytest.mark.parametrize('moment', [mid_step, mid_save])
def test_killed_run_goes_on_bit_for_bit(tmp_path, task_file, unbroken, moment):
    process = start(tmp_path, task_file)
    wait_for(process, moment(tmp_path))
    process.kill()
    process.wait()
    process = start(tmp_path, task_file)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert losses(tmp_path) == unbroken


def test_sigterm_saves_and_says_so(tmp_path, task_file, unbroken):
    process = start(tmp_path, task_file)
    wait_for(process, mid_step(tmp_path))
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1
    assert 'stopped by SIGTERM at step' in said.splitlines()[-1], said
    step = checkpoints_lib.latest_step(tmp_path)
    assert step is not None and losses(tmp_path) == unbroken[:step]


def _written_since(workdir, moment):
    path = workdir / 'metrics.jsonl'
    return path.exists() and path.stat().st_mtime > moment


@pytest.mark.slow
def test_killed_again_and_again_goes_on_bit_for_bit(tmp_path, task_file, unbroken):
    """Eight kills, each a random number of steps and milliseconds after the run has gone on."""
    rng = random.Random(0)
    for _ in range(8):
        reached = min((checkpoints_lib.latest_step(tmp_path) or 0) + rng.randint(1, 9), 39)
        begun, process = time.time(), start(tmp_path, task_file)
        wait_for(process, lambda: _written_since(tmp_path, begun) and len(read_metrics(tmp_path)) >= reached)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.wait()
    _, said = start(tmp_path, task_file).communicate(timeout=300)
    assert losses(tmp_path) == unbroken, said


def test_every_task_is_measured_by_itself(tmp_path, settings):
    mixture = settings['data'].mixture
    evaluation = EvaluationConfig(every=2, batches=1, tasks=(mixture,))
    train(str(tmp_path), **settings | {'run': RunConfig(steps=2), 'evaluation': evaluation})
    measured = next(row for row in read_metrics(tmp_path) if 'eval/loss' in row)
    names = [task.name for task in getattr(find_mixture(mixture), 'tasks', None) or [find_mixture(mixture)]]
    assert {name for name in measured if name.startswith('eval/loss/')} == {f'eval/loss/{name}' for name in names}
    if len(names) == 1:
        assert measured['eval/loss'] == measured[f'eval/loss/{names[0]}']
    with pytest.raises(UserError, match="no task or mixture 'nothing'.*Set EvaluationConfig.tasks"):
        train(str(tmp_path / 'other'), **settings | {'evaluation': EvaluationConfig(every=2, tasks=('nothing',))})
