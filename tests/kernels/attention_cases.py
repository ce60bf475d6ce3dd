"""Inputs, options and checks for the kernels of every device."""

import jax
import jax.numpy as jnp
import numpy as np

from t5flan import sharding
from t5flan.kernels.attention import RelativeBias, attend
from t5flan.mesh import MeshConfig
from tests.kernels.attention_reference import assert_near, compile_with_gradients, output_and_gradients, reference

QUICK = {'xla_backend_optimization_level': 0}  # interpreted programs take longer to compile than to run
TOLERANCE = {jnp.float32: 1e-5, jnp.bfloat16: 1e-2, jnp.float16: 1e-2}


def inputs(batch=1, queries=200, keys=None, heads=2, kv_heads=None, head_dim=64, buckets=32, seed=0, dtype=jnp.float32):
    """q, k, v, the bias table and a cotangent of the output."""
    rng = np.random.default_rng(seed)
    keys, kv_heads = keys or queries, kv_heads or heads
    sizes = [
        (batch, queries, heads, head_dim),
        (batch, keys, kv_heads, head_dim),
        (batch, keys, kv_heads, head_dim),
        (heads, buckets),
        (batch, queries, heads, head_dim),
    ]
    # Logits of about unit size: with larger ones a softmax selects one key, and its gradient is zero.
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


PACKED = segments(1, 2, 300)
PREFIX = (segments(2, 2, 300, 6) % 2).astype(np.int32)
CASES = {
    'no option, one block': ({}, dict(queries=128, heads=1)),
    'encoder': (
        dict(bias=RelativeBias(True), kv_segment_ids_BS=(PACKED > 0).astype(np.int32)),
        dict(batch=2, queries=300),
    ),
    'packed encoder': (
        dict(bias=RelativeBias(True, 8, 16), q_segment_ids_BT=PACKED, kv_segment_ids_BS=PACKED),
        dict(batch=2, queries=300),
    ),
    'decoder, distances far beyond the band': (
        dict(bias=RelativeBias(False, 8, 9), causal=True),
        dict(queries=900, heads=1),
    ),
    'both ways, far beyond the band': (dict(bias=RelativeBias(True, 8, 9)), dict(queries=140, keys=900, heads=1)),
    'grouped heads of 128': (
        dict(bias=RelativeBias(False), causal=True, scale=0.3),
        dict(queries=256, heads=4, kv_heads=2, head_dim=128),
    ),
    'grouped heads of 64': (
        dict(bias=RelativeBias(True), soft_cap=2.0),
        dict(queries=130, keys=200, heads=4, kv_heads=2),
    ),
    'three heads to a key': (dict(causal=True), dict(queries=130, heads=6, kv_heads=2)),
    'one key head of 256': (
        dict(causal=True, soft_cap=1.5, scale=0.7),
        dict(queries=130, heads=2, kv_heads=1, head_dim=256),
    ),
    'prefix, packed, narrow heads': (
        dict(
            causal=True, prefix_BS=PREFIX, q_segment_ids_BT=PACKED, kv_segment_ids_BS=PACKED, bias=RelativeBias(False)
        ),
        dict(batch=2, queries=300, heads=4, head_dim=24),
    ),
    'prefix, odd heads': (
        dict(causal=True, prefix_BS=PREFIX.astype(bool)),
        dict(batch=2, queries=300, heads=3, head_dim=40),
    ),
    'cross, packed, dropout': (
        dict(
            q_segment_ids_BT=PACKED[:, :150], kv_segment_ids_BS=PACKED, dropout_rate=0.4, dropout_key=jax.random.key(3)
        ),
        dict(batch=2, queries=150, keys=300),
    ),
    'later queries': (
        dict(
            q_offset=170,
            causal=True,
            bias=RelativeBias(False, 8, 30),
            soft_cap=2.0,
            dropout_rate=0.2,
            dropout_key=jax.random.key(4),
            kv_lengths_B=np.array([250, 0], np.int32),
        ),
        dict(batch=2, queries=100, keys=300, heads=4, kv_heads=1),
    ),
    'window, decoder': (dict(window=70, causal=True, soft_cap=2.0), dict(queries=400, heads=4, kv_heads=2)),
    'window, encoder': (
        dict(window=50, bias=RelativeBias(True, 8, 30), kv_segment_ids_BS=(PACKED > 0).astype(np.int32)),
        dict(batch=2, queries=300),
    ),
    'window, prefix, packed': (
        dict(window=90, causal=True, prefix_BS=PREFIX, q_segment_ids_BT=PACKED, kv_segment_ids_BS=PACKED),
        dict(batch=2, queries=300, heads=1),
    ),
    'window, far prefix, packed': (
        dict(
            window=40,
            causal=True,
            far_prefix=True,
            q_offset=110,
            prefix_BS=np.broadcast_to(np.arange(300) < 110, (2, 300)).astype(np.int32),
            q_segment_ids_BT=PACKED[:, 110:],
            kv_segment_ids_BS=np.concatenate([PACKED[:, 40:150], PACKED[:, 110:]], axis=1),
            soft_cap=2.0,
        ),
        dict(batch=2, queries=190, keys=300, heads=4, kv_heads=2),
    ),
    'window, more keys after than before': (
        dict(window=(20, 90), bias=RelativeBias(True, 8, 30), kv_segment_ids_BS=(PACKED > 0).astype(np.int32)),
        dict(batch=2, queries=300, heads=4, kv_heads=2),
    ),
    'window, no key after': (dict(window=(150, 0), soft_cap=2.0), dict(queries=400, heads=2, kv_heads=1)),
    'queries before the keys': (dict(q_offset=-130, causal=True, bias=RelativeBias(True)), dict(queries=300, keys=150)),
}


def check_program(program, options, shape, dtype=jnp.float32, seed=0):
    """Compares the output and four gradients with the reference, which gets the rounded inputs."""
    options = dict(options)
    if 'bias' in options:
        shape = dict(shape, buckets=options['bias'].num_buckets)
    arrays = inputs(**shape, seed=seed, dtype=dtype)
    results = output_and_gradients(*arrays, program, QUICK, **options)
    assert [x.dtype for x in results] == [dtype] * 4 + [jnp.float32]
    assert all(np.all(np.isfinite(np.asarray(x, np.float32))) for x in results)
    assert_near(results, reference(*arrays, options), TOLERANCE[dtype])


def draw(seed):
    """Random options, shape, dtype, and blocks of queries and keys."""
    rng = np.random.default_rng(seed)
    pick = lambda *choices: choices[rng.integers(len(choices))]
    blocks = pick(128, 256), pick(128, 256, 384)
    batch, kv_heads, share = pick(1, 2), pick(1, 2, 3), pick(1, 2, 3)
    queries, keys = (int(n) for n in rng.integers(2, 700, 2))
    ids_S = segments(seed, batch, keys, pick(1, 4, 9))
    options = dict(
        scale=pick(1.0, 0.4), soft_cap=pick(None, 2.0), causal=pick(True, False), q_offset=pick(0, 0, 77, -200)
    )
    if pick(True, False):
        buckets = pick(8, 32)
        options['bias'] = RelativeBias(pick(True, False), buckets, pick(buckets, 128))
    if options['causal'] and pick(True, False):
        options['prefix_BS'] = (segments(seed + 1, batch, keys, 6) % 2).astype(np.int32)
    if pick(True, False):
        options['kv_segment_ids_BS'] = ids_S
        if pick(True, False):
            options['q_segment_ids_BT'] = np.resize(ids_S[:, rng.integers(keys) :], (batch, queries)).astype(np.int32)
    if pick(True, False):
        options['kv_lengths_B'] = rng.integers(0, keys + 1, batch).astype(np.int32)
    if pick(True, False):
        options |= dict(dropout_rate=0.3, dropout_key=jax.random.key(seed))
    shape = dict(
        batch=batch,
        queries=queries,
        keys=keys,
        heads=kv_heads * share,
        kv_heads=kv_heads,
        head_dim=pick(8, 64, 64, 96, 128, 256),
    )
    dtype = pick(jnp.float32, jnp.float32, jnp.bfloat16)
    if pick(True, False):
        options['window'] = int(rng.integers(1, 400))
    if 'window' in options and 'prefix_BS' in options:
        options['far_prefix'] = pick(True, False)
    if 'window' in options and pick(True, False):
        options['window'] = int(rng.integers(0, 400)), int(rng.integers(0, 400))
    return options, shape, dtype, blocks


def attention_step(bias, ids=True, prefix=False, dropped=False, **options):
    """A function: output and gradients of q, k, v and the bias table."""

    def step(q, k, v, table, dy, ids_BT, q_offset=0):
        masks = dict(q_segment_ids_BT=ids_BT, kv_segment_ids_BS=ids_BT) if ids else {}
        masks |= dict(prefix_BS=ids_BT) if prefix else {}
        masks |= dict(dropout_rate=0.1, dropout_key=jax.random.key(0)) if dropped else {}

        def forward(q, k, v, table):
            bias_table = None if bias is None else table
            return attend(q, k, v, bias_table=bias_table, bias=bias, q_offset=q_offset, **masks, **options)

        y, vjp = jax.vjp(forward, q, k, v, table)
        return y, vjp(dy)

    return step


def check_queries_without_keys(program, arrays, compiler_options=None):
    """A query of the first row sees no key: its output and gradients are zero."""
    options = dict(bias=RelativeBias(True), kv_lengths_B=np.array([0, 5], np.int32))
    results = output_and_gradients(*arrays, program, compiler_options, **options)
    for x in results:
        assert np.all(np.isfinite(x))
    for x in results[:4]:
        assert np.all(x[0] == 0.0) and np.any(x[1] != 0.0)


def largest_array(implementation, length):
    """Elements of the largest array that output and gradients of `length` queries and keys with a bias allocate."""
    q, table = jax.ShapeDtypeStruct((1, length, 2, 64), jnp.float32), jax.ShapeDtypeStruct((2, 32), jnp.float32)

    def loss(q, k, v, table):
        return jnp.sum(attend(q, k, v, bias_table=table, bias=RelativeBias(True), implementation=implementation))

    return max(sizes_of_arrays(jax.make_jaxpr(jax.grad(loss, (0, 1, 2, 3)))(q, q, q, table).jaxpr))


def sizes_of_arrays(jaxpr):
    """The number of elements of every array that a program allocates, including those inside its kernels."""
    for equation in jaxpr.eqns:
        for variable in equation.outvars:
            yield getattr(variable.aval, 'size', 0)
        for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, 'eqns')):
            parameter = getattr(parameter, 'jaxpr', parameter)
            if hasattr(parameter, 'eqns'):
                yield from sizes_of_arrays(parameter)


def packed_decoder(ids):
    """The options of a T5 decoder with dropout on packed rows of these segment ids."""
    return dict(
        bias=RelativeBias(False),
        causal=True,
        q_segment_ids_BT=ids,
        kv_segment_ids_BS=ids,
        dropout_rate=0.3,
        dropout_key=jax.random.key(0),
    )


def check_eight_devices(program, mesh, kv_heads, length, head_dim):
    """Results on a `mesh` of data x fsdp x tensor match those of one device, and nothing is gathered."""
    batch = 4
    arrays = inputs(batch=batch, queries=length, heads=4, kv_heads=kv_heads, head_dim=head_dim)
    ids = segments(0, batch, length)
    options = packed_decoder(ids)
    alone = output_and_gradients(*arrays, program, QUICK, **options)
    with sharding.use(sharding.create_sharding(MeshConfig(*mesh))) as placed:
        heads = placed.named(('batch', None, 'act_heads', None))
        kv = placed.named(('batch', None, 'act_kv_heads', None), arrays[1].shape)
        arrays = [
            jax.device_put(x, s) for x, s in zip(arrays, (heads, kv, kv, placed.replicated(), heads), strict=True)
        ]
        compiled, arguments = compile_with_gradients(*arrays, program, QUICK, **options)
        spread = compiled(*arguments)
        assert spread[0].sharding.is_equivalent_to(heads, 4)
        assert 'all-gather' not in compiled.as_text()
    assert_near(spread, alone, 2e-6)


def check_split_lengths(program, length):
    """Rows split along their length over devices match the reference."""
    ids = segments(3, 2, length)
    options = packed_decoder(ids) | dict(q_offset=5)
    arrays = inputs(batch=2, queries=length, heads=2, kv_heads=1)
    with sharding.use(sharding.create_sharding(MeshConfig(data=2, context=2, tensor=2))):
        results = output_and_gradients(*arrays, program, QUICK, **options)
    assert_near(results, reference(*arrays, options), 1e-5)


def products(program, policy):
    """How many matrix products a rematerialized layer computes, forward and backward."""
    q, k, v, *_ = inputs(queries=128, heads=1)
    layer = jax.checkpoint(lambda q, k, v: jnp.sum(attend(q, k, v, implementation=program)), policy=policy)
    step = jax.jit(jax.value_and_grad(layer, (0, 1, 2)))
    return step.lower(q, k, v).compile(QUICK).as_text().count(' dot(')
