"""`attend()` against a float64 loop over heads; its gradients, memory and errors."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from t5flan import sharding
from t5flan.errors import UserError
from t5flan.kernels import attention, chunked, implementations
from t5flan.kernels.attention import RelativeBias, attend
from t5flan.kernels.operands import SAVED_NAMES
from t5flan.mesh import MeshConfig
from tests.kernels.attention_cases import check_queries_without_keys
from tests.kernels.attention_reference import (
    assert_near,
    compile_with_gradients,
    output_and_gradients,
    reference,
    seen_keys,
)

PROGRAMS = ('xla', 'chunked')
B, T, S, N, H = 2, 20, 20, 4, 8


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch):
    """Tiles of eight queries, so that short inputs have several and the last one is padded."""
    monkeypatch.setitem(chunked._TILE_LOGITS, 'cpu', 1)
    monkeypatch.setattr(chunked, '_TILE_ROWS', 1)
    monkeypatch.setattr(chunked, '_ROWS_IN_PARTS', 1)


def inputs(kv_heads=N, queries=T, keys=S, batch=B, seed=0, buckets=32):
    """q, k, v, the bias table and a cotangent of the output, float32."""
    rng = np.random.default_rng(seed)
    shapes = [
        (batch, queries, N, H),
        (batch, keys, kv_heads, H),
        (batch, keys, kv_heads, H),
        (N, buckets),
        (batch, queries, N, H),
    ]
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


SEGMENTS = np.array([[1] * 7 + [2] * 9 + [0] * 4, [3] * 20], np.int32)
PREFIX = np.array([[1] * 3 + [0] * 4 + [1] * 5 + [0] * 8, [1] * 12 + [0] * 8], np.int32)
CASES = {
    'no option': {},
    'encoder': dict(bias=RelativeBias(True), kv_segment_ids_BS=(SEGMENTS > 0).astype(np.int32)),
    'packed encoder': dict(bias=RelativeBias(True, 8, 16), q_segment_ids_BT=SEGMENTS, kv_segment_ids_BS=SEGMENTS),
    'decoder': dict(bias=RelativeBias(False), causal=True, kv_heads=2, scale=0.3),
    'prefix, packed': dict(
        causal=True,
        prefix_BS=PREFIX,
        q_segment_ids_BT=SEGMENTS,
        kv_segment_ids_BS=SEGMENTS,
        kv_heads=1,
        soft_cap=1.5,
        scale=0.7,
    ),
    'prefix': dict(bias=RelativeBias(False), causal=True, prefix_BS=PREFIX.astype(bool)),
    'cross, packed': dict(
        keys=13,
        q_segment_ids_BT=SEGMENTS,
        kv_segment_ids_BS=SEGMENTS[:, 3:16],
        dropout_rate=0.4,
        dropout_key=jax.random.key(3),
    ),
    'later queries': dict(
        queries=9,
        q_offset=6,
        causal=True,
        bias=RelativeBias(False, 8, 12),
        kv_lengths_B=np.array([11, 0], np.int32),
        kv_heads=2,
        dropout_rate=0.2,
        dropout_key=jax.random.key(4),
        soft_cap=2.0,
    ),
    'window, decoder': dict(window=5, causal=True, bias=RelativeBias(False, 8, 9), kv_heads=2, soft_cap=2.0),
    'window, packed encoder': dict(
        window=3, bias=RelativeBias(True, 8, 9), q_segment_ids_BT=SEGMENTS, kv_segment_ids_BS=SEGMENTS, scale=0.4
    ),
    'window, prefix': dict(
        window=4,
        causal=True,
        prefix_BS=PREFIX,
        q_segment_ids_BT=SEGMENTS,
        kv_segment_ids_BS=SEGMENTS,
        kv_heads=1,
        dropout_rate=0.3,
        dropout_key=jax.random.key(5),
    ),
    'window, far prefix': dict(
        window=4,
        causal=True,
        far_prefix=True,
        prefix_BS=PREFIX,
        q_segment_ids_BT=SEGMENTS,
        kv_segment_ids_BS=SEGMENTS,
        kv_heads=1,
    ),
    'window, later queries': dict(
        window=6, queries=9, q_offset=8, causal=True, kv_lengths_B=np.array([15, 3], np.int32), bias=RelativeBias(False)
    ),
    'window of one, queries before the keys': dict(window=1, q_offset=-4),
    'window, more keys after than before': dict(
        window=(1, 4), bias=RelativeBias(True, 8, 9), q_segment_ids_BT=SEGMENTS, kv_segment_ids_BS=SEGMENTS
    ),
    'window, no key before': dict(window=(0, 3), queries=9, q_offset=5, kv_heads=1, soft_cap=2.0),
    'window of all': dict(window=10**6, causal=True, bias=RelativeBias(False)),
    'lengths and segments': dict(
        bias=RelativeBias(True),
        q_segment_ids_BT=SEGMENTS,
        kv_segment_ids_BS=SEGMENTS,
        kv_lengths_B=np.array([9, 2], np.int32),
        causal=True,
        q_offset=-3,
    ),
}


@pytest.mark.parametrize('program', PROGRAMS)
@pytest.mark.parametrize('case', CASES)
def test_output_and_gradients_match_the_float64_loop(case, program):
    options = dict(CASES[case])
    shapes = {name: options.pop(name) for name in ('kv_heads', 'queries', 'keys') if name in options}
    buckets = options['bias'].num_buckets if 'bias' in options else 32
    arrays = inputs(**shapes, buckets=buckets)
    if 'q_segment_ids_BT' in options:
        options['q_segment_ids_BT'] = options['q_segment_ids_BT'][:, : shapes.get('queries', T)]
    assert_near(output_and_gradients(*arrays, program, **options), reference(*arrays, options), 1e-5)


@pytest.mark.parametrize('tile', [1, 2 * 2 * T * S, 10**9])
def test_tiles_of_every_size_match_the_reference(tile, monkeypatch):
    monkeypatch.setitem(chunked._TILE_LOGITS, 'cpu', tile)
    options = dict(CASES['lengths and segments'], soft_cap=3.0)
    arrays = inputs(kv_heads=2)
    assert_near(output_and_gradients(*arrays, 'chunked', **options), reference(*arrays, options), 1e-5)


LONG_CASES = {
    'causal': dict(kv_heads=2, scale=0.3),
    'padding': dict(kv_segment_ids_BS=(SEGMENTS > 1).astype(np.int32), soft_cap=2.0),
    'packed': dict(q_segment_ids_BT=SEGMENTS, kv_segment_ids_BS=SEGMENTS),
    'later queries': dict(queries=11, q_offset=7, kv_heads=1),
    'queries before the keys': dict(q_offset=-9),
}


@pytest.mark.parametrize('part', [3, 5])
@pytest.mark.parametrize('case', LONG_CASES)
def test_long_causal_rows_are_read_in_parts(case, part, monkeypatch):
    monkeypatch.setattr(chunked, '_KEYS_OF_A_PART', part)
    options = dict(LONG_CASES[case], causal=True)
    arrays = inputs(**{name: options.pop(name) for name in ('kv_heads', 'queries') if name in options})
    assert_near(output_and_gradients(*arrays, 'chunked', **options), reference(*arrays, options), 1e-5)


def test_long_causal_rows_do_not_read_the_keys_after_the_queries(monkeypatch):
    monkeypatch.setattr(chunked, '_KEYS_OF_A_PART', 4)
    q_BTNH, k_BSKH, v_BSKH, *_ = inputs()
    unread = [x.at[:, 16:].set(np.nan) for x in (k_BSKH, v_BSKH)]  # blocks of eight queries: 0, 8 and 16
    y_BTNH = attend(q_BTNH, *unread, causal=True, implementation='chunked')
    expected_BTNH = attend(q_BTNH, k_BSKH, v_BSKH, causal=True, implementation='chunked')
    np.testing.assert_array_equal(y_BTNH[:, :16], expected_BTNH[:, :16])
    assert np.isnan(y_BTNH[:, 16:]).all()


@pytest.mark.parametrize('program', PROGRAMS)
def test_no_gradient_from_a_later_key_or_another_example(program):
    q, k, v, table, _ = inputs(batch=1)
    options = dict(
        causal=True,
        prefix_BS=jnp.asarray(PREFIX[:1]),
        q_segment_ids_BT=jnp.asarray(SEGMENTS[:1]),
        kv_segment_ids_BS=jnp.asarray(SEGMENTS[:1]),
        bias_table=table,
        bias=RelativeBias(False),
    )
    rows = jax.jit(
        jax.jacrev(
            lambda k, v: jnp.sum(attend(q, k, v, implementation=program, **options)[0], axis=(1, 2)), argnums=(0, 1)
        )
    )
    for gradient_T1SNH in rows(k, v):
        touched = np.any(np.asarray(gradient_T1SNH)[:, 0] != 0, axis=(-1, -2))
        masks = dict(causal=True, prefix_BS=PREFIX, q_segment_ids_BT=SEGMENTS, kv_segment_ids_BS=SEGMENTS)
        expected = [seen_keys(0, t, S, masks) for t in range(T)]
        np.testing.assert_array_equal(touched, expected)
    # Query 4 (segment 1) sees itself and earlier keys; query 9 (segment 2) sees its whole prefix but no later key.
    assert touched[4].tolist() == [True] * 5 + [False] * 15
    assert touched[9].tolist() == [False] * 7 + [True] * 5 + [False] * 8


@pytest.mark.parametrize('program', PROGRAMS)
def test_packed_examples_attend_as_if_separate(program):
    q, k, v, table, _ = inputs(batch=1)
    run = jax.jit(functools.partial(attend, bias_table=table, bias=RelativeBias(True), implementation=program))
    packed = run(q, k, v, q_segment_ids_BT=SEGMENTS[:1], kv_segment_ids_BS=SEGMENTS[:1])
    for part in (slice(0, 7), slice(7, 16)):
        np.testing.assert_allclose(packed[:, part], run(q[:, part], k[:, part], v[:, part]), atol=2e-6)


@pytest.mark.parametrize('program', PROGRAMS)
def test_a_query_that_sees_no_key_returns_zeros_and_has_no_gradient(program):
    check_queries_without_keys(program, inputs())


@pytest.mark.parametrize('program', PROGRAMS)
def test_one_query_at_a_time_matches_all_at_once(program):
    q, k, v, table, _ = inputs(kv_heads=2)
    options = dict(bias_table=table, bias=RelativeBias(False), causal=True, implementation=program)
    whole = jax.jit(lambda q, k, v: attend(q, k, v, **options))(q, k, v)
    step = jax.jit(lambda q, k, v, t: attend(q, k, v, q_offset=t, kv_lengths_B=jnp.full(B, t + 1), **options))
    for t in (0, 7, 19):
        # Slots that are not yet written may hold any finite number.
        later = np.arange(S)[None, :, None, None] > t
        one = step(q[:, t : t + 1], jnp.where(later, 1e4, k), jnp.where(later, 1e4, v), jnp.int32(t))
        np.testing.assert_allclose(one[:, 0], whole[:, t], atol=2e-6)


@pytest.mark.parametrize('program', PROGRAMS)
def test_bfloat16_inputs_have_a_float32_softmax(program):
    q, k, v, table, dy = inputs()
    rounded = [x.astype(jnp.bfloat16) for x in (q, k, v)]
    options = dict(bias=RelativeBias(True), kv_segment_ids_BS=np.ones((B, S), np.int32))
    y, *gradients = output_and_gradients(*rounded, table, dy.astype(jnp.bfloat16), program, **options)
    assert [x.dtype for x in (y, *gradients)] == [jnp.bfloat16] * 4 + [jnp.float32]
    expected = reference(*(np.asarray(x, np.float64) for x in (*rounded, table, dy.astype(jnp.bfloat16))), options)
    assert_near((y, *gradients), expected, 2 * 2.0**-8)  # probabilities and results are rounded to 8 bits


@pytest.mark.parametrize('program', PROGRAMS)
def test_gradients_of_the_bias_sum_to_zero(program):
    """Adding a constant to all logits of a query changes nothing, even if the output was rounded."""
    arrays = [x if i == 3 else x.astype(jnp.bfloat16) for i, x in enumerate(inputs(buckets=8))]
    *_, dtable_NR = output_and_gradients(*arrays, program, bias=RelativeBias(True, 8, 16))
    assert np.max(np.abs(np.sum(dtable_NR, axis=1))) < 2e-6 * np.max(np.abs(dtable_NR))


def test_logits_of_bfloat16_inputs_are_not_rounded():
    """Logits of 300 and 300.5 round to the same bfloat16; their probabilities are 0.38 and 0.62."""
    q = jnp.ones((1, 2, 1, 2), jnp.bfloat16)
    k = jnp.asarray([[[[300.0, 0.0]], [[300.0, 0.5]]]], jnp.bfloat16)
    v = jnp.asarray([[[[0.0, 0.0]], [[1.0, 1.0]]]], jnp.bfloat16)
    for program in PROGRAMS:
        y = jax.jit(functools.partial(attend, implementation=program))(q, k, v)
        np.testing.assert_allclose(y.astype(np.float32), 0.6225, atol=2e-3)


@pytest.mark.parametrize('program', PROGRAMS)
def test_dropout_preserves_the_mean_and_depends_only_on_its_key(program):
    q, k, v, table, _ = inputs(batch=16, keys=64)
    run = jax.jit(lambda key: attend(q, k, v, dropout_rate=0.25, dropout_key=key, implementation=program))
    outputs = np.stack([run(jax.random.key(seed)) for seed in range(200)])
    np.testing.assert_array_equal(outputs[3], run(jax.random.key(3)))
    assert np.all(outputs[3] != outputs[4])
    plain = np.asarray(jax.jit(functools.partial(attend, implementation='xla'))(q, k, v))
    noise = outputs.std(0) / np.sqrt(200)
    assert np.mean(np.abs(outputs.mean(0) - plain) < 3 * noise) > 0.99
    # With ones as values, the output is the share of probability that was kept, divided by 0.75.
    ones = jax.jit(
        lambda key: attend(
            jnp.zeros_like(q), k, jnp.ones_like(v), dropout_rate=0.25, dropout_key=key, implementation=program
        )
    )
    kept = 0.75 * np.asarray(ones(jax.random.key(0)))
    assert abs(kept.mean() - 0.75) < 0.02 and np.abs(kept[:, :1] - kept).max() < 1e-6


def test_the_backward_pass_redraws_the_dropout_mask():
    """Only inputs, output and lse are saved, not even a bit for each key and head; no tile is recomputed."""
    q, k, v, table, _ = inputs(queries=24, keys=400)
    options = dict(bias=RelativeBias(True), implementation='chunked')
    dropout = dict(dropout_rate=0.3, dropout_key=jax.random.key(0))
    y, vjp = jax.vjp(lambda q, k, v, table: attend(q, k, v, bias_table=table, **options, **dropout), q, k, v, table)
    kept = sum(x.nbytes for x in jax.tree.leaves(vjp))
    assert kept - sum(x.nbytes for x in (q, k, v, table, y)) - 4 * B * 24 * N < B * N * 400 / 8

    def products(**dropout):
        run = lambda q: jnp.sum(attend(q, k, v, implementation='chunked', **dropout))
        return str(jax.make_jaxpr(jax.grad(run))(q)).count('dot_general')

    assert products(**dropout) == products() == 2 + 5


def memory(length, program):
    """Bytes of temporaries of output and gradients."""
    x = jax.ShapeDtypeStruct((2, length, N, H), jnp.float32)

    def loss(q, k, v, table):
        return jnp.sum(attend(q, k, v, bias_table=table, bias=RelativeBias(True), implementation=program))

    table = jax.ShapeDtypeStruct((N, 32), jnp.float32)
    compiled = jax.jit(jax.grad(loss, (0, 1, 2, 3))).lower(x, x, x, table).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_memory_of_tiles_grows_linearly_with_the_length(monkeypatch):
    monkeypatch.setitem(chunked._TILE_LOGITS, 'cpu', 64 * 2048)
    monkeypatch.setattr(chunked, '_TILE_ROWS', 64)
    whole = 2 * N * 2048 * 2048 * 4
    at_2048, at_8192 = memory(2048, 'chunked'), memory(8192, 'chunked')
    assert at_2048 < whole / 4 < memory(2048, 'xla')
    assert at_8192 < 4.5 * at_2048


@pytest.mark.parametrize('mesh, kv_heads', [((2, 1, 4), 4), ((1, 2, 4), 2), ((2, 2, 2), 1)], ids=str)
def test_eight_devices_match_one(mesh, kv_heads):
    batch = 8
    q, k, v, table, dy = inputs(batch=batch, kv_heads=kv_heads)
    segments = np.tile(SEGMENTS, (batch // 2, 1))
    options = dict(
        bias=RelativeBias(False),
        causal=True,
        q_segment_ids_BT=segments,
        kv_segment_ids_BS=segments,
        dropout_rate=0.3,
        dropout_key=jax.random.key(0),
    )
    alone = output_and_gradients(q, k, v, table, dy, 'chunked', **options)
    with sharding.use(sharding.create_sharding(MeshConfig(*mesh))) as placed:
        heads = placed.named(('batch', None, 'act_heads', None))
        kv = placed.named(('batch', None, 'act_kv_heads', None), k.shape)
        arrays = [
            jax.device_put(x, s) for x, s in ((q, heads), (k, kv), (v, kv), (table, placed.replicated()), (dy, heads))
        ]
        compiled, arguments = compile_with_gradients(*arrays, 'chunked', **options)
        spread = compiled(*arguments)
        assert spread[0].sharding.is_equivalent_to(heads, 4)
        assert 'all-gather' not in compiled.as_text()
    assert_near(spread, alone, 2e-6)


LONG_IDS = np.array([[1] * 7 + [2] * 12 + [0] * 5, [3] * 24], np.int32)
LONG_PREFIX = np.array([[1] * 3 + [0] * 4 + [1] * 5 + [0] * 12, [1] * 12 + [0] * 12], np.int32)
SPLIT = {
    'packed encoder': dict(
        bias=RelativeBias(True),
        q_segment_ids_BT=LONG_IDS,
        kv_segment_ids_BS=LONG_IDS,
        dropout_rate=0.3,
        dropout_key=jax.random.key(0),
    ),
    'decoder': dict(bias=RelativeBias(False, 8, 12), causal=True, kv_heads=1),
    'prefix': dict(causal=True, prefix_BS=LONG_PREFIX, kv_heads=2, soft_cap=2.0, scale=0.5),
    'window': dict(causal=True, window=7, bias=RelativeBias(False, 8, 12), kv_heads=2),
    'window, far prefix': dict(causal=True, window=4, far_prefix=True, prefix_BS=LONG_PREFIX, kv_heads=2),
    'window, more keys after than before': dict(window=(2, 5), bias=RelativeBias(True, 8, 12), kv_heads=2),
    'cross': dict(
        keys=16,
        q_segment_ids_BT=LONG_IDS,
        kv_segment_ids_BS=LONG_IDS[:, 4:20],
        dropout_rate=0.2,
        dropout_key=jax.random.key(1),
    ),
    'keys that do not divide': dict(
        keys=13, kv_lengths_B=np.array([9, 13], np.int32), q_offset=-5, causal=True, bias=RelativeBias(True)
    ),
    'queries that do not divide': dict(queries=13, q_offset=3, causal=True, bias=RelativeBias(True)),
}


@pytest.mark.parametrize('program', PROGRAMS)
@pytest.mark.parametrize('case', SPLIT)
def test_queries_and_keys_split_over_their_length_match_the_reference(case, program):
    options = dict(SPLIT[case])
    shapes = dict(queries=24, keys=24) | {
        name: options.pop(name) for name in ('kv_heads', 'queries', 'keys') if name in options
    }
    arrays = inputs(**shapes, buckets=options['bias'].num_buckets if 'bias' in options else 32)
    with sharding.use(sharding.create_sharding(MeshConfig(data=2, context=2, tensor=2))) as placed:
        axes = ('batch', 'length', 'act_heads', None)
        q, k, v, table, dy = arrays
        q, dy = (jax.device_put(x, placed.named(axes, x.shape)) for x in (q, dy))
        results = output_and_gradients(q, k, v, table, dy, program, **options)
        if shapes['queries'] == 24:
            assert results[0].sharding.is_equivalent_to(placed.named(axes), 4)
    assert_near(results, reference(*arrays, options), 1e-5)


def test_batch_and_heads_that_do_not_divide_over_the_mesh():
    q, k, v, table, dy = inputs(batch=3)
    alone = output_and_gradients(q, k, v, table, dy, 'chunked', causal=True)
    with sharding.use(sharding.create_sharding(MeshConfig(1, 1, 8))):  # 4 heads over 8
        assert_near(output_and_gradients(q, k, v, table, dy, 'chunked', causal=True), alone, 2e-6)


def test_saving_the_saved_names_avoids_recomputing_forward_tiles():
    q, k, v, *_ = inputs()

    def products(policy):
        layer = jax.checkpoint(lambda q: jnp.sum(attend(q, k, v, implementation='chunked')), policy=policy)
        return str(jax.make_jaxpr(jax.grad(layer))(q)).count('dot_general')

    assert products(None) == 2 + 2 + 5  # forward, forward again, backward
    assert products(jax.checkpoint_policies.save_only_these_names(*SAVED_NAMES)) == 2 + 5


def test_the_choice_of_implementation():
    assert implementations.choose('auto', 1, 4096, 'cpu')[0] == 'xla'
    assert implementations.choose('chunked', 1, 4096, 'cpu')[0] == 'xla'
    assert implementations.choose('xla', 4096, 4096, 'tpu')[0] == 'xla'
    assert implementations.choose('auto', 512, 512, 'cpu')[0] == 'chunked'
    for platform in ('tpu', 'gpu'):
        assert implementations.choose('auto', 256, 512, platform)[0] == 'xla'
    for platform, kernel in (('tpu', 'flash_tpu'), ('gpu', 'flash_gpu')):
        assert implementations.choose('auto', 512, 512, platform)[0] == kernel
        assert implementations.choose('auto', 64, 65536, platform)[0] == 'chunked'
    assert implementations.choose('auto', 2048, 2048, 'tpu', 'a reason') == (
        'chunked',
        'at least 262144 logits a head; not flash_tpu: a reason',
    )


def test_the_choice_is_logged_once(caplog):
    attention._log_once.cache_clear()
    q, k, v, *_ = inputs()
    with caplog.at_level(logging.INFO, logger='t5flan'):
        for _ in range(2):
            jax.eval_shape(functools.partial(attend, implementation='chunked'), q, k, v)
    assert [record.getMessage() for record in caplog.records] == ['attention on cpu: chunked (as configured)']


def test_tile_sizes(monkeypatch):
    monkeypatch.setitem(chunked._TILE_LOGITS, 'cpu', 100 * 1000)
    monkeypatch.setitem(chunked._TILE_LOGITS, 'other', 1000 * 1000)
    tile = functools.partial(chunked._tile_size, platform='cpu', rows=64)
    assert tile(100, 1000, 6, 6) == (100, 1)
    assert tile(10, 1000, 12, 12) == (10, 6)  # ten would fit, six divide the heads
    assert tile(10, 1000, 12, 2) == (10, 1)
    assert tile(101, 1000, 6, 6) == (56, 1)
    assert tile(1024, 1000, 6, 6) == (96, 1)
    assert tile(1024, 10**6, 6, 6) == (64, 1)  # no fewer rows, however long the keys
    assert tile(1024, 10**6, 6, 1) == (16, 1)  # six heads of ten queries, rounded up
    assert tile(1024, 10**6, 64, 1) == (8, 1)
    assert chunked._tile_size(100, 1000, 6, 6, 'tpu', 64) == (100, 6)


BAD = {
    'k.*expected \\[B, T, N, H\\]': dict(k=(B, S, H)),
    'equal B and H': dict(k=(B + 1, S, N, H), v=(B + 1, S, N, H)),
    'values of the shape': dict(v=(B, S + 1, N, H)),
    'no empty axis': dict(k=(B, 0, N, H), v=(B, 0, N, H)),
    'ModelConfig.num_kv_heads': dict(k=(B, S, 3, H), v=(B, S, 3, H)),
    'one floating-point dtype': dict(dtype=jnp.bfloat16),
    'prefix_BS of \\(2, 3\\)': dict(causal=True, prefix_BS=jnp.ones((B, 3), bool)),
    'without causal': dict(prefix_BS=jnp.ones((B, S), bool)),
    'far_prefix=True without prefix_BS': dict(causal=True, window=3, far_prefix=True),
    'without kv_segment_ids_BS': dict(q_segment_ids_BT=jnp.ones((B, T), jnp.int32)),
    'kv_lengths_B of \\(2,\\) float32': dict(kv_lengths_B=jnp.ones(B)),
    'q_offset of \\(2,\\)': dict(q_offset=jnp.ones(B, jnp.int32)),
    'only one of': dict(bias=RelativeBias(True)),
    'ModelConfig.relative_buckets': dict(bias=RelativeBias(True), bias_table=jnp.ones((N, 8))),
    'ModelConfig.attention_soft_cap': dict(soft_cap=0.0),
    'window=0.*ModelConfig.attention_window': dict(window=0),
    'window=2.5.*ModelConfig.attention_window': dict(window=2.5),
    'window=\\(3, -1\\).*pair \\(before, after\\)': dict(window=(3, -1)),
    'window=\\(3,\\), expected': dict(window=(3,)),
    'ModelConfig.dropout_rate': dict(dropout_rate=1.0, dropout_key=jax.random.key(0)),
    'needs a dropout_key': dict(dropout_rate=0.1),
    'Set ModelConfig.attention': dict(implementation='flash'),
    "runs on TPU, not cpu. Set ModelConfig.attention='chunked'": dict(implementation='flash_tpu'),
}


@pytest.mark.parametrize('message', BAD)
def test_invalid_arguments_raise_a_one_line_error(message):
    options = dict(BAD[message])
    q = jnp.ones((B, T, N, H), options.pop('dtype', jnp.float32))
    k, v = (jnp.ones(options.pop(name, (B, S, N, H))) for name in 'kv')
    with pytest.raises(UserError, match=message) as error:
        attend(q, k, v, **options)
    assert '\n' not in str(error.value)
