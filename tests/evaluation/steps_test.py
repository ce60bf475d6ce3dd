"""The steps to evaluate: the best by the metrics of the run, all while it trains, and none that does not exist."""

import json
import shutil

import pytest

from t5flan.errors import UsageError, UserError
from t5flan.evaluation.steps import best_step, chosen_steps, each_step, load_if_there
from t5flan.training.checkpoints import saved_at
from t5flan.training.config import CheckpointConfig
from tests.saved_model import byte_model, save_folder

LOSS = CheckpointConfig(best_metric='eval/loss')
METRICS = [
    {'step': 0, 'eval/loss': 0.1},
    {'step': 2, 'eval/loss': 3.0, 'eval/exact_match': 5.0},
    {'step': 4, 'eval/loss': 2.0, 'eval/exact_match': 4.0},
    {'step': 6, 'loss': 1.0},
    {'step': 6, 'eval/loss': 2.0, 'eval/exact_match': 4.0},
]


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    return save_folder(tmp_path_factory.mktemp('steps') / 'run', byte_model(), steps=(2, 4, 6))


@pytest.fixture
def run(saved, tmp_path):
    (saved / 'metrics.jsonl').unlink(missing_ok=True)
    folder = shutil.copytree(saved, tmp_path / 'run')
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in METRICS))
    return folder


def test_the_best_step_is_saved_and_the_earliest_of_equals(run):
    assert best_step(str(run), LOSS) == 4  # the one of step 0 has no checkpoint
    assert best_step(str(run), CheckpointConfig(best_metric='exact_match')) == 2
    assert best_step(str(run), CheckpointConfig(best_metric='exact_match', best_mode='min')) == 4


def test_steps_by_name(run):
    steps = lambda which: list(chosen_steps(str(run), which, LOSS))
    assert (steps('latest'), steps('best'), steps('all'), steps('6, 2')) == ([6], [4], [2, 4, 6], [6, 2])


def test_all_has_the_steps_that_are_saved_meanwhile(run):
    found = []
    for step in chosen_steps(str(run), 'all', LOSS):
        found.append(step)
        if step == 2:
            shutil.copytree(run / 'checkpoints' / '6', run / 'checkpoints' / '8')
            shutil.rmtree(run / 'checkpoints' / '4')
    assert found == [2, 6, 8]


@pytest.mark.parametrize(
    'which, config, error, words',
    [
        ('7', LOSS, UserError, r'checkpoints has no step 7; it has 2, 4, 6. Set --steps'),
        ('newest', LOSS, UsageError, '--steps=newest, expected latest, best, all, or steps such as 6'),
        ('best', CheckpointConfig(best_metric=None), UserError, 'has no best checkpoint.*Set --steps=latest'),
        (
            'best',
            CheckpointConfig(best_metric='eval/f1'),
            UserError,
            'has eval/f1 nowhere; the checkpoints are 2, 4, 6',
        ),
    ],
)
def test_steps_that_cannot_be_chosen(run, which, config, error, words):
    with pytest.raises(error, match=words) as raised:
        chosen_steps(str(run), which, config)
    assert '\n' not in str(raised.value)


def test_folders_without_the_steps_of_a_run(run):
    with pytest.raises(UsageError, match='is one step. Remove --steps, or set --checkpoint=.*run'):
        chosen_steps(str(run / 'checkpoints' / '4'), 'all', LOSS)
    for step in (2, 4, 6):
        shutil.rmtree(run / 'checkpoints' / str(step))
    with pytest.raises(UserError, match='has no complete checkpoint yet'):
        chosen_steps(str(run), 'latest', LOSS)
    with pytest.raises(UserError, match='has eval/loss at 4 steps without a checkpoint; the checkpoints are none'):
        best_step(str(run), LOSS)


def test_a_checkpoint_that_disappears_is_skipped_and_a_broken_one_is_an_error(run, capsys, monkeypatch):
    assert load_if_there(str(run), 3) is None
    assert capsys.readouterr().err == 'step 3 was removed before it was read: skipped\n'
    assert load_if_there(str(run), 4).step == 4
    monkeypatch.setattr('t5flan.evaluation.steps._PATIENCE', 0.0)
    shutil.rmtree(run / 'checkpoints' / '4' / 'parameters')
    with pytest.raises(Exception, match='parameters'):
        load_if_there(str(run), 4)
    assert each_step(iter([1, 2]), lambda step: {'step': step} if step == 2 else None) == [{'step': 2}]
    with pytest.raises(UserError, match='every chosen checkpoint was removed'):
        each_step(iter([1]), lambda step: None)


def test_when_a_checkpoint_was_saved(run):
    times = [saved_at(run, step) for step in (2, 4, 6)]
    assert times == sorted(set(times)) and saved_at(run, 7) is None
