"""The GPU kernels through the real compiler (JAX's CUDA plugin), for H100 and A100 and with no GPU at hand: they compile."""

import functools
import importlib

import jax
import jax.numpy as jnp
import pytest

from t5flan import sharding
from t5flan.kernels.attention import RelativeBias, attend
from t5flan.mesh import MeshConfig
from t5flan.models.build import abstract_model
from t5flan.models.config import ModelConfig
from t5flan.models.parameters import logical_axes

pytestmark = pytest.mark.slow

CHIPS = ('h100', 'a100')
GIB = 2**30


@functools.lru_cache
def devices(chip):
    """Two of a machine; compiled for, never run on."""
    pytest.importorskip(
        'jax_plugins.xla_cuda12', reason='the compiler comes with jax-cuda12-plugin and jax-cuda12-pjrt'
    )
    blocks = importlib.import_module('attention_blocks_gpu')
    return blocks.compile_only(blocks.GPUS[chip], 2)


@pytest.fixture(autouse=True)
def benchmarks(root, monkeypatch):
    """What describes a GPU to the compiler stands there."""
    monkeypatch.syspath_prepend(root / 'benchmarks')


def compile_for(
    chip,
    length,
    heads=8,
    kv_heads=None,
    head_dim=64,
    dtype=jnp.bfloat16,
    reach=128,
    dropped=False,
    ids=True,
    prefix=False,
    **options,
):
    """Output and gradients of one row on each GPU; a kernel that needs too much shared memory does not compile."""
    with sharding.use(sharding.create_sharding(MeshConfig(data=2), devices(chip))) as placed:

        def shaped(kind, *shape, by_row=True):
            axes = ('batch' if by_row else None,) + (None,) * (len(shape) - 1)
            return jax.ShapeDtypeStruct(shape, kind, sharding=placed.named(axes))

        q, k = (shaped(dtype, 2, length, n, head_dim) for n in (heads, kv_heads or heads))

        def step(q, k, v, table, dy, ids_BT):
            masks = dict(q_segment_ids_BT=ids_BT, kv_segment_ids_BS=ids_BT) if ids else {}
            masks |= dict(prefix_BS=ids_BT) if prefix else {}
            masks |= dict(dropout_rate=0.1, dropout_key=jax.random.key(0)) if dropped else {}

            def forward(q, k, v, table):
                bias = RelativeBias(True, 32, reach) if reach else None
                return attend(q, k, v, bias_table=table if reach else None, bias=bias, **masks, **options)

            y, vjp = jax.vjp(forward, q, k, v, table)
            return y, vjp(dy)

        table = shaped(jnp.float32, heads, 32, by_row=False)
        compiled = jax.jit(step).lower(q, k, k, table, q, shaped(jnp.int32, 2, length)).compile()
    assert compiled.as_text().count('__gpu$xla.gpu.triton') == (4 if reach else 3)  # attend chose the kernels
    return compiled.memory_analysis()


EVERYTHING = dict(causal=True, prefix=True, dropped=True, soft_cap=30.0, scale=0.125)


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


def test_long_inputs_of_t5_xxl_take_linear_memory():
    """Whole arrays need 288 GiB of temporaries at 16,384 tokens (`benchmarks/attention.py --topologies h100`)."""
    assert compile_for('h100', 16384, heads=64).temp_size_in_bytes < 0.1 * GIB
    assert compile_for('h100', 65536, heads=64).peak_memory_in_bytes < 8 * GIB


def test_a_whole_model_split_over_rows_and_heads_compiles():
    config = ModelConfig(
        architecture='encoder_decoder',
        vocab_size=512,
        emb_dim=128,
        head_dim=64,
        mlp_dim=256,
        num_heads=4,
        num_encoder_layers=2,
        num_decoder_layers=2,
        dropout_rate=0.1,
        remat='minimal',
    )
    with sharding.use(sharding.create_sharding(MeshConfig(tensor=2), devices('h100'))) as placed:
        model = abstract_model(config)
        places = sharding.tree_shardings(placed, model, logical_axes(model))
        model = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), model, places)
        tokens = jax.ShapeDtypeStruct((4, 1024), jnp.int32, sharding=placed.named(('batch', None)))
        names = [
            f'{side}_{name}' for side in ('encoder', 'decoder') for name in ('input_tokens', 'segment_ids', 'positions')
        ]
        batch = dict.fromkeys([*names, 'decoder_target_tokens'], tokens)
        loss = lambda model, batch: jnp.mean(model(batch, dropout_key=jax.random.key(0)))
        compiled = jax.jit(jax.value_and_grad(loss)).lower(model, batch).compile()
    kernels = 3 * 3 + 2  # of encoder, decoder and across: three each, and one more where there is a bias
    assert compiled.as_text().count('__gpu$xla.gpu.triton') == kernels
