"""`t5flan compile`: flags, and one line for what is wrong. `step_test.py` compiles."""

import json

import pytest

from t5flan.__main__ import main
from tests.compiling.step_test import BINDINGS

GIN = [f'--gin.{one}' for one in BINDINGS]


@pytest.mark.parametrize(
    'argv, said',
    [
        ([*GIN], '--topology'),
        (['--topology=cpu:8'], 'ModelConfig'),
        (['--topology=v7p:4x4', *GIN], 'did you mean'),
        (['--topology=cpu:8', '--slices=0', *GIN], '--slices=0, expected'),
        (['--topology=cpu:8', '--slices=2', *GIN], '--slices=2 is for TPUs'),
        (['--topology=cpu:8', '--fit', *GIN], '--fit ranks by the speed of a chip'),
        (['--topology=cpu:8', '--gin.MeshConfig.fsdp=5', *GIN], 'does not divide 8 devices'),
        (['--topology=cpu:8', '--gin.MeshConfig.tensor=8', *GIN], 'ModelConfig.num_heads=4 does not divide'),
        (['--topology=cpu:8', '--gin.OptimizerConfig.microbatches=3', *GIN], 'microbatches=3 does not divide'),
        (['--topology=cpu:8', '--gin.LossConfig.teacher=/none', *GIN], '/none'),
    ],
)
def test_what_is_wrong_is_one_line(argv, said, capsys):
    assert main(['compile', *argv]) in (1, 2)
    printed = capsys.readouterr().err
    assert said in printed and 'Traceback' not in printed
    assert len(printed.strip().splitlines()) == 1 or 'ModelConfig' in said  # missing settings are a list


@pytest.mark.slow
@pytest.mark.parametrize('topology, devices', [('v5e:2x2', 4), ('tpu7x:2x2x1', 8)])
def test_a_run_is_compiled_for_a_tpu(topology, devices, tmp_path, capsys):
    pytest.importorskip('libtpu', reason='the compiler comes with t5flan[compile]')
    path = tmp_path / 'report.json'
    argv = [f'--topology={topology}', f'--json={path}', '--gin.MeshConfig.tensor=2', *GIN]
    assert main(['compile', *argv]) == 0
    report = json.loads(path.read_text())
    assert report['devices'] == devices and report['fits'] and report['bound']
    assert 0 < report['mfu'] <= 1 and 1 <= report['executed_over_model_flops'] < 2
    assert 'at least, by the chip' in capsys.readouterr().out


@pytest.mark.slow
def test_of_two_slices_data_runs_over_the_network(tmp_path):
    pytest.importorskip('libtpu', reason='the compiler comes with t5flan[compile]')
    path = tmp_path / 'report.json'
    argv = ['--topology=v5e:2x2', '--slices=2', f'--json={path}', '--gin.MeshConfig.fsdp=4', *GIN]
    assert main(['compile', *argv]) == 0
    report = json.loads(path.read_text())
    assert report['across_slices'] == {'data': 2} and report['roofline_seconds']['network'] > 0
