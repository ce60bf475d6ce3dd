"""The compiled step is the one that `train` runs; its report adds up."""

import types

import jax
import numpy as np
import pytest

from t5flan import configurables
from t5flan import sharding as sharding_lib
from t5flan.commands.compile import read_settings
from t5flan.compiling import report as report_lib
from t5flan.compiling.fitting import estimated_memory
from t5flan.compiling.report import describe_program, roofline
from t5flan.compiling.step import compile_step, compile_traced, kernel_flops, largest_allocations, memory_in_message
from t5flan.compiling.targets import Target, find_target
from t5flan.compiling.terminal import print_report
from t5flan.errors import UserError
from t5flan.mesh import MeshConfig
from t5flan.planning.chips import find_chip
from t5flan.training.checkpoints.folder import Description

BINDINGS = [
    "ModelConfig.architecture='decoder_only'",
    'ModelConfig.vocab_size=384',
    'ModelConfig.emb_dim=32',
    'ModelConfig.num_heads=4',
    'ModelConfig.head_dim=8',
    'ModelConfig.mlp_dim=64',
    'ModelConfig.num_decoder_layers=3',
    "ModelConfig.dtype='float32'",
    "DataConfig.format='causal_lm'",
    'DataConfig.batch_size=8',
    "DataConfig.feature_lengths={'targets': 32}",
]


def settings_of(*changes):
    return read_settings(configurables.parse([], [*BINDINGS, *changes]))


@pytest.fixture(scope='module')
def report():
    settings = settings_of('MeshConfig.data=1', 'MeshConfig.fsdp=2', 'MeshConfig.tensor=2')
    target = find_target('cpu:4')
    return describe_program(compile_step(settings, target.devices), target)


def test_the_report_has_memory_flops_and_traffic(report, capsys):
    assert report['mesh'] == {'data': 1, 'fsdp': 2, 'context': 1, 'tensor': 2} and report['fits']
    assert report['peak_bytes_per_device'] >= report['argument_bytes'] > report['parameter_bytes']
    assert report['allocated_bytes'] == report['peak_bytes_per_device']  # a CPU's compiler does not tell the peak
    assert report['largest_buffers'] and report['largest_buffers'][0]['bytes'] < report['allocated_bytes']
    assert report['optimizer_bytes'] > 0 and report['activation_bytes'] > 0 and report['compile_seconds'] > 0
    # Three layers in a loop: counted once, they would be below the model's FLOPs.
    assert 1.0 <= report['executed_over_model_flops'] < 2.0
    by_axes = {axes for found in report['collective_bytes'].values() for axes in found}
    assert {'fsdp', 'tensor'} <= by_axes and 'unknown' not in by_axes
    print_report(report, all_parameters=True)
    printed = capsys.readouterr().out
    assert 'fsdp=2 x tensor=2' in printed and 'fits; compiled' in printed and 'all-gather' in printed


def test_every_parameter_has_its_sharding(report):
    mlp = [one for name, one in report['parameters'].items() if 'mlp' in name and one['shape'][-2:] == [32, 64]]
    assert mlp and all(one['sharding'][-2:] == ['fsdp', 'tensor'] for one in mlp)
    for one in report['parameters'].values():
        parts = np.prod([2 if axis else 1 for axis in one['sharding']])
        assert one['bytes_per_device'] * parts == np.prod(one['shape']) * 4


@pytest.mark.parametrize(
    'changes, said',
    [
        (['MeshConfig.fsdp=3'], 'does not divide 8 devices'),
        (['MeshConfig.tensor=8'], r'num_heads=4 does not divide over the mesh axes tensor=8'),
        (['DataConfig.batch_size=6'], 'DataConfig.batch_size=6 does not divide'),
        (['MeshConfig.context=8', "DataConfig.feature_lengths={'targets': 33}"], 'feature_lengths=33 does not divide'),
    ],
)
def test_a_mesh_that_does_not_divide_is_one_line(changes, said):
    with pytest.raises(UserError, match=said) as error:
        compile_step(settings_of(*changes), jax.devices())
    assert '\n' not in str(error.value)


def test_products_in_kernels_count_for_every_tile_of_the_grid():
    from jax.experimental import pallas as pl

    def kernel(x, y, out):
        out[...] = x[...] @ y[...]

    block = lambda shape, place: pl.BlockSpec(shape, place)
    product = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((32, 8), 'float32'),
        grid=(4,),
        in_specs=[block((8, 16), lambda i: (i, 0)), block((16, 8), lambda i: (0, 0))],
        out_specs=block((8, 8), lambda i: (i, 0)),
    )
    x, y = jax.ShapeDtypeStruct((32, 16), 'float32'), jax.ShapeDtypeStruct((16, 8), 'float32')
    assert kernel_flops(jax.make_jaxpr(product)(x, y).jaxpr) == 2 * 32 * 16 * 8
    thrice = lambda x, y: jax.lax.scan(lambda carry, _: (carry + product(x, y), None), product(x, y), None, length=3)
    assert kernel_flops(jax.make_jaxpr(thrice)(x, y).jaxpr) == 4 * 2 * 32 * 16 * 8
    assert kernel_flops(jax.make_jaxpr(lambda x, y: x @ y)(x, y).jaxpr) == 0.0
    unused = lambda x, y: (product(x, y), x + 1.0)[1]
    jaxpr = jax.make_jaxpr(unused)(x, y)
    assert 'pallas_call' in str(jaxpr) and kernel_flops(jaxpr.jaxpr) == 0.0


def test_the_message_of_a_program_that_does_not_fit_is_read():
    message = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm.
    Used 22.50G of 15.75G hbm. Exceeded hbm capacity by 6.75G.
      Largest program allocations in hbm:
      1. Size: 8.00G
         Operator: op_name="jit(train_step)/while" source_file="x.py"
         Shape: bf16[24,128,512]{2,1,0:T(8,128)}
         Unpadded size: 8.00G
      ==========================
      2. Size: 512.0M
         Shape: f32[32128,1024]{1,0}
    """
    assert memory_in_message(message) == (int(22.5 * 2**30), int(15.75 * 2**30))
    first, second = largest_allocations(message)
    assert first == '8.00G: bf16[24,128,512]{2,1,0:T(8,128)}, of jit(train_step)/while'
    assert second == '512.0M: f32[32128,1024]{1,0}'
    assert memory_in_message('another error') == (None, None)


def test_a_kernel_that_needs_too_much_of_a_core_is_not_a_step_that_does_not_fit():
    """A smaller batch, which a step that does not fit recommends, would not help."""

    def compile_nothing():
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem while allocating')

    traced = types.SimpleNamespace(
        jaxpr=jax.make_jaxpr(lambda x: x)(1.0), lower=lambda: types.SimpleNamespace(compile=compile_nothing)
    )
    program = types.SimpleNamespace(sharding=sharding_lib.create_sharding(MeshConfig()))
    with pytest.raises(UserError, match='more memory of a core.*attention="chunked"') as error:
        compile_traced(traced, program, 0.0)
    assert '\n' not in str(error.value)


def test_the_peak_is_the_compilers_on_tpus_and_what_is_allocated_elsewhere():
    sizes = dict(argument=700, output=690, alias=680, temp=3700, generated_code=50)
    memory = types.SimpleNamespace(**{f'{name}_size_in_bytes': size for name, size in sizes.items()})
    memory.peak_memory_in_bytes = 3100
    target = lambda name: Target(name, None, 1, ())
    assert report_lib._peak(memory, target('v5e:4x4')) == 3100
    assert report_lib._peak(memory, target('cpu:4')) == report_lib._allocated(memory) == 700 + 10 + 3700 + 50


def test_the_roofline_is_the_largest_bound():
    chip = find_chip('v5e')
    found = roofline(chip, flops=197e12, moved=819e9 / 2, sent=200e9 / 4, sent_across=0.0, wanted=197e12 * 0.8)
    assert found['roofline_seconds'] == {'compute': 1.0, 'hbm': 0.5, 'interconnect': 0.25, 'network': 0.0}
    assert found['bound'] == 'compute' and found['mfu'] == pytest.approx(0.8)
    found = roofline(find_chip('tpu7x'), 1153.5e12, 3690e9 * 2, 0.0, 0.0, 1153.5e12)  # two devices share a chip
    assert found['roofline_seconds']['compute'] == pytest.approx(1.0) and found['bound'] == 'hbm'
    assert found['mfu'] == pytest.approx(0.5)
    assert roofline(None, 1.0, 1.0, 1.0, 1.0, 1.0)['bound'] is None


@pytest.mark.slow
def test_a_step_with_a_teacher_holds_it_and_computes_its_logits(tmp_path, report):
    sharded = ('MeshConfig.data=1', 'MeshConfig.fsdp=2', 'MeshConfig.tensor=2')
    teacher = settings_of(*sharded, 'ModelConfig.num_decoder_layers=5')['model']
    Description(teacher, 'causal_lm', {}, {'size': 384, 'fingerprint': '-'}).write(tmp_path)
    target = find_target('cpu:4')
    settings = settings_of(*sharded, f"LossConfig.teacher='{tmp_path}'")
    found = describe_program(compile_step(settings, target.devices), target)
    assert report['teacher_bytes'] is None and found['teacher_bytes'] > report['parameter_bytes']
    assert found['argument_bytes'] - report['argument_bytes'] == pytest.approx(found['teacher_bytes'], rel=0.02)
    assert found['executed_flops'] > 1.3 * report['executed_flops']
    assert estimated_memory(settings, 4).teacher == pytest.approx(found['teacher_bytes'], rel=0.02)
