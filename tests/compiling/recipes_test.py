"""The configurations that the project is for, through the real compilers of their chips: they compile, shard and fit.

    python -m pytest -m slow tests/compiling/recipes_test.py

takes ten minutes or more on two cores. The numbers are those of `t5flan compile` with the same settings.
"""

import json

import pytest

from t5flan.__main__ import main

XL, XXL, UL2 = 'examples/t5_1_1_xl_v5e_16', 'examples/t5_1_1_xxl_v5p_64', 'examples/ul2_20b_v5p_64'
PALM_62B, PALM_540B = 'examples/palm_62b_v5p_512', 'examples/palm_540b_v4_6144'
LONG = ("FEATURE_LENGTHS={'inputs': 32768, 'targets': 256}", 'BATCH_SIZE=8', "ModelConfig.remat='full'")
LONG += ('MeshConfig.fsdp=4', 'MeshConfig.context=4', 'MeshConfig.tensor=1')
CASES = {
    'XL on v5e': (XL, 'v5e:4x4', ()),
    'XL on v6e': (XL, 'v6e:4x4', ()),
    'XXL on v4': (XXL, 'v4:4x4x4', ()),
    'XXL on v5p': (XXL, 'v5p:4x4x4', ()),
    'UL2 20B on v5p': (UL2, 'v5p:4x4x4', ()),
    'PaLM 62B on v5p': (PALM_62B, 'v5p:8x8x8', ()),
    'XL at 32k on v5e': (XL, 'v5e:4x4', LONG),
}
WORK_OF_LONG = 2.0  # attention is most of it: see the table of docs/guides/tpu.md
MORE_PARTS = ('OptimizerConfig.microbatches=16',)
SLICES_OF_540B = (
    ('v4:12x16x16', 2, ()),
    ('v4:16x16x16', 1, ('MeshConfig.data=1', 'MeshConfig.tensor=16', 'OptimizerConfig.microbatches=8')),
    ('v4:8x16x16', 1, ('MeshConfig.data=1', 'MeshConfig.fsdp=128', 'MeshConfig.tensor=16', *MORE_PARTS)),
)
"""Slices, their number and settings: the first that the compiler takes is compiled for."""

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def compiler():
    """Skips the tests where the TPU compiler is not installed."""
    pytest.importorskip('libtpu', reason='the compiler comes with t5flan[compile]')


def compiled(tmp_path, capsys, example, topology, changes, slices=1):
    """The report of a configuration; None if there is no such slice."""
    path = tmp_path / 'report.json'
    gin = [f'--gin.{one}' for one in changes]
    code = main(
        ['compile', f'--topology={topology}', f'--slices={slices}', f'--gin_file={example}', *gin, f'--json={path}']
    )
    printed = capsys.readouterr()
    print(printed.out)  # shown with -rP
    if 'is no slice for the TPU compiler' in printed.err:
        return None
    assert code == 0, printed.err
    return json.loads(path.read_text())


def check(report, most_work=1.35):
    """Requires a step that fits, shards its parameters and does no more than it must."""
    assert report['fits'] and report['peak_bytes_per_device'] <= report['limit_bytes']
    assert 1.0 <= report['executed_over_model_flops'] < most_work and 0 < report['mfu'] <= 1
    whole = sum(one['bytes_per_device'] for one in report['parameters'].values() if not any(one['sharding']))
    assert whole < 0.05 * report['parameter_bytes']  # norms and small tables
    assert 'unknown' not in {axes for found in report['collective_bytes'].values() for axes in found}


@pytest.mark.parametrize('case', CASES)
def test_it_compiles_and_fits(case, tmp_path, capsys):
    example, topology, changes = CASES[case]
    check(compiled(tmp_path, capsys, example, topology, changes), WORK_OF_LONG if changes == LONG else 1.35)


def test_palm_540b_compiles_and_fits_on_the_largest_slices_that_the_compiler_takes(tmp_path, capsys):
    for topology, slices, changes in SLICES_OF_540B:
        report = compiled(tmp_path, capsys, PALM_540B, topology, changes, slices)
        if report is not None:
            check(report)
            return
    pytest.fail('the compiler takes none of the slices')
