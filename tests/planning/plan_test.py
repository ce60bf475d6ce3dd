"""t5flan/planning/plan.py and `t5flan plan`: budgets, targets, mistakes, and runs that are read back."""

import json

import pytest

from t5flan import configurables
from t5flan.__main__ import main
from t5flan.mesh import MeshConfig
from t5flan.models.config import ModelConfig
from t5flan.planning.chips import find_chip
from t5flan.planning.cost import batch_of, count_parameters, flops_per_token
from t5flan.planning.laws import LAWS
from t5flan.planning.plan import Goal, Machine, Shape, choose_shapes, make_plan
from t5flan.planning.runs import read_run, read_runs
from t5flan.training.checkpoints.folder import Description
from t5flan.training.config import OptimizerConfig


def shape(name: str) -> Shape:
    config = configurables.parse([f'models/{name}']).read(ModelConfig)
    return Shape(name, config, batch_of(config, 128, {'inputs': 512, 'targets': 512}))


SHAPES = [shape(name) for name in ('t5_1_1_small', 't5_1_1_base', 't5_1_1_large', 'llama2_7b')]
MACHINE = Machine(find_chip('v5e'), 16, 0.5, price=2.0)


def plan(goal: Goal, **changes) -> dict:
    given = {'machine': MACHINE, 'optimizer': OptimizerConfig(), 'mesh': MeshConfig(1, -1), 'finetune_tokens': 1e9}
    return make_plan(goal, LAWS, 'chinchilla1', SHAPES, **given | changes)


def test_a_budget_is_spent_whatever_the_model():
    hours = 10.0
    found = plan(Goal(flops=MACHINE.flops_per_hour * hours), all_shapes=True)
    assert len(found['models']) == 4
    for row in found['models']:
        one = next(one for one in SHAPES if one.name == row['model'])
        assert row['hours'] == pytest.approx(hours) and row['chip_hours'] == pytest.approx(160)
        assert row['price'] == pytest.approx(320)
        assert row['tokens'] * flops_per_token(one.config, one.batch) == pytest.approx(MACHINE.flops_per_hour * hours)
        assert (row['steps'] - 1) * row['tokens_per_step'] < row['tokens'] <= row['steps'] * row['tokens_per_step']
        finetuning = row['finetuning']
        assert finetuning['chip_hours'] / row['chip_hours'] == pytest.approx(1e9 / row['tokens'])
    json.dumps(found)


def test_a_target_of_size_takes_the_tokens_of_the_law():
    found = plan(Goal(parameters=1e9))
    assert found['laws'][0]['tokens'] == pytest.approx(20.2e9, rel=0.02)  # table 3
    nearest = next(row for row in found['models'] if row['nearest'])
    assert nearest['model'] == 't5_1_1_large'
    assert nearest['tokens'] == pytest.approx(LAWS['chinchilla1'].tokens(nearest['parameters']))


def test_a_target_of_both_shows_the_optimum_for_the_same_flops():
    row = plan(Goal(parameters=1e9, tokens=2e12), machine=None)['laws'][0]
    assert row['optimal_parameters'] > 5e9
    assert 6 * row['optimal_parameters'] * row['optimal_tokens'] == pytest.approx(row['flops'])


def test_models_near_an_optimum_are_chosen_else_the_nearest():
    assert [one.name for one in choose_shapes(SHAPES, [5e8])] == ['t5_1_1_base', 't5_1_1_large']
    assert [one.name for one in choose_shapes(SHAPES, [1e13])] == ['llama2_7b']


def test_a_model_that_does_not_fit_is_marked():
    found = plan(Goal(parameters=7e9), machine=Machine(find_chip('v5e'), 1, 0.4))
    row = next(row for row in found['models'] if row['model'] == 'llama2_7b')
    assert not row['fits'] and row['memory_gib_per_device']['parameters'] == pytest.approx(25.1, rel=0.01)
    odd = plan(Goal(parameters=7e9), machine=Machine(find_chip('v5e'), 6, 0.4))['models'][-1]
    assert not odd['fits'] and 'batch_size=128 does not divide' in odd['problem']


def test_a_chip_of_two_devices():
    chip = find_chip('tpu7x')
    assert chip.peak_tflops == 2307.0 and Machine(chip, 4, 0.5).devices == 8
    assert find_chip('mine', 100.0, 24.0).peak_tflops == 100.0


@pytest.mark.parametrize(
    ('argv', 'message'),
    [
        ([], 'set a budget'),
        (['--hours=3'], '--hours needs --chip'),
        (['--chip=v5e', '--hours=3', '--tokens=1B'], '--hours is a budget, --tokens a target'),
        (['--chip=v5', '--hours=3'], '--chip=v5, expected one of'),
        (['--chip=v5e', '--hours=3', '--chips=0'], '--chips=0'),
        (['--chip=v5e', '--hours=3', '--mfu=40'], '--mfu=40, expected a number above 0 and at most 1'),
        (['--parameters=0'], 'is not a number above 0'),
        (['--parameters=3X'], 'is not a number above 0'),
        (['--parameters=1B', '--law=chinchila1'], 'did you mean chinchilla1'),
        (['--parameters=1B', '--models=t5_1_1_smal'], 'did you mean t5_1_1_small'),
        (['--parameters=1B', '--models=x', '--gin_file=models/t5_1_1_small'], 'Remove one of them'),
        (['--parameters=1B', '--plot=plan.doc'], 'expected a file that ends in .png'),
        (['--parameters=1B', '--price=2'], '--price needs --chip'),
        (['--fit=/nowhere/*'], 'matches no folder'),
        (['--fit=x', '--tokens=1B'], '--tokens is not of --fit'),
        (['--fit=x', '--resamples=1'], '--resamples=1, expected 20 or more'),
    ],
)
def test_mistakes_are_one_line(argv, message, capsys):
    assert main(['plan', *argv]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


def test_the_command_prints_and_writes(tmp_path, capsys):
    argv = ['plan', '--chip=v5e', '--chips=16', '--hours=10', '--models=t5_1_1_[sb]*', '--price=1.2']
    assert main([*argv, f'--json={tmp_path}/plan.json', f'--plot={tmp_path}/plan.svg']) == 0
    printed = capsys.readouterr().out
    assert 't5_1_1_base' in printed and 'chinchilla3' in printed
    found = json.loads((tmp_path / 'plan.json').read_text())
    assert [row['model'] for row in found['models']] == ['t5_1_1_small', 't5_1_1_base']
    assert 'palm2' in (tmp_path / 'plan.svg').read_text()


def test_the_memory_of_a_plan_counts_the_teacher(tmp_path, capsys):
    teacher = configurables.parse(['models/t5_1_1_base']).read(ModelConfig)
    Description(teacher, 'encoder_decoder', {}, {}).write(tmp_path)
    argv = ['plan', '--chip=v5e', '--chips=8', '--hours=10', '--models=t5_1_1_small', f'--json={tmp_path}/plan.json']
    assert main([*argv, f'--gin.LossConfig.teacher={tmp_path}']) == 0
    [row] = json.loads((tmp_path / 'plan.json').read_text())['models']
    assert row['memory_gib_per_device']['teacher'] == pytest.approx(4 * count_parameters(teacher) / 8 / 2**30, rel=0.01)
    assert main([*argv, '--gin.LossConfig.teacher=/none']) == 1
    assert '/none' in capsys.readouterr().err


# -- Runs -----------------------------------------------------------------------------------------------------------


def write_run(folder, *, steps: int = 100, planned: int = 100, last: dict | None = None, finished: bool = True):
    config = configurables.parse(['models/tiny_decoder']).read(ModelConfig)
    folder.mkdir()
    data = {'batch_size': 4}
    description = {'model': config.to_dict(), 'format': 'causal_lm', 'feature_lengths': {'targets': 64}, 'data': data}
    (folder / 't5flan.json').write_text(json.dumps(description | {'vocabulary': {}}))
    (folder / 'config.gin').write_text(f'RunConfig.steps = {planned}\n')
    rows = [{'step': step, 'loss': 5 - step / 100} for step in range(10, steps + 1, 10)]
    rows += [{'step': steps, **(last or {})}]
    (folder / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    if finished:
        (folder / 'data.json').write_text(json.dumps({'packing_efficiency': 0.5}))
    return folder


def test_a_finished_run_is_a_point(tmp_path):
    point = read_run(str(write_run(tmp_path / 'a', last={'eval/loss': 3.25})))
    assert (point.parameters, point.tokens, point.loss) == (123_200, 100 * 4 * 64 * 0.5, 3.25)
    assert point.flops > 6 * 123_200 * point.tokens
    trained = read_run(str(write_run(tmp_path / 'b')))
    assert trained.loss == pytest.approx(4.0)  # steps 91 to 100


def test_runs_that_cannot_be_used_are_named(tmp_path, capsys):
    write_run(tmp_path / 'a')
    write_run(tmp_path / 'b', steps=50)
    write_run(tmp_path / 'c', finished=False)
    (tmp_path / 'notes').mkdir()
    points, left_out = read_runs(f'{tmp_path}/*')
    assert [point.name for point in points] == [f'{tmp_path}/a']
    assert 'b is left out: it is not finished (step 50 of 100)' in left_out[0] and 'not finished' in left_out[1]
    assert main(['plan', f'--fit={tmp_path}/*']) == 1
    assert '1 finished runs, expected 8 or more' in capsys.readouterr().err
