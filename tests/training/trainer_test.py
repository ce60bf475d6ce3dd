"""t5flan/training/trainer.py: a killed run resumes with the same numbers; an invalid one ends in one clear line."""

import dataclasses
import json
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from t5flan import tasks
from t5flan.data.corpus_config import FileTask
from t5flan.data.instruction_config import InstructionConfig
from t5flan.data.mixture_config import Mixture, Stage
from t5flan.data.mixtures import stages
from t5flan.data.mixtures.mixing import find_mixture
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.errors import UserError
from t5flan.evaluation.evaluator import GeneratedMetrics
from t5flan.language_model import load
from t5flan.mesh import MeshConfig
from t5flan.models.parameters import named_axes, named_parameters
from t5flan.training import checkpoints as checkpoints_lib
from t5flan.training import trainer as trainer_lib
from t5flan.training.config import CheckpointConfig, EvaluationConfig, OptimizerConfig, RunConfig
from t5flan.training.metric_writer import read_metrics
from t5flan.training.trainer import train
from tests.training.reversed_words import MODEL, run_settings

SIX_STEPS = RunConfig(steps=6, log_every=1)


@pytest.fixture(scope='module')
def settings(tmp_path_factory):
    """Arguments of train(): 40 steps, saved every 5."""
    shared = run_settings(tmp_path_factory.mktemp('data'), 'reverse_trainer_test', 'prefix_lm')
    return shared | dict(run=RunConfig(steps=40, log_every=1), checkpoints=CheckpointConfig(every=5, keep=2))


@pytest.fixture(scope='module')
def six_steps(tmp_path_factory, settings):
    """(the workdir, the last state) of a run of six steps. Copy the workdir before resuming the run."""
    workdir = tmp_path_factory.mktemp('six_steps')
    return workdir, train(str(workdir), **settings | {'run': SIX_STEPS})


@pytest.fixture
def kinds_of_step(monkeypatch):
    """Whether the step that each later run of train() begins with is compiled already."""
    found, train_loop = [], trainer_lib.Loop.train

    def recording(self, state):
        found.append(isinstance(self.trainer.train_step, jax.stages.Compiled))
        return train_loop(self, state)

    monkeypatch.setattr(trainer_lib.Loop, 'train', recording)
    return found


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory, settings):
    """(the losses, the last state) of a run that nothing stopped."""
    workdir = tmp_path_factory.mktemp('unbroken')
    state = train(str(workdir), **settings)
    return losses(workdir), state


def losses(workdir):
    rows = [row for row in read_metrics(workdir) if 'loss' in row]
    assert [row['step'] for row in rows] == list(range(1, len(rows) + 1)), 'a step is missing or appears twice'
    return [row['loss'] for row in rows]


def assert_same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_a_resumed_run_has_the_same_bits(tmp_path, settings, six_steps, unbroken, kinds_of_step):
    workdir = shutil.copytree(six_steps[0], tmp_path / 'run')
    state = train(str(workdir), **settings)
    assert kinds_of_step == [True]
    assert losses(workdir) == unbroken[0]
    assert_same_bits(state, unbroken[1])


@pytest.mark.slow
def test_another_mesh_resumes_from_the_same_data(tmp_path, settings):
    changed = {
        'model': dataclasses.replace(MODEL, dropout_rate=0.0),
        'run': RunConfig(steps=12, log_every=1),
        'checkpoints': CheckpointConfig(every=4),
    }
    train(str(tmp_path / 'whole'), **settings | changed)
    shutil.copytree(tmp_path / 'whole', tmp_path / 'parts')
    for step in (8, 12):
        shutil.rmtree(tmp_path / 'parts' / 'checkpoints' / str(step))
    train(str(tmp_path / 'parts'), **settings | changed | {'mesh': MeshConfig(data=8)})
    np.testing.assert_allclose(losses(tmp_path / 'parts'), losses(tmp_path / 'whole'), rtol=2e-5)


def test_loss_falls_and_evaluation_picks_the_best(tmp_path, settings):
    changed = {
        'evaluation': EvaluationConfig(every=10, batches=1),
        'checkpoints': CheckpointConfig(every=10, keep=1, best_metric='eval/loss'),
    }
    train(str(tmp_path), **settings | changed)
    assert losses(tmp_path)[-1] < 0.8 * losses(tmp_path)[0]
    evaluated = {row['step']: row['eval/loss'] for row in read_metrics(tmp_path) if 'eval/loss' in row}
    best = min(evaluated, key=evaluated.get)
    assert set(checkpoints_lib.saved_steps(tmp_path)) == {best, 40}


def evaluations(monkeypatch, losses):
    """Replaces the measurements: `losses` are those of step 1, 2, ...; an exception is raised."""
    steps = []

    def evaluate(_, trainer, state):
        steps.append(int(state.step))
        loss = losses[int(state.step) - 1]
        if isinstance(loss, Exception):
            raise loss
        return {'eval/loss': loss, 'eval/accuracy': 0.0}

    monkeypatch.setattr(trainer_lib.Evaluator, 'evaluate', evaluate)
    return steps


EVERY_STEP = {
    'evaluation': EvaluationConfig(every=1),
    'checkpoints': CheckpointConfig(every=1, keep=1, best_metric='eval/loss'),
    'run': RunConfig(steps=4, log_every=1),
}


def test_a_failed_evaluation_loses_no_step_and_is_done_again(tmp_path, settings, monkeypatch):
    evaluations(monkeypatch, [3.0, UserError('broken'), 1.0, 2.0])
    with pytest.raises(UserError, match='broken'):
        train(str(tmp_path), **settings | EVERY_STEP)
    assert checkpoints_lib.saved_steps(tmp_path) == [1, 2]
    steps = evaluations(monkeypatch, [None, 1.5, 1.0, 2.0])
    train(str(tmp_path), **settings | EVERY_STEP)
    assert steps == [2, 3, 4] and checkpoints_lib.saved_steps(tmp_path) == [3, 4]
    assert [row['eval/loss'] for row in read_metrics(tmp_path) if 'eval/loss' in row] == [3.0, 1.5, 1.0, 2.0]


def test_patience_ends_a_run_and_keeps_the_best(tmp_path, settings, monkeypatch, capsys):
    changed = EVERY_STEP | {'run': RunConfig(steps=9, log_every=1)}
    changed['checkpoints'] = CheckpointConfig(every=4, keep=1, best_metric='loss', patience=2)
    changed['evaluation'] = EvaluationConfig(every=2)
    steps = evaluations(monkeypatch, [None, 3.0, None, 1.0, None, 2.0, None, 1.0, None])
    state = train(str(tmp_path), **settings | changed)
    assert steps == [2, 4, 6, 8] and int(state.step) == 8
    assert checkpoints_lib.saved_steps(tmp_path) == [4, 8]
    assert 'stopped at step 8: no better eval/loss since step 4 (patience 2)' in capsys.readouterr().err
    again = train(str(tmp_path), **settings | changed)
    assert int(again.step) == 8 and steps == [2, 4, 6, 8], 'it is not evaluated again'


@pytest.mark.slow
def test_the_best_checkpoint_survives_a_resume_between_evaluations(tmp_path, settings, monkeypatch):
    changed = EVERY_STEP | {'evaluation': EvaluationConfig(every=2), 'run': RunConfig(steps=3)}
    evaluations(monkeypatch, [None, 1.0, 2.0, 3.0, None, 3.0])
    train(str(tmp_path), **settings | changed)
    assert checkpoints_lib.saved_steps(tmp_path) == [2, 3]
    train(str(tmp_path), **settings | changed | {'run': RunConfig(steps=6)})
    assert checkpoints_lib.saved_steps(tmp_path) == [2, 6]


@pytest.mark.parametrize(
    'change, pattern',
    [
        (
            {'checkpoints': CheckpointConfig(best_metric='eval/los')},
            "'eval/los' is not measured; .* did you mean eval/loss",
        ),
        ({'checkpoints': CheckpointConfig(best_metric='exact_match')}, 'exact_match, need EvaluationConfig.generate'),
        (
            {'evaluation': EvaluationConfig(every=2, split='valid')},
            "split='valid': .* train, validation; did you mean validation",
        ),
        ({'evaluation': EvaluationConfig(every=2, generate=4)}, 'needs train'),
        (
            {'evaluation': EvaluationConfig(), 'checkpoints': CheckpointConfig(best_metric='eval/loss')},
            'EvaluationConfig.every=0',
        ),
    ],
)
def test_what_evaluation_lacks_is_reported_before_the_first_step(tmp_path, settings, change, pattern):
    with pytest.raises(UserError, match=pattern) as error:
        train(str(tmp_path), **settings | {'evaluation': EvaluationConfig(every=2)} | change)
    assert '\n' not in str(error.value) and not list(tmp_path.iterdir())


def test_a_bad_row_of_the_validation_file_is_reported_before_the_first_step(tmp_path, settings):
    bad = tmp_path / 'bad.jsonl'
    bad.write_text('{"inputs": "a", "targets": "b"}\n{"inputs": "a", "targets": 3.8}\n')
    name = 'trainer_test_bad_validation'
    file_tasks = (FileTask(name=name, train=settings['data'].file_tasks[0].train, validation=str(bad)),)
    data = dataclasses.replace(settings['data'], mixture=name, file_tasks=file_tasks)
    tasks.register_all(data)
    with pytest.raises(UserError, match=r"bad.jsonl line 2: field 'targets' is float \(3.8\), it must be text"):
        train(str(tmp_path / 'run'), **settings | {'data': data, 'evaluation': EvaluationConfig(every=2)})
    assert not (tmp_path / 'run').exists()


@pytest.mark.slow
def test_epochs_and_generated_metrics(tmp_path, settings, capsys):
    """Two epochs of 395 rows, measured by the text that the model writes."""
    changed = {
        'data': dataclasses.replace(settings['data'], pack=False, batch_size=64),
        'run': RunConfig(steps=1, epochs=2, log_every=1),
        'evaluation': EvaluationConfig(every=5, batches=1, generate=3),
        'checkpoints': CheckpointConfig(every=5, best_metric='exact_match'),
        'mesh': MeshConfig(),
    }
    state = train(str(tmp_path), **settings | changed, generated=GeneratedMetrics)
    records = len(find_mixture('reverse_trainer_test').source.records('train'))
    assert int(state.step) == -(-2 * records // 64)
    assert f'2 epochs of {records} records: {int(state.step)} steps' in capsys.readouterr().err
    measured = [row for row in read_metrics(tmp_path) if 'eval/exact_match' in row]
    assert [row['step'] for row in measured] == [5, 10, 13] and all(row['eval/exact_match'] == 0 for row in measured)


def test_another_batch_size_continues_after_the_same_examples(tmp_path, settings, six_steps, capsys):
    workdir = shutil.copytree(six_steps[0], tmp_path / 'run')
    before = checkpoints_lib.read_meta(workdir, 6)['position']['streams']
    data = dataclasses.replace(settings['data'], batch_size=16)
    gin = 'RunConfig.seed = 0\nDataConfig.batch_size = %BATCH_SIZE\nBATCH_SIZE = 8\n'
    (workdir / 'config.gin').write_text(gin)
    changed = {'data': data, 'run': RunConfig(steps=7, log_every=1), 'gin': gin.replace('= 8', '= 16')}
    train(str(workdir), **settings | changed)
    after = checkpoints_lib.read_meta(workdir, 7)['position']['streams']
    assert before.keys() == after.keys() and losses(workdir)[:6] == losses(six_steps[0])
    read = lambda streams: sum(cursor[0] for stream in streams.values() for cursor in stream['tasks'].values())
    assert read(after) - read(before) > read(before) / 6
    log = capsys.readouterr().err
    assert 'changed since the last start: DataConfig.batch_size was 8, is 16' in log and 'RunConfig.seed was' not in log
    train(str(workdir), **settings | changed)
    assert f'{workdir} is complete: step 7 of 7. Set RunConfig.steps to go on.' in capsys.readouterr().err


@pytest.mark.parametrize('items, step', [('parameters', 0), ('all', 6)])
def test_initializing_takes_the_parameters_or_the_whole_state(
    tmp_path, settings, six_steps, kinds_of_step, items, step
):
    source, first = six_steps
    changed = {
        'checkpoints': CheckpointConfig(every=100, initialize_from=str(source), initialize=items),
        'optimizer': OptimizerConfig(learning_rate=0.0),
        'run': RunConfig(steps=step + 1, log_every=1),
    }
    state = train(str(tmp_path), **settings | changed)
    assert kinds_of_step == [True]
    assert_same_bits(state.model, first.model)
    assert [row['step'] for row in read_metrics(tmp_path)] == [step + 1]


def test_nan_stops_with_step_loss_and_last_good_checkpoint(tmp_path, settings, six_steps):
    workdir = shutil.copytree(six_steps[0], tmp_path / 'run')
    with pytest.raises(UserError, match=r'loss is (nan|inf).* at step \d+; the last good checkpoint is step 6 in '):
        train(str(workdir), **settings | {'optimizer': OptimizerConfig(learning_rate=1e30)})
    assert checkpoints_lib.saved_steps(workdir) == [5, 6]


@pytest.mark.parametrize(
    'change, setting',
    [
        ({'model': dataclasses.replace(MODEL, mlp_dim=64)}, r'ModelConfig\.mlp_dim=32.*given is 64'),
        ({'seed': 3}, r'DataConfig\.seed=0.*given is 3'),
        ({'mixed_in': {'practice': 0.1}}, r'DataConfig\.mixed_in=\{\}.*given is \{.practice.: 0\.1\}'),
        ({'stages': (Stage('practice', 2),)}, r'DataConfig\.stages=\[\], given is'),
        ({'instructions': InstructionConfig(few_shot=0)}, r'DataConfig\.instructions\.few_shot=0\.5.*given is 0'),
    ],
)
def test_the_workdir_of_another_run_is_refused(settings, six_steps, change, setting):
    workdir, _ = six_steps
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob('*')}
    given = change if 'model' in change else {'data': dataclasses.replace(settings['data'], **change)}
    with pytest.raises(UserError, match=setting):
        train(str(workdir), **settings | given)
    assert {path: path.stat().st_mtime_ns for path in workdir.rglob('*')} == before


def test_a_run_saved_under_old_setting_names_resumes_with_the_same_bits(tmp_path, settings):
    """t5flan.json as written before 0.2: `blends`, and stages with `begins` and `former`."""
    task = settings['data'].mixture
    mixtures = (Mixture('old_names', by_examples=(task,)),)
    changed = {'mixture': 'old_names', 'mixtures': mixtures, 'stages': (Stage(task, start_step=3, previous=0.5),)}
    changed = {'data': dataclasses.replace(settings['data'], **changed), 'run': SIX_STEPS}
    tasks.register_all(changed['data'])
    whole = train(str(tmp_path / 'whole'), **settings | changed)
    workdir = shutil.copytree(tmp_path / 'whole', tmp_path / 'parts')
    shutil.rmtree(workdir / 'checkpoints' / '6')
    path = workdir / 't5flan.json'
    old = json.loads(path.read_text())
    [mixture] = old['data'].pop('mixtures')
    mixture |= {'shares': mixture.pop('rates'), 'without': mixture.pop('exclude')}
    old['data']['blends'] = [mixture]
    old['data']['stages'] = [{'mixture': task, 'begins': 3, 'former': 0.5}]
    path.write_text(json.dumps(old))
    parts = train(str(workdir), **settings | changed)
    assert losses(workdir) == losses(tmp_path / 'whole')
    assert_same_bits(whole, parts)
    assert json.loads(path.read_text())['data']['stages'] == [{'mixture': task, 'start_step': 3, 'previous': 0.5}]
    old['data']['stages'][0]['begins'] = 4
    path.write_text(json.dumps(old))
    with pytest.raises(UserError, match=r"DataConfig\.stages=.*'start_step': 4.*given is .*'start_step': 3"):
        train(str(workdir), **settings | changed)


def test_a_vocabulary_larger_than_the_model_is_refused(tmp_path, settings):
    with pytest.raises(UserError, match=r'ModelConfig\.vocab_size=128'):
        train(str(tmp_path), **settings | {'model': dataclasses.replace(MODEL, vocab_size=128)})


def test_a_batch_that_does_not_divide_over_the_mesh_is_refused(tmp_path, settings):
    with pytest.raises(UserError, match=r'DataConfig\.batch_size=6'):
        train(str(tmp_path), **settings | {'data': dataclasses.replace(settings['data'], batch_size=6)})


def test_a_length_that_does_not_divide_over_the_mesh_is_refused_before_anything_is_written(tmp_path, settings):
    data = dataclasses.replace(settings['data'], feature_lengths={'inputs': 40, 'targets': 42})
    with pytest.raises(
        UserError, match=r'DataConfig\.feature_lengths=82 .* context=8\..* or change MeshConfig\.context'
    ) as error:
        train(str(tmp_path), **settings | {'mesh': MeshConfig(data=1, context=8), 'data': data})
    assert '\n' not in str(error.value) and not list(tmp_path.iterdir())


def test_every_task_is_evaluated_separately_and_opened_once(tmp_path, settings, monkeypatch):
    mixture = settings['data'].mixture
    evaluation = EvaluationConfig(every=2, batches=1, tasks=(mixture,))
    opened, open_task = [], stages._open
    monkeypatch.setattr(stages, '_open', lambda task, *rest: opened.append(task.name) or open_task(task, *rest))
    train(str(tmp_path), **settings | {'run': RunConfig(steps=4), 'evaluation': evaluation})
    assert opened == [mixture, mixture], 'once for training, once for the evaluation split'
    measured = next(row for row in read_metrics(tmp_path) if 'eval/loss' in row)
    names = [task.name for task in getattr(find_mixture(mixture), 'tasks', None) or [find_mixture(mixture)]]
    assert {name for name in measured if name.startswith('eval/loss/')} == {f'eval/loss/{name}' for name in names}
    if len(names) == 1:
        assert measured['eval/loss'] == measured[f'eval/loss/{names[0]}']
    with pytest.raises(UserError, match="no task or mixture 'nothing'.*Set EvaluationConfig.tasks"):
        train(str(tmp_path / 'other'), **settings | {'evaluation': EvaluationConfig(every=2, tasks=('nothing',))})


# -- Killed from outside ----------------------------------------------------------------------------------------------


def start(workdir, settings):
    """The same run as a process of its own."""
    bindings = [
        f'{type(config).__name__}.{field.name}={value!r}'
        for config in settings.values()
        for field in dataclasses.fields(config)
        if isinstance(value := getattr(config, field.name), (int, float, str, dict)) and value != field.default
    ]
    [file_task] = settings['data'].file_tasks
    bindings += [
        f'FileTask.name={file_task.name!r}',
        f'FileTask.train={file_task.train!r}',
        'DataConfig.file_tasks=[@FileTask()]',
    ]
    command = [sys.executable, '-m', 't5flan', 'train', f'--workdir={workdir}']
    return subprocess.Popen(
        command + [f'--gin.{binding}' for binding in bindings],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(process, happened, seconds=120):
    """Until `happened()`; fails if the process ends first."""
    for _ in range(int(seconds / 0.005)):
        if happened():
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.005)
    process.kill()
    raise AssertionError(f'nothing happened within {seconds} s')


def mid_step(workdir):
    return lambda: len(read_metrics(workdir)) >= 8


def mid_save(workdir):
    return lambda: any('tmp' in path.name for path in (workdir / 'checkpoints').glob('5*'))


@pytest.mark.slow  # in the quick tests, one is stopped by SIGTERM, and another resumes with the same bits
@pytest.mark.parametrize('moment', [mid_step, mid_save])
def test_a_killed_run_resumes_bit_for_bit(tmp_path, settings, unbroken, moment):
    process = start(tmp_path, settings)
    wait_for(process, moment(tmp_path))
    process.kill()
    process.wait()
    state = train(str(tmp_path), **settings)
    assert losses(tmp_path) == unbroken[0]
    assert_same_bits(state, unbroken[1])


def test_sigterm_saves_and_reports_it(tmp_path, settings, unbroken):
    process = start(tmp_path, settings)
    wait_for(process, mid_step(tmp_path))
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=120)
    assert process.returncode == 1
    assert 'stopped by SIGTERM at step' in log.splitlines()[-1], log
    step = checkpoints_lib.latest_step(tmp_path)
    assert step is not None and losses(tmp_path) == unbroken[0][:step]


def resumed_to(workdir, start_time, step):
    """Whether the run in `workdir` has written metrics since `start_time`, up to `step` or beyond."""
    path = workdir / 'metrics.jsonl'
    return lambda: path.exists() and path.stat().st_mtime > start_time and len(read_metrics(workdir)) >= step


@pytest.mark.slow
def test_a_run_killed_again_and_again_resumes_bit_for_bit(tmp_path, settings, unbroken):
    """Eight kills, each a random number of steps and milliseconds after the run has resumed."""
    rng = random.Random(0)
    for _ in range(8):
        step = min((checkpoints_lib.latest_step(tmp_path) or 0) + rng.randint(1, 9), 39)
        start_time, process = time.time(), start(tmp_path, settings)
        wait_for(process, resumed_to(tmp_path, start_time, step))
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.wait()
    _, log = start(tmp_path, settings).communicate(timeout=300)
    assert losses(tmp_path) == unbroken[0], log


@pytest.mark.slow
@pytest.mark.parametrize('tied, rows', [(True, 384), (False, 392)])
def test_added_tokens_start_as_the_mean_and_change_no_old_logit(settings, tmp_path, tied, rows):
    source = tmp_path / 'old'
    model = dataclasses.replace(MODEL, tie_embeddings=tied)
    still = settings | {'optimizer': OptimizerConfig(learning_rate=0.0), 'run': RunConfig(steps=1), 'model': model}
    train(str(source), **still)
    data = dataclasses.replace(settings['data'], added_tokens=('<a>', '<b>'))
    checkpoints = CheckpointConfig(initialize_from=str(source))
    given = still | {'model': dataclasses.replace(model, vocab_size=rows), 'data': data, 'checkpoints': checkpoints}
    train(str(tmp_path / 'new'), **given)
    old, new = load(source), load(tmp_path / 'new')
    size = old.vocabulary.vocab_size
    assert new.vocabulary.encode('<b>') == [size + 1] and load_vocabulary(tmp_path / 'new' / 'vocabulary').added_tokens
    before, after = named_parameters(old.model), named_parameters(new.model)
    changed = [name for name, axes in named_axes(old.model).items() if 'vocab' in axes]
    assert len(changed) == (1 if tied else 2)
    for name in changed:
        axis = named_axes(old.model)[name].index('vocab')
        x, y = (np.moveaxis(np.asarray(parameters[name]), axis, 0) for parameters in (before, after))
        np.testing.assert_array_equal(y[:size], x[:size])
        np.testing.assert_array_equal(y[size + 2 : 384], x[size + 2 :], 'padding rows of the old model stay')
        for row in (*y[size : size + 2], *y[384:]):
            np.testing.assert_allclose(row, x.mean(0), rtol=1e-4, atol=1e-7)
    batch = {'decoder_input_tokens': np.array([[0, *old.vocabulary.encode('ant bee')]])}
    np.testing.assert_allclose(new.logits(batch)[..., :size], old.logits(batch)[..., :size], rtol=1e-5, atol=1e-6)
    for wrong, problem in (
        ({'checkpoints': dataclasses.replace(checkpoints, initialize='all')}, "initialize='all', but 2 tokens are new"),
        ({'data': dataclasses.replace(data, extra_ids=7)}, 'was trained with another vocabulary'),
        (
            {'model': dataclasses.replace(model, vocab_size=260)},
            'ModelConfig.vocab_size=260, but the vocabulary has 261',
        ),
    ):
        with pytest.raises(UserError, match=problem):
            train(str(tmp_path / 'wrong'), **given | wrong)
