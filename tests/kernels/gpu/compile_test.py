"""The GPU kernels through the real compiler (JAX's CUDA plugin), for H100 and A100 and without a GPU: they compile."""

import functools

import pytest

from t5flan.compiling import targets
from t5flan.mesh import MeshConfig
from tests.kernels.compile_cases import EVERYTHING, GEMMA_ATTENTIONS, GEMMAS, compile_attention, compile_model

pytestmark = pytest.mark.slow

CHIPS = ('h100', 'a100')
GIB = 2**30


@functools.lru_cache
def devices(chip):
    """Two GPUs of a machine, to compile for."""
    reason = 'the compiler comes with jax-cuda12-plugin and jax-cuda12-pjrt'
    pytest.importorskip('jax_plugins.xla_cuda12', reason=reason)
    return targets.gpu_devices(targets.GPUS[chip], 2)


def compile_for(chip, length, reach=128, **options):
    """The memory of output and gradients of one row on each GPU."""
    compiled = compile_attention(devices(chip), length, reach=reach, **options)
    assert compiled.as_text().count('__gpu$xla.gpu.triton') == (4 if reach else 3)  # attend chose the kernels
    return compiled.memory_analysis()


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16', 'float32'])
@pytest.mark.parametrize('head_dim', [16, 64, 128, 256])
@pytest.mark.parametrize('chip', CHIPS)
def test_forward_and_backward_compile(chip, head_dim, dtype):
    compile_for(chip, 2048, head_dim=head_dim, dtype=dtype)
    compile_for(chip, 2000, head_dim=head_dim, dtype=dtype, kv_heads=2, **EVERYTHING)


@pytest.mark.parametrize('chip', CHIPS)
def test_other_options_compile(chip):
    compile_for(chip, 650, kv_heads=1, head_dim=40, dtype='float32', precision='highest', **EVERYTHING)
    compile_for(chip, 4096, head_dim=128, kv_heads=1, reach=None, ids=False, causal=True)
    compile_for(chip, 1024, reach=None)
    compile_for(chip, 1024, ids=False)
    compile_for(chip, 2048, reach=5000)
    compile_for(chip, 2000, kv_heads=2, **EVERYTHING, window=700)
    compile_for(chip, 2000, kv_heads=2, **EVERYTHING, window=700, far_prefix=True)
    compile_for(chip, 2000, kv_heads=2, causal=False, window=(511, 512))
    compile_for(chip, 2000, head_dim=256, kv_heads=1, reach=None, ids=False, causal=True, soft_cap=50.0, window=512)


def test_long_inputs_of_t5_xxl_take_linear_memory():
    """Whole arrays need 288 GiB of temporaries at 16,384 tokens (`benchmarks/attention.py --topologies h100`)."""
    assert compile_for('h100', 16384, heads=64).temp_size_in_bytes < 0.1 * GIB
    assert compile_for('h100', 65536, heads=64).peak_memory_in_bytes < 8 * GIB


def test_a_whole_model_split_over_rows_and_heads_compiles():
    fields = dict(architecture='encoder_decoder', num_heads=4, num_encoder_layers=2)
    compiled = compile_model(devices('h100'), MeshConfig(tensor=2), **fields)
    kernels = 3 * 3 + 2  # three for encoder, decoder and cross-attention, and one more if there is a bias
    assert compiled.as_text().count('__gpu$xla.gpu.triton') == kernels


@pytest.mark.parametrize('merged', GEMMA_ATTENTIONS, ids=['cross', 'merged'])
@pytest.mark.parametrize('chip', CHIPS)
def test_the_options_of_adapted_encoder_decoders_compile(chip, merged):
    compiled = compile_model(devices(chip), MeshConfig(tensor=2), source=1536, merged_attention=merged, **GEMMAS)
    assert compiled.as_text().count('__gpu$xla.gpu.triton') == 3 * GEMMA_ATTENTIONS[merged]
