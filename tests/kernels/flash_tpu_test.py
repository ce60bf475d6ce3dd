"""The TPU kernels, interpreted on the CPU, against a float64 loop over heads; what they skip, keep and refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from t5flan import sharding
from t5flan.errors import UserError
from t5flan.kernels import attention, flash_tpu
from t5flan.kernels.attention import RelativeBias, attend
from t5flan.kernels.chunked import SAVED_NAMES, Operands
from t5flan.training.config import MeshConfig
from tests.kernels.attention_reference import assert_near, compile_with_gradients, output_and_gradients, reference

FLASH = 'flash_tpu'
QUICK = {'xla_backend_optimization_level': 0}  # these programs are compiled for longer than they run
TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 1e-2}


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    """The CPU runs the kernels, in blocks of 128, so that short inputs have several."""
    monkeypatch.setitem(attention._FLASH_PLATFORMS, 'cpu', True)
    monkeypatch.setattr(flash_tpu, 'block_sizes', lambda *sizes: (128, 128))


def inputs(batch=1, queries=200, keys=None, heads=2, kv_heads=None, head_dim=64, buckets=32, seed=0, dtype=jnp.float32):
    """q, k, v, the bias table and a cotangent of the output."""
    rng = np.random.default_rng(seed)
    keys, kv_heads = keys or queries, kv_heads or heads
    sizes = [(batch, queries, heads, head_dim), (batch, keys, kv_heads, head_dim), (batch, keys, kv_heads, head_dim),
             (heads, buckets), (batch, queries, heads, head_dim)]
    # Logits of about one in size: with larger ones a softmax is one key, and its gradient zero.
    spread = [1.0, head_dim**-0.5, 1.0, 1.0, 1.0]
    arrays = [jnp.asarray(s * rng.normal(size=size), jnp.float32) for size, s in zip(sizes, spread, strict=True)]
    return [x if i == 3 else x.astype(dtype) for i, x in enumerate(arrays)]


def segments(seed, batch, length, examples=3):
    """Packed rows: ids 1, 2, ... of random lengths, then padding."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((batch, length), np.int32)
    for row in ids:
        ends = np.sort(rng.integers(1, length, examples))
        for i, (start, end) in enumerate(zip((0, *ends), ends)):
            row[start:end] = i + 1
    return ids


def check(options, shape, dtype=jnp.float32, seed=0):
    """Output and four gradients against the reference, which is given the rounded inputs."""
    options = dict(options)
    if 'bias' in options:
        shape = dict(shape, buckets=options['bias'].num_buckets)
    arrays = inputs(**shape, seed=seed, dtype=dtype)
    results = output_and_gradients(*arrays, FLASH, QUICK, **options)
    assert [x.dtype for x in results] == [dtype] * 4 + [jnp.float32]
    assert all(np.all(np.isfinite(np.asarray(x, np.float32))) for x in results)
    assert_near(results, reference(*arrays, options), TOLERANCE[dtype])


PACKED = segments(1, 2, 300)
PREFIX = (segments(2, 2, 300, 6) % 2).astype(np.int32)
CASES = {
    'no option, one block': ({}, dict(queries=128, heads=1)),
    'encoder': (dict(bias=RelativeBias(True), kv_segment_ids_BS=(PACKED > 0).astype(np.int32)), dict(batch=2, queries=300)),
    'packed encoder': (dict(bias=RelativeBias(True, 8, 16), q_segment_ids_BT=PACKED, kv_segment_ids_BS=PACKED),
                       dict(batch=2, queries=300)),
    'decoder, distances far beyond the band': (dict(bias=RelativeBias(False, 8, 9), causal=True), dict(queries=900, heads=1)),
    'both ways, far beyond the band': (dict(bias=RelativeBias(True, 8, 9)), dict(queries=140, keys=900, heads=1)),
    'grouped heads of 128': (dict(bias=RelativeBias(False), causal=True, scale=0.3),
                             dict(queries=256, heads=4, kv_heads=2, head_dim=128)),
    'grouped heads of 64': (dict(bias=RelativeBias(True), soft_cap=2.0),
                            dict(queries=130, keys=200, heads=4, kv_heads=2)),
    'three heads to a key': (dict(causal=True), dict(queries=130, heads=6, kv_heads=2)),
    'one key head of 256': (dict(causal=True, soft_cap=1.5, scale=0.7), dict(queries=130, heads=2, kv_heads=1, head_dim=256)),
    'prefix, packed, narrow heads': (dict(causal=True, prefix_BS=PREFIX, q_segment_ids_BT=PACKED, kv_segment_ids_BS=PACKED,
                                          bias=RelativeBias(False)), dict(batch=2, queries=300, heads=4, head_dim=24)),
    'prefix, odd heads': (dict(causal=True, prefix_BS=PREFIX.astype(bool)), dict(batch=2, queries=300, heads=3, head_dim=40)),
    'cross, packed, dropout': (dict(q_segment_ids_BT=PACKED[:, :150], kv_segment_ids_BS=PACKED, dropout_rate=0.4,
                                    dropout_key=jax.random.key(3)), dict(batch=2, queries=150, keys=300)),
    'later queries': (dict(q_offset=170, causal=True, bias=RelativeBias(False, 8, 30), soft_cap=2.0, dropout_rate=0.2,
                           dropout_key=jax.random.key(4), kv_lengths_B=np.array([250, 0], np.int32)),
                      dict(batch=2, queries=100, keys=300, heads=4, kv_heads=1)),
    'queries before the keys': (dict(q_offset=-130, causal=True, bias=RelativeBias(True)), dict(queries=300, keys=150)),
}


@pytest.mark.parametrize('case', CASES)
def test_output_and_every_gradient_are_those_of_the_float64_loop(case):
    check(*CASES[case])


@pytest.mark.parametrize('case', ['packed encoder', 'later queries'])
def test_bfloat16(case):
    check(*CASES[case], dtype=jnp.bfloat16)


def test_blocks_of_unequal_sizes_in_part_filled(monkeypatch):
    monkeypatch.setattr(flash_tpu, 'block_sizes', lambda *sizes: (256, 384))
    check(dict(bias=RelativeBias(True), causal=True), dict(queries=300, keys=500))


@pytest.mark.parametrize('case', [
    dict(dtype=jnp.bfloat16), dict(dtype=jnp.bfloat16, heads=4, kv_heads=2),
    dict(dtype=jnp.float32, dropout_rate=0.3, dropout_key=jax.random.key(0))], ids=['bfloat16', 'grouped', 'dropout'])
def test_gradients_of_the_bias_add_up_to_zero(case):
    """What is added to every logit of a query alike changes nothing, however the output was rounded."""
    shape = {name: case.get(name, 2) for name in ('heads', 'kv_heads')} | dict(dtype=case['dtype'])
    options = {name: x for name, x in case.items() if name not in shape}
    *_, dtable_NR = output_and_gradients(*inputs(queries=300, buckets=8, **shape), FLASH, QUICK, bias=RelativeBias(True, 8, 16),
                                         **options)
    assert np.max(np.abs(np.sum(dtable_NR, axis=1))) < 2e-5 * np.max(np.abs(dtable_NR))


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(40))
def test_options_drawn_at_random(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    pick = lambda *choices: choices[rng.integers(len(choices))]
    blocks = pick(128, 256), pick(128, 256, 384)
    monkeypatch.setattr(flash_tpu, 'block_sizes', lambda *sizes: blocks)
    batch, kv_heads, share = pick(1, 2), pick(1, 2, 3), pick(1, 2, 3)
    queries, keys = (int(n) for n in rng.integers(2, 700, 2))
    ids_S = segments(seed, batch, keys, pick(1, 4, 9))
    options = dict(scale=pick(1.0, 0.4), soft_cap=pick(None, 2.0), causal=pick(True, False), q_offset=pick(0, 0, 77, -200))
    if pick(True, False):
        buckets = pick(8, 32)
        options['bias'] = RelativeBias(pick(True, False), buckets, pick(buckets, 128))
    if options['causal'] and pick(True, False):
        options['prefix_BS'] = (segments(seed + 1, batch, keys, 6) % 2).astype(np.int32)
    if pick(True, False):
        options['kv_segment_ids_BS'] = ids_S
        if pick(True, False):
            options['q_segment_ids_BT'] = np.resize(ids_S[:, rng.integers(keys):], (batch, queries)).astype(np.int32)
    if pick(True, False):
        options['kv_lengths_B'] = rng.integers(0, keys + 1, batch).astype(np.int32)
    if pick(True, False):
        options |= dict(dropout_rate=0.3, dropout_key=jax.random.key(seed))
    shape = dict(batch=batch, queries=queries, keys=keys, heads=kv_heads * share, kv_heads=kv_heads,
                 head_dim=pick(8, 64, 64, 96, 128, 256))
    check(options, shape, dtype=pick(jnp.float32, jnp.float32, jnp.bfloat16), seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize('case', ['packed encoder', 'later queries', 'grouped heads of 128', 'grouped heads of 64'])
def test_as_the_simulator_of_a_tpu_runs_it(case, monkeypatch, capfd):
    """Its memory begins as NaN, copies between memories are as asynchronous as a TPU's, and races are found."""
    simulated = pltpu.InterpretParams(uninitialized_memory='nan', detect_races=True)
    monkeypatch.setitem(attention._FLASH_PLATFORMS, 'cpu', simulated)
    check(*CASES[case])
    assert 'RACE' not in ''.join(capfd.readouterr())


def test_a_query_that_sees_nothing_gives_zeros_and_no_gradient():
    arrays = inputs(batch=2, queries=150)
    results = output_and_gradients(*arrays, FLASH, QUICK, bias=RelativeBias(True), kv_lengths_B=np.array([0, 5], np.int32))
    for x in results:
        assert np.all(np.isfinite(x))
    for x in results[:4]:
        assert np.all(x[0] == 0.0) and np.any(x[1] != 0.0)


def test_tiles_that_no_query_sees_are_not_computed():
    """A NaN among the keys and values of such a tile would reach everything that reads it."""
    ids = np.repeat(np.array([[1, 2, 3]], np.int32), 128, axis=1)
    q, k, v, table, dy = inputs(queries=384)
    spoil = lambda x: jnp.where((ids == 2)[:, :, None, None], jnp.nan, x)
    masks = dict(q_segment_ids_BT=ids, kv_segment_ids_BS=ids, bias=RelativeBias(True))
    results = output_and_gradients(q, spoil(k), spoil(v), table, dy, FLASH, QUICK, **masks)
    for x in results[:4]:
        np.testing.assert_array_equal(np.any(np.isnan(x), axis=(2, 3)), ids == 2)
    y = attend(q, spoil(k), spoil(v), kv_segment_ids_BS=(ids != 2).astype(np.int32), implementation=FLASH)
    assert np.all(np.isfinite(y))


def test_the_fraction_of_tiles_that_is_computed():
    q = jnp.zeros((1, 512, 1, 64))
    ids = np.repeat(np.array([[1, 2, 3, 0]], np.int32), 128, axis=1)

    def fraction(causal=False, ids=None, prefix=None, offset=0):
        form = flash_tpu.FlashForm(causal, 1.0, None, 0.0, None, None, 128, 128)
        return 16 * float(flash_tpu.tiles_seen(form, Operands(q, q, q, None, None, ids, ids, prefix, None, jnp.int32(offset))))

    assert fraction() == 16
    assert fraction(causal=True) == 10
    assert fraction(causal=True, offset=1) == 13  # the last query of each block sees the first key of the next
    assert fraction(causal=True, offset=-512) == 0
    assert fraction(ids=ids) == 3
    assert fraction(causal=True, prefix=jnp.arange(512)[None] == 200) == 11  # block 1 is seen by the queries of block 0 too


@pytest.mark.parametrize('mesh, kv_heads', [((1, 2, 4), 4), pytest.param((2, 2, 2), 1, marks=pytest.mark.slow)], ids=str)
def test_eight_devices_give_the_numbers_of_one(mesh, kv_heads):
    batch, length = 4, 130
    arrays = inputs(batch=batch, queries=length, heads=4, kv_heads=kv_heads, head_dim=64)
    ids = segments(0, batch, length)
    options = dict(bias=RelativeBias(False), causal=True, q_segment_ids_BT=ids, kv_segment_ids_BS=ids, dropout_rate=0.3,
                   dropout_key=jax.random.key(0))
    alone = output_and_gradients(*arrays, FLASH, QUICK, **options)
    with sharding.use(sharding.create_sharding(MeshConfig(*mesh))) as placed:
        heads = placed.named(('batch', None, 'act_heads', None))
        kv = placed.named(('batch', None, 'act_kv_heads', None), arrays[1].shape)
        arrays = [jax.device_put(x, s) for x, s in zip(arrays, (heads, kv, kv, placed.replicated(), heads), strict=True)]
        compiled, arguments = compile_with_gradients(*arrays, FLASH, QUICK, **options)
        spread = compiled(*arguments)
        assert spread[0].sharding.is_equivalent_to(heads, 4)
        assert 'all-gather' not in compiled.as_text()
    assert_near(spread, alone, 2e-6)


def test_a_policy_that_keeps_the_saved_names_runs_no_forward_kernel_again():
    q, k, v, *_ = inputs(queries=128, heads=1)

    def products(policy):
        layer = jax.checkpoint(lambda q, k, v: jnp.sum(attend(q, k, v, implementation=FLASH)), policy=policy)
        step = jax.jit(jax.value_and_grad(layer, (0, 1, 2)))
        return step.lower(q, k, v).compile(QUICK).as_text().count(' dot(')

    assert products(None) == 2 + 2 + 3 + 4  # forward, forward again, gradients of queries, gradients of keys
    assert products(jax.checkpoint_policies.save_only_these_names(*SAVED_NAMES)) == 2 + 3 + 4


def test_the_backward_pass_draws_the_mask_of_dropout_again():
    """Beside inputs, output and sums nothing is kept, not even a bit for each key and head; no kernel runs again."""
    q, k, v, *_ = inputs(queries=128, keys=2560, heads=2)
    dropout = dict(dropout_rate=0.3, dropout_key=jax.random.key(0))
    y, vjp = jax.vjp(lambda q, k, v: attend(q, k, v, implementation=FLASH, **dropout), q, k, v)
    kept = sum(x.nbytes for x in jax.tree.leaves(vjp))
    assert kept - sum(x.nbytes for x in (q, k, v, y)) - 4 * 2 * 128 < 2 * 2560 / 8
    step = jax.jit(jax.value_and_grad(lambda q, k, v: jnp.sum(attend(q, k, v, implementation=FLASH, **dropout)), (0, 1, 2)))
    assert step.lower(q, k, v).compile(QUICK).as_text().count(' dot(') == 2 * (2 + 3 + 4)  # of two heads


def test_no_array_of_all_queries_and_keys_is_made():
    q = jax.ShapeDtypeStruct((1, 1152, 2, 64), jnp.float32)
    table = jax.ShapeDtypeStruct((2, 32), jnp.float32)

    def loss(q, k, v, table):
        return jnp.sum(attend(q, k, v, bias_table=table, bias=RelativeBias(True), implementation=FLASH))

    # Sizes of all arrays, those inside the kernels as well: none comes near 1152 x 1152.
    assert max(_sizes(jax.make_jaxpr(jax.grad(loss, (0, 1, 2, 3)))(q, q, q, table).jaxpr)) < 1152 * 1152 / 2


def _sizes(jaxpr):
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield getattr(variable.aval, 'size', 0)
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')):
            parameter = getattr(parameter, 'jaxpr', parameter)
            if hasattr(parameter, 'eqns'):
                yield from _sizes(parameter)


def test_blocks_pad_little():
    lengths = [1, 128, 130, 512, 640, 1000, 1536, 16384, 16385]
    assert [flash_tpu._block(length, 512) for length in lengths] == [128, 128, 256, 512, 384, 512, 512, 512, 512]


def test_blocks_by_device():
    kinds = dict(head_dim=64, dtype=jnp.bfloat16, bias=RelativeBias(True))
    assert flash_tpu.largest_blocks('TPU v5', **kinds) == (512, 1024)
    assert flash_tpu.largest_blocks('TPU v4', **kinds) == (512, 512)
    assert flash_tpu.largest_blocks('a TPU to come', **kinds) == (512, 512)
    assert flash_tpu.largest_blocks('TPU v5', **dict(kinds, head_dim=32)) == (512, 512)
    assert flash_tpu.largest_blocks('TPU v5', **dict(kinds, dtype=jnp.float32)) == (256, 512)
    assert flash_tpu.largest_blocks('TPU v5', **dict(kinds, bias=RelativeBias(True, 32, 800))) == (512, 512)
    assert [flash_tpu._block(length, 1024) for length in (640, 1024, 1536, 4096)] == [640, 1024, 768, 1024]


BAD = {
    'it takes bfloat16 and float32, not float16': (dict(dtype=jnp.float16), {}),
    'a head_dim up to 256, not 300': (dict(head_dim=300), {}),
    'ModelConfig.relative_max_distance': ({}, dict(bias=RelativeBias(True, 32, 20000))),
    'not high': ({}, dict(precision='high')),
}


@pytest.mark.parametrize('message', BAD)
def test_what_the_kernels_do_not_take_is_refused_with_the_nearest_choice(message, monkeypatch):
    shape, options = BAD[message]
    q, k, v, table, _ = inputs(queries=512, **shape)
    if 'bias' in options:
        options = dict(options, bias_table=table)
    with pytest.raises(UserError, match=f"{message}.*Set ModelConfig.attention='chunked'") as error:
        attend(q, k, v, implementation=FLASH, **options)
    assert '\n' not in str(error.value)
    chosen = []
    monkeypatch.setattr(attention, '_platform', lambda: 'tpu')
    monkeypatch.setattr(attention, '_say_once', lambda platform, name, reason: chosen.append((name, reason)))
    jax.eval_shape(functools.partial(attend, **options), q, k, v)  # 'auto' goes round it, and says why
    assert chosen[0][0] == 'chunked' and message in chosen[0][1]
