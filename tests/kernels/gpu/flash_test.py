"""The GPU kernels, interpreted on the CPU, against a float64 loop; lowered for a GPU; what they skip and reject."""

import functools
import importlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5flan import sharding
from t5flan.errors import UserError
from t5flan.kernels import attention, implementations
from t5flan.kernels.attention import RelativeBias, attend
from t5flan.kernels.gpu import backward as flash_gpu_backward
from t5flan.kernels.gpu import flash as flash_gpu
from t5flan.kernels.gpu import tile as flash_gpu_tile
from t5flan.kernels.gpu.tile import Blocks, Tiling
from t5flan.kernels.operands import SAVED_NAMES, AttentionSpec, Operands
from tests.kernels.attention_cases import (
    CASES,
    QUICK,
    attention_step,
    check_eight_devices,
    check_program,
    check_queries_without_keys,
    check_split_lengths,
    draw,
    inputs,
    largest_array,
    products,
)
from tests.kernels.attention_reference import output_and_gradients
from tests.kernels.compile_cases import EVERYTHING

FLASH = 'flash_gpu'
BIAS = RelativeBias(True)
check = functools.partial(check_program, FLASH)
# Unequal blocks, so that short inputs have several.
TILING = Tiling(Blocks(64, 32, 4, 1), Blocks(32, 64, 4, 1), Blocks(64, 128, 4, 1), Blocks(32, 32, 4, 1))


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """Lets the CPU run the kernels, in small blocks."""
    monkeypatch.setitem(implementations.PLATFORMS['flash_gpu'], 'cpu', True)
    monkeypatch.setattr(flash_gpu, 'tiling', lambda *sizes: TILING)


FEW = ['no option, one block', 'prefix, packed, narrow heads', 'grouped heads of 64', 'later queries']


@pytest.mark.parametrize('case', [pytest.param(case, marks=() if case in FEW else pytest.mark.slow) for case in CASES])
def test_output_and_gradients_match_the_float64_loop(case):
    check(*CASES[case])


@pytest.mark.parametrize('dtype', [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)])
@pytest.mark.parametrize('case', ['later queries', pytest.param('packed encoder', marks=pytest.mark.slow)])
def test_16_bits(case, dtype):
    check(*CASES[case], dtype=dtype)


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(40))
def test_random_options(seed, monkeypatch):
    options, shape, dtype, _ = draw(seed)
    rng = np.random.default_rng(seed)
    blocks = [Blocks(*(int(n) for n in rng.choice([16, 32, 64, 128], 2)), 4, 1) for _ in range(3)]
    square = int(rng.choice([16, 32, 64]))
    monkeypatch.setattr(flash_gpu, 'tiling', lambda *sizes: Tiling(*blocks, Blocks(square, square, 4, 1)))
    check(options, shape, dtype=dtype, seed=seed)


def test_the_gradient_of_the_bias_has_float32_accuracy_in_bfloat16():
    """A row of the table sums the rounding errors of every query, which the kernels subtract."""
    arrays = inputs(queries=300, dtype=jnp.bfloat16)
    options = dict(bias=RelativeBias(True, 32, 40))
    exact = output_and_gradients(*[x.astype(jnp.float32) for x in arrays], 'xla', **options)[4]
    ours = output_and_gradients(*arrays, FLASH, QUICK, **options)[4]
    assert np.max(np.abs(ours - exact)) < 1e-4 * np.max(np.abs(exact))
    np.testing.assert_allclose(np.sum(ours, axis=1), 0.0, atol=1e-4)


def test_a_query_that_sees_no_key_returns_zeros_and_has_no_gradient():
    check_queries_without_keys(FLASH, inputs(batch=2, queries=150), QUICK)


def test_unseen_tiles_are_not_computed(monkeypatch):
    """A NaN in the keys and values of such a tile would spread to everything that reads it."""
    monkeypatch.setattr(flash_gpu, 'tiling', lambda *sizes: Tiling(*[Blocks(64, 64, 4, 1)] * 4))
    ids = np.repeat(np.array([[1, 2, 3]], np.int32), 64, axis=1)
    q, k, v, table, dy = inputs(queries=192)
    spoil = lambda x: jnp.where((ids == 2)[:, :, None, None], jnp.nan, x)
    masks = dict(q_segment_ids_BT=ids, kv_segment_ids_BS=ids)
    results = output_and_gradients(q, spoil(k), spoil(v), table, dy, FLASH, QUICK, **masks)
    for x in results[:4]:
        np.testing.assert_array_equal(np.any(np.isnan(x), axis=(2, 3)), ids == 2)


def test_which_tiles_are_computed():
    q = jnp.zeros((1, 512, 1, 64))
    ids = np.repeat(np.array([[1, 2, 3, 0]], np.int32), 128, axis=1)

    def ranges(axis, causal=False, ids=None, prefix=None, offset=0, window=None):
        tiling = Tiling(*[Blocks(128, 128, 4, 1)] * 4)
        operands = Operands(q, q, q, jnp.int32(offset), q_segment_ids_BT=ids, kv_segment_ids_BS=ids, prefix_BS=prefix)
        pair = None if window is None else (window - 1, window - 1)
        options = AttentionSpec(causal, window=pair, far_prefix=window is not None and prefix is not None)
        spec, arrays = flash_gpu.arrange(options, operands, tiling)
        return flash_gpu_tile.bounds(spec, arrays, tiling.forward, axis)[0].tolist()

    assert ranges(2) == [[0, 4]] * 4 == ranges(1)
    assert ranges(2, causal=True) == [[0, 1], [0, 2], [0, 3], [0, 4]]
    assert ranges(1, causal=True) == [[0, 4], [1, 4], [2, 4], [3, 4]]
    assert ranges(2, causal=True, offset=1) == [[0, 2], [0, 3], [0, 4], [0, 4]]
    assert ranges(2, causal=True, offset=-512) == [[0, 0]] * 4
    assert ranges(2, ids=ids) == [[0, 1], [1, 2], [2, 3], [0, 0]]
    assert ranges(2, causal=True, prefix=jnp.arange(512)[None] == 200)[0] == [0, 2]
    assert ranges(2, window=2) == [[0, 2], [0, 3], [1, 4], [2, 4]] == ranges(1, window=2)
    assert ranges(2, causal=True, window=130) == [[0, 1], [0, 2], [0, 3], [1, 4]]
    # With a prefix that is seen from far away, all tiles between it and the window are computed.
    assert ranges(2, causal=True, window=2, prefix=jnp.arange(512)[None] < 128) == [[0, 1], [0, 2], [0, 3], [0, 4]]


@pytest.mark.parametrize('offset', [0, 5, -37, 64])
@pytest.mark.parametrize('reach', [2, 16, 17, 40])
def test_sums_by_distance(reach, offset):
    """Tiles that hold their distances: the sum of each distance near the diagonal includes every tile that has it."""
    block = 16
    first, rows = flash_gpu_backward.strip(block, reach)
    corner = (first + np.arange(rows)) * block - offset % block  # the distance of a tile's first query and first key
    distance = corner[:, None, None] + np.arange(block)[None, None, :] - np.arange(block)[None, :, None]
    sums = flash_gpu_backward._sums_by_distance(
        jnp.asarray(distance[None], jnp.float32), first, reach, jnp.int32(offset)
    )
    near = np.arange(-reach + 1, reach)
    np.testing.assert_array_equal(sums[0], [distance[distance == d].sum() for d in near])
    assert all(np.sum(distance == d) == block for d in near)


@pytest.mark.parametrize('mesh, kv_heads', [((1, 2, 4), 4), ((2, 2, 2), 1)], ids=str)
@pytest.mark.slow  # the TPU kernel's test is quick
def test_eight_devices_match_one(mesh, kv_heads):
    check_eight_devices(FLASH, mesh, kv_heads, length=70, head_dim=16)


@pytest.mark.slow
def test_queries_and_keys_split_over_their_length_match_the_reference():
    check_split_lengths(FLASH, 256)


def test_no_array_of_queries_by_keys_is_allocated():
    assert largest_array(FLASH, 2304) < 2304 * 2304 / 4


def test_saving_the_saved_names_avoids_running_the_forward_kernel_again():
    assert products(FLASH, None) == 2 + 2 + 3 + 4  # forward, forward again, gradients of queries, gradients of keys
    assert products(FLASH, jax.checkpoint_policies.save_only_these_names(*SAVED_NAMES)) == 2 + 3 + 4


@pytest.fixture
def on_a_gpu(monkeypatch):
    """Makes `attend` believe that it runs on a GPU; programs are lowered for it, not compiled."""
    monkeypatch.undo()
    device = types.SimpleNamespace(platform='gpu', device_kind='NVIDIA H100 80GB HBM3', compute_capability='9.0')
    monkeypatch.setattr(sharding, 'device', lambda: device)
    return device


def lowered(length=512, heads=4, kv_heads=None, head_dim=64, dtype=jnp.bfloat16, bias=BIAS, **options):
    """The text of output and gradients, lowered for CUDA."""
    q, k = (jax.ShapeDtypeStruct((2, length, n, head_dim), dtype) for n in (heads, kv_heads or heads))
    table, ids_BT = jax.ShapeDtypeStruct((heads, 32), jnp.float32), jax.ShapeDtypeStruct((2, length), jnp.int32)
    # Some versions of JAX look up the device that they lower for, and this machine has none.
    device = jax.sharding.AbstractDevice(device_kind='NVIDIA H100 80GB HBM3', num_cores=None, platform='gpu')
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device)):
        step = jax.jit(attention_step(bias, **options))
        traced = step.trace(q, k, k, table, q, ids_BT, jax.ShapeDtypeStruct((), jnp.int32))
        return traced.lower(lowering_platforms=('cuda',)).as_text()


@pytest.mark.parametrize(
    'options',
    [
        {},
        dict(ids=False, bias=None),
        dict(causal=True, bias=None),
        dict(causal=True, bias=RelativeBias(False), length=600, kv_heads=2),
        EVERYTHING,
        dict(EVERYTHING, kv_heads=1, length=650),
        dict(EVERYTHING, dtype=jnp.float16, head_dim=40),
        dict(EVERYTHING, dtype=jnp.float32, precision='highest'),
        dict(head_dim=128),
        dict(EVERYTHING, head_dim=128, kv_heads=1),
        dict(head_dim=256),
        dict(EVERYTHING, head_dim=256, dtype=jnp.float32),
        dict(head_dim=8, ids=False),
        dict(EVERYTHING, kv_heads=2, window=200),
        dict(EVERYTHING, kv_heads=2, window=200, far_prefix=True),
        dict(window=(99, 100), kv_heads=2),
        dict(causal=True, bias=None, ids=False, soft_cap=50.0, window=64, head_dim=256, kv_heads=1),
    ],
    ids=str,
)
def test_every_option_lowers_for_a_gpu(options, on_a_gpu):
    # `attend` chose the kernels, four with a bias. With dropout the forward pass may occur twice before compilation.
    expected = 4 - (options.get('bias', 0) is None)
    assert lowered(**options).count('__gpu$xla.gpu.triton') in (expected, expected + options.get('dropped', False))


def test_blocks_are_no_larger_than_the_lengths(monkeypatch):
    monkeypatch.undo()
    largest = flash_gpu.largest_tiling('NVIDIA H100 80GB HBM3', 64, jnp.bfloat16)
    assert flash_gpu.tiling(16384, 16384, largest) == largest
    for blocks in flash_gpu.tiling(40, 8, largest):
        assert blocks.queries <= 64 and blocks.keys == 16
    square = flash_gpu.tiling(40, 8, largest).diagonals
    assert square.queries == square.keys == 16
    assert [flash_gpu.padded_head_dim(n) for n in (8, 16, 17, 64, 80, 128, 200)] == [16, 16, 32, 64, 128, 128, 256]


@pytest.mark.parametrize('head_dim', [8, 64, 80, 128, 256])
@pytest.mark.parametrize('dtype', flash_gpu.DTYPES)
@pytest.mark.parametrize('kind', ['NVIDIA H100 80GB HBM3', 'NVIDIA H200', 'NVIDIA A100-SXM4-80GB', 'a future GPU'])
def test_the_blocks_of_every_gpu_are_valid(kind, dtype, head_dim):
    largest = flash_gpu.largest_tiling(kind, head_dim, dtype)
    for blocks in largest:
        assert all(n & (n - 1) == 0 and n >= 16 for n in blocks[:2]) and blocks.warps in (4, 8)
        rows = blocks.queries + 2 * blocks.keys  # in shared memory
        size = max(64, flash_gpu.padded_head_dim(head_dim)) * jnp.dtype(dtype).itemsize
        assert rows * size <= (99 if kind == 'a future GPU' else 163) * 1024
    assert largest.diagonals.queries == largest.diagonals.keys


@pytest.fixture
def benchmark(root, monkeypatch):
    """Imports a module of benchmarks/ by name."""
    monkeypatch.syspath_prepend(root / 'benchmarks')
    return importlib.import_module


@pytest.mark.slow
def test_the_benchmark_runs_every_program_and_prints_ratios(benchmark, capsys):
    attention_benchmark = benchmark('attention')
    args = types.SimpleNamespace(dtype='float32', repeats=1)
    times = attention_benchmark.compare_on_gpu(
        'tiny', 1, 64, 1, 16, attention_benchmark.gpu_programs(cudnn='xla'), args
    )
    assert len(times) == 8 and min(times.values()) > 0.0
    assert capsys.readouterr().out.count('of the rate; xla : flash_gpu = ') == 2
    time, why = attention_benchmark.time_on_gpu(lambda x: x.reshape(3, -1), (jnp.zeros(4, jnp.float8_e4m3fn),), None, 1)
    assert np.isnan(time) and why


def test_the_rule_for_blocks(benchmark):
    blocks = benchmark('attention_blocks_gpu')
    tried = {
        Blocks(128, 64, 8, 3): (255, 4, 90000, 8),
        Blocks(128, 32, 8, 2): (168, 0, 90000, 8),
        Blocks(128, 32, 8, 3): (168, 0, 110000, 8),
        Blocks(64, 64, 4, 3): (100, 0, 50000, 16),
        Blocks(128, 64, 4, 3): (255, 0, 50000, 4),
    }
    tried = {key: blocks.Compiled(*value) for key, value in tried.items()}
    assert blocks.by_rule('forward', tried, 2**20) == (128, 32, 8, 3)
    assert blocks.by_rule('forward', tried, 99 * 1024) == (128, 32, 8, 2)  # the other takes too much shared memory
    assert blocks.by_rule('gradient_of_keys', tried, 2**20) == (64, 64, 4, 3)
    for head_dim in (64, 128, 256):
        for dtype in ('bfloat16', 'float32'):
            assert all(blocks.candidates(head_dim, dtype).values())


def old(capability):
    return types.SimpleNamespace(platform='gpu', device_kind='a card', compute_capability=capability)


BAD = {
    'it supports bfloat16, float16, float32, not float8_e4m3fn': (dict(dtype=jnp.float8_e4m3fn), {}, None),
    'a head_dim up to 256, not 300': (dict(head_dim=300), {}, None),
    'precision, not high': ({}, dict(precision='high'), None),
    '8.0 .A100. or later; a card has 7.0': ({}, {}, old('7.0')),
    'not on a card .gfx942, ROCm.': ({}, {}, old('gfx942')),
}


@pytest.mark.parametrize('message', BAD)
def test_unsupported_arguments_raise_and_auto_falls_back_to_chunked(message, on_a_gpu, monkeypatch):
    shape, options, device = BAD[message]
    monkeypatch.setattr(sharding, 'device', lambda: device or on_a_gpu)
    q, k, v, *_ = inputs(queries=512, **shape)
    with pytest.raises(UserError, match=f"{message}.*Set ModelConfig.attention='chunked'") as error:
        attend(q, k, v, implementation=FLASH, **options)
    assert '\n' not in str(error.value)
    chosen = []
    monkeypatch.setattr(attention, '_log_once', lambda platform, name, reason: chosen.append((name, reason)))
    jax.eval_shape(functools.partial(attend, **options), q, k, v)  # 'auto' falls back to chunked and logs why
    assert chosen[0][0] == 'chunked' and 'not flash_gpu' in chosen[0][1]


def test_requesting_it_on_a_cpu_raises(monkeypatch):
    monkeypatch.undo()
    q, k, v, *_ = inputs(queries=16)
    with pytest.raises(UserError, match="'flash_gpu' cannot run: it runs on NVIDIA GPUs, not cpu"):
        attend(q, k, v, implementation=FLASH)


def test_queries_that_fill_a_block_of_one_kernel_but_not_of_another(monkeypatch):
    """Kernels must agree on whether a padding query sees a key; otherwise its lse would be that of no key."""
    monkeypatch.setattr(flash_gpu, 'tiling', lambda *sizes: Tiling(*(Blocks(n, 16, 4, 1) for n in (16, 64, 32, 16))))
    check(dict(kv_lengths_B=np.array([20], np.int32)), dict(queries=35, keys=32, heads=1, head_dim=16))
