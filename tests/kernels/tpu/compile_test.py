"""The TPU kernels through the real compiler (`libtpu`), for five chips and without a TPU: they compile, and fit."""

import functools
import os

import jax
import jax.numpy as jnp
import pytest

from t5flan import sharding
from t5flan.kernels.attention import RelativeBias
from t5flan.kernels.operands import AttentionSpec, Operands
from t5flan.kernels.tpu import flash as flash_tpu
from t5flan.mesh import MeshConfig
from tests.kernels.attention_cases import attention_step
from tests.kernels.compile_cases import EVERYTHING, GEMMA_ATTENTIONS, GEMMAS, compile_attention, compile_model

pytestmark = pytest.mark.slow

TOPOLOGIES = {'v4': 'v4:2x2x1', 'v5e': 'v5e:2x2', 'v5p': 'v5p:2x2x1', 'v6e': 'v6e:2x2', 'tpu7x': 'tpu7x:2x2x1'}
GIB = 2**30


@functools.lru_cache
def devices(chip):
    """One device a chip, to compile for."""
    pytest.importorskip('libtpu', reason='the compiler comes with t5flan[tpu]')
    from jax.experimental import topologies

    # There is no metadata server to ask which TPU this is, and other processes may compile too.
    os.environ |= {'TPU_SKIP_MDS_QUERY': '1', 'ALLOW_MULTIPLE_LIBTPU_LOAD': '1'}
    options = {'chip_config_name': 'megacore'} if chip == 'v4' else {}
    return topologies.get_topology_desc(platform='tpu', topology_name=TOPOLOGIES[chip], **options).devices


def compile_for(chip, length, **options):
    """The memory of output and gradients of one row on each chip."""
    compiled = compile_attention(devices(chip), length, **options)
    expected = 2 if options.get('reach', True) is None else 3  # that of the bias
    assert compiled.as_text().count('tpu_custom_call"') == expected  # attend chose the kernels
    return compiled.memory_analysis()


@pytest.mark.parametrize('length, dtype', [(512, 'bfloat16'), (4096, 'float32'), (32768, 'bfloat16')])
@pytest.mark.parametrize('head_dim', [64, 128, 256])
@pytest.mark.parametrize('chip', TOPOLOGIES)
def test_forward_and_backward_compile(chip, length, head_dim, dtype):
    memory = compile_for(chip, length, heads=4, head_dim=head_dim, dtype=dtype)
    assert memory.temp_size_in_bytes < max(32 * length * 4 * max(head_dim, 64) * jnp.dtype(dtype).itemsize, 2**26)


@pytest.mark.parametrize('chip', TOPOLOGIES)
def test_every_option_at_once_compiles(chip):
    compile_for(chip, 2000, kv_heads=2, **EVERYTHING)
    compile_for(chip, 2000, kv_heads=1, head_dim=128, **EVERYTHING)
    compile_for(chip, 2000, head_dim=32, **EVERYTHING)
    compile_for(chip, 2000, head_dim=40, dtype=jnp.float32, precision='highest', **EVERYTHING)
    compile_for(chip, 2000, head_dim=128, kv_heads=1, reach=None, ids=False, causal=True)
    compile_for(chip, 2000, kv_heads=2, **EVERYTHING, window=700)
    compile_for(chip, 2000, kv_heads=2, **EVERYTHING, window=700, far_prefix=True)
    compile_for(chip, 2000, kv_heads=2, reach=300, causal=False, window=(511, 512))
    compile_for(chip, 2000, head_dim=256, kv_heads=1, reach=None, ids=False, causal=True, soft_cap=50.0, window=512)


@pytest.mark.parametrize('chip', TOPOLOGIES)
def test_many_heads_that_read_the_same_keys_compile(chip):
    """As in PaLM: the gradients of queries of 32 heads of 256 are more than a core holds for one block."""
    compile_for(chip, 2048, heads=32, kv_heads=1, head_dim=256, reach=None, ids=False, causal=True)
    compile_for(chip, 2048, heads=32, kv_heads=2, head_dim=128, causal=True)


@pytest.mark.parametrize('chip', TOPOLOGIES)
@pytest.mark.parametrize('head_dim, dtype', [(32, 'bfloat16'), (64, 'bfloat16'), (256, 'float32')])
def test_the_widest_supported_bias_fits_in_a_cores_memory(chip, head_dim, dtype):
    q = jax.ShapeDtypeStruct((1, 1, 1, head_dim), dtype)
    operands = Operands(q, q, q, jnp.int32(0))
    takes = lambda bias: flash_tpu.unsupported_reason(AttentionSpec(bias=bias), operands) is None
    widest = max(reach for reach in range(128, 4000, 4) if takes(RelativeBias(True, 32, reach)))
    options = dict(EVERYTHING, soft_cap=9.0, scale=1.0, precision='highest')
    compile_for(chip, 2048, head_dim=head_dim, dtype=dtype, reach=widest, **options)


def test_long_inputs_of_t5_xxl_take_linear_memory():
    """Whole arrays need 385 GiB of temporaries at 16,384 tokens (the compiler's message, `benchmarks/attention.py`)."""
    assert compile_for('v5p', 16384, heads=64).temp_size_in_bytes < 385 * GIB / 100
    assert compile_for('v5e', 65536, heads=64).peak_memory_in_bytes < 16 * GIB


def test_rows_of_t5_xxl_split_along_their_length_take_a_share_of_the_memory():
    """Output and gradients of 65,536 tokens: a row on each of four chips, against one row on all four."""

    def compiled(rows):
        mesh = MeshConfig(data=rows, context=4 // rows)
        with sharding.use(sharding.create_sharding(mesh, devices('v5p'))) as placed:
            axes = ('batch', 'length', None, None)
            x = jax.ShapeDtypeStruct((rows, 65536, 64, 64), jnp.bfloat16, sharding=placed.named(axes))
            table = jax.ShapeDtypeStruct((64, 32), jnp.float32, sharding=placed.replicated())
            ids = jax.ShapeDtypeStruct((rows, 65536), jnp.int32, sharding=placed.named(('batch', 'length')))

            step = attention_step(RelativeBias(True), dropped=True)
            return jax.jit(step).lower(x, x, x, table, x, ids).compile()

    alone, shared = compiled(4), compiled(1)
    for program in (alone, shared):
        assert program.as_text().count('tpu_custom_call"') == 3
    assert shared.memory_analysis().peak_memory_in_bytes < 0.6 * alone.memory_analysis().peak_memory_in_bytes


@pytest.mark.parametrize(
    'fields, kernels',
    [
        (
            dict(architecture='encoder_decoder', num_encoder_layers=2, num_heads=4),
            8,
        ),  # 3 each for encoder and decoder, 2 for cross-attention, which has no bias
        (dict(architecture='decoder_only', position='rope', num_heads=8, num_kv_heads=1, parallel_block=True), 2),
    ],
)
def test_a_whole_model_split_over_rows_and_heads_compiles(fields, kernels):
    chips = devices('v5p')
    compiled = compile_model(chips, MeshConfig(data=2, tensor=len(chips) // 2), **fields)
    assert compiled.as_text().count('tpu_custom_call"') == kernels


@pytest.mark.parametrize('merged', GEMMA_ATTENTIONS, ids=['cross', 'merged'])
@pytest.mark.parametrize('chip', TOPOLOGIES)
def test_the_options_of_adapted_encoder_decoders_compile(chip, merged):
    """Windows of two sizes on both sides, soft caps, grouped queries in all attentions, local and global rotations."""
    chips = devices(chip)
    mesh = MeshConfig(data=2, tensor=len(chips) // 2)
    compiled = compile_model(chips, mesh, source=1536, merged_attention=merged, **GEMMAS)
    assert compiled.as_text().count('tpu_custom_call"') == 2 * GEMMA_ATTENTIONS[merged]


@pytest.mark.parametrize('merged', GEMMA_ATTENTIONS, ids=['cross', 'merged'])
def test_their_rows_split_along_the_length_compile(merged):
    chips = devices('v5e')
    mesh = MeshConfig(data=len(chips) // 2, context=2)
    compiled = compile_model(chips, mesh, source=2048, merged_attention=merged, **GEMMAS)
    assert compiled.as_text().count('tpu_custom_call"') == 2 * GEMMA_ATTENTIONS[merged]
