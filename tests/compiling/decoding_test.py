"""Generation compiled from shapes: the shapes and programs of `decoding.generate`, and a report that adds up."""

import json

import pytest

from t5flan import sharding
from t5flan.__main__ import main
from t5flan.compiling.decoding import Prompts, describe_decoding, prompts_of
from t5flan.compiling.targets import find_target
from t5flan.compiling.terminal import print_report
from t5flan.decoding import generate as generating
from t5flan.decoding.config import Decoding
from t5flan.errors import UserError
from tests.compiling.step_test import BINDINGS, settings_of
from tests.models.small_models import small_model

MESH = ('MeshConfig.data=1', 'MeshConfig.fsdp=2', 'MeshConfig.tensor=2')
ENCODER_DECODER = (
    "ModelConfig.architecture='encoder_decoder'",
    'ModelConfig.num_encoder_layers=2',
    "DataConfig.format='encoder_decoder'",
    "DataConfig.feature_lengths={'inputs': 40, 'targets': 20}",
)


@pytest.mark.parametrize('changes', [(), ENCODER_DECODER], ids=['decoder', 'encoder-decoder'])
def test_the_report_has_both_programs(changes, capsys):
    report = describe_decoding(settings_of(*MESH, *changes), Decoding(batch_size=6), find_target('cpu:4'))
    read = report['prompts']
    assert (read['phase'], report['phase']) == ('prompts', 'tokens') and read['fits'] and report['fits']
    assert report['rows'] == 6 and report['length'] == (64 if changes else 32) and report['new_tokens'] == 32
    assert 0 < report['cache_bytes'] < report['argument_bytes'] and 'optimizer_bytes' not in report
    for one in (read, report):
        assert 0.9 <= one['executed_over_model_flops'] < 3.0, one['phase']
        assert 'tensor' in {axes for found in one['collective_bytes'].values() for axes in found}
    assert report['executed_flops'] < read['executed_flops']
    print_report(report)
    printed = capsys.readouterr().out
    assert 'reading the prompts' in printed and 'one more token in each row' in printed and 'keys and values' in printed


def test_the_shapes_are_those_of_generation(monkeypatch):
    found = {}
    begin = generating.sampled.begin

    def recorded(model, prompts, *given, **options):
        found.update(shape=prompts.tokens_BP.shape, **{name: options[name] for name in ('capacity', 'new_slots')})
        return begin(model, prompts, *given, **options)

    monkeypatch.setattr(generating.sampled, 'begin', recorded)
    decoding = Decoding(batch_size=6, max_new_tokens=5)
    generating.generate(small_model('palm'), [[5] * 20] * 6, decoding, eos_id=1)
    settings = settings_of("DataConfig.feature_lengths={'inputs': 20, 'targets': 12}")
    prompts = prompts_of(settings, decoding, sharding.create_sharding(settings['mesh'], find_target('cpu:1').devices))
    assert prompts == Prompts(*found['shape'], found['new_slots']) and found['capacity'] == prompts.new_tokens


def test_rows_are_a_multiple_of_the_parts_of_a_batch():
    settings = settings_of('MeshConfig.data=4')
    placed = sharding.create_sharding(settings['mesh'], find_target('cpu:4').devices)
    assert prompts_of(settings, Decoding(batch_size=9), placed).rows == 12


def test_beams_are_one_line():
    with pytest.raises(UserError, match='num_beams=4, but `t5flan compile` compiles greedy decoding and samples'):
        describe_decoding(settings_of(), Decoding(num_beams=4), find_target('cpu:8'))


@pytest.mark.parametrize(
    'given, said',
    [
        (['--fit'], '--fit searches the settings of a training step'),
        (['--gin.MeshConfig.tensor=8'], 'ModelConfig.num_heads=4 does not divide'),
        (['--gin.Decoding.batch_size=0'], 'batch_size=0, expected'),
    ],
)
def test_what_is_wrong_is_one_line(given, said, capsys):
    argv = ['compile', '--topology=cpu:8', '--decode', *(f'--gin.{one}' for one in BINDINGS), *given]
    assert main(argv) in (1, 2)
    printed = capsys.readouterr().err
    assert said in printed and len(printed.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize('changes', [(), ENCODER_DECODER], ids=['decoder', 'encoder-decoder'])
def test_generation_is_compiled_for_a_tpu(changes, tmp_path):
    pytest.importorskip('libtpu', reason='the compiler comes with t5flan[compile]')
    path = tmp_path / 'report.json'
    gin = [f'--gin.{one}' for one in (*BINDINGS, *changes, 'MeshConfig.tensor=2')]
    assert (
        main(['compile', '--topology=v5e:2x2', '--decode', '--gin.Decoding.temperature=0.7', *gin, f'--json={path}'])
        == 0
    )
    report = json.loads(path.read_text())
    assert report['fits'] and report['bound'] and report['tokens_per_second_at_most'] > 0
