"""Attention in float64, one head of one row at a time, and calls of `attend()` with all gradients."""

import jax
import numpy as np

from t5flan.kernels.attention import attend
from t5flan.kernels.relative_bias import relative_buckets


def seen_keys(b, t, keys, options):
    """Which of the keys query t of row b sees, bool of shape [S]."""
    get = lambda name, *index: None if options.get(name) is None else options[name][index]
    at, seen = np.arange(keys), np.ones(keys, bool)
    if (kv_segments := get('kv_segment_ids_BS', b)) is not None:
        q_segment = get('q_segment_ids_BT', b, t)
        seen &= (kv_segments != 0) & (q_segment is None or kv_segments == q_segment)
    if get('kv_lengths_B', b) is not None:
        seen &= at < get('kv_lengths_B', b)
    if options.get('causal'):
        prefix = get('prefix_BS', b)
        prefix = np.zeros(keys, bool) if prefix is None else prefix.astype(bool)
        seen &= (at <= t + options.get('q_offset', 0)) | prefix
    if (window := options.get('window')) is not None:
        before, after = window if isinstance(window, tuple) else (window - 1, window - 1)
        distance = at - t - options.get('q_offset', 0)
        near = (distance >= -before) & (distance <= after)
        seen &= near | (prefix if options.get('far_prefix') else False)
    return seen


def reference(q, k, v, table, dy, options):
    """Output and gradients of q, k, v and table, in float64, one head of one row at a time."""
    q, k, v, table, dy = (np.asarray(x, np.float64) for x in (q, k, v, table, dy))
    (batch, queries, heads, _), keys, group = q.shape, k.shape[1], q.shape[2] // k.shape[2]
    y, dq, dk, dv, dtable = (np.zeros_like(x) for x in (q, q, k, v, table))
    cap, scale, rate = options.get('soft_cap'), options.get('scale', 1.0), options.get('dropout_rate', 0.0)
    keep = np.ones((batch, heads, keys))
    if rate:
        keep = np.asarray(jax.random.bernoulli(options['dropout_key'], 1 - rate, keep.shape)) / (1 - rate)
    if options.get('bias'):
        position = np.arange(keys)[None] - np.arange(queries)[:, None] - options.get('q_offset', 0)
        bucket = relative_buckets(position, options['bias'], np)
    for b in range(batch):
        allowed = np.stack([seen_keys(b, t, keys, options) for t in range(queries)])
        for n in range(heads):
            key, value = k[b, :, n // group], v[b, :, n // group]
            logits = scale * q[b, :, n] @ key.T
            slope = 1.0
            if cap:
                logits = cap * np.tanh(logits / cap)
                slope = 1 - (logits / cap) ** 2
            if options.get('bias'):
                logits = logits + table[n, bucket]
            weights = np.where(allowed, np.exp(logits - logits.max(-1, keepdims=True)), 0.0)
            weights /= np.where(allowed.any(-1, keepdims=True), weights.sum(-1, keepdims=True), 1.0)
            y[b, :, n] = (weights * keep[b, n]) @ value
            dv[b, :, n // group] += (weights * keep[b, n]).T @ dy[b, :, n]
            dweights = dy[b, :, n] @ value.T * keep[b, n]
            dlogits = weights * (dweights - (weights * dweights).sum(-1, keepdims=True))
            if options.get('bias'):
                np.add.at(dtable, (n, bucket), dlogits)
            dq[b, :, n] = scale * (dlogits * slope) @ key
            dk[b, :, n // group] += scale * (dlogits * slope).T @ q[b, :, n]
    return y, dq, dk, dv, dtable


def output_and_gradients(q, k, v, table, dy, program, compiler_options=None, **options):
    """`attend` and its gradients of q, k, v and table; `options` as for `compile_with_gradients`."""
    compiled, inputs = compile_with_gradients(q, k, v, table, dy, program, compiler_options, **options)
    return compiled(*inputs)


def compile_with_gradients(q, k, v, table, dy, program, compiler_options=None, **options):
    """One compiled program, and its inputs."""
    arrays = {name: value for name, value in options.items() if isinstance(value, np.ndarray | jax.Array)}
    fixed = {name: value for name, value in options.items() if name not in arrays}
    q_offset = fixed.pop('q_offset', 0)

    @jax.jit
    def run(q, k, v, table, dy, arrays, q_offset):
        def forward(q, k, v, table):
            return attend(
                q,
                k,
                v,
                bias_table=table if 'bias' in fixed else None,
                q_offset=q_offset,
                implementation=program,
                **arrays,
                **fixed,
            )

        y, vjp = jax.vjp(forward, q, k, v, table)
        return y, *vjp(dy)

    inputs = (q, k, v, table, dy, arrays, q_offset)
    return run.lower(*inputs).compile(compiler_options), inputs


def assert_near(actual, expected, tolerance):
    """Compares arrays, relative to the largest element of each."""
    for name, x, y in zip(('y', 'dq', 'dk', 'dv', 'dtable'), actual, expected, strict=True):
        y = np.asarray(y, np.float64)
        error = np.max(np.abs(np.asarray(x, np.float64) - y))
        assert error <= tolerance * max(1.0, np.max(np.abs(y))), f'{name} is off by {error}'
