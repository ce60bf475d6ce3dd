"""Speed and memory of attention, output and all gradients, plain ('xla') against tiles ('chunked').

    python benchmarks/attention.py                    # 8 x 512 and 1 x 8192, 6 heads of 64: T5 1.1 small's encoder
    python benchmarks/attention.py --sizes 8x114x512   # rows x queries x keys (queries alone: as many keys)

Prints the median time and XLA's temporary memory of each, and their ratios. A program that needs more than half of
the free memory is compiled and not run (nan). Hardware: any; on 2 CPU cores a few minutes, most of them for the plain 8192.
"""

import argparse
import functools
import os
import time

import jax
import jax.numpy as jnp
import numpy as np

from t5flan.kernels.attention import RelativeBias, attend


def compile_step(rows: int, queries: int, keys: int, heads: int, dtype: str, implementation: str) -> tuple:
    """A compiled (output, gradients of q, k, v and the bias table) of T5's encoder attention, and inputs for it."""
    rng = np.random.default_rng(0)
    shapes = [(rows, length, heads, 64) for length in (queries, keys, keys, queries)]
    q_BTNH, k_BSKH, v_BSKH, dy_BTNH = (jnp.asarray(0.3 * rng.normal(size=shape), dtype) for shape in shapes)
    table_NR = jnp.asarray(rng.normal(size=(heads, 32)), jnp.float32)
    seen_BS = jnp.ones((rows, keys), jnp.int32)

    @jax.jit
    def step(q_BTNH, k_BSKH, v_BSKH, table_NR, dy_BTNH, seen_BS):
        forward = functools.partial(attend, bias=RelativeBias(bidirectional=True), kv_segment_ids_BS=seen_BS,
                                    implementation=implementation)
        y_BTNH, vjp = jax.vjp(lambda q, k, v, table: forward(q, k, v, bias_table=table), q_BTNH, k_BSKH, v_BSKH, table_NR)
        return y_BTNH, vjp(dy_BTNH)

    inputs = (q_BTNH, k_BSKH, v_BSKH, table_NR, dy_BTNH, seen_BS)
    return step.lower(*inputs).compile(), inputs


def median_ms(compiled, inputs: tuple, repeats: int) -> float:
    """Median wall time of a call in milliseconds, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*inputs))
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times[1:]))


def main() -> None:
    """Prints one line for each size and program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--sizes', nargs='+', default=['8x512', '1x8192'], metavar='ROWSxQUERIES[xKEYS]')
    parser.add_argument('--heads', type=int, default=6)
    parser.add_argument('--dtype', default='float32')
    parser.add_argument('--repeats', type=int, default=3)
    args = parser.parse_args()
    free = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_AVPHYS_PAGES')
    print(f'output and gradients of attention, {args.heads} heads x 64, {args.dtype}, on {jax.devices()[0].device_kind}')
    for size in args.sizes:
        rows, queries, *keys = (int(number) for number in size.split('x'))
        measured = {}
        for implementation in ('xla', 'chunked'):
            compiled, inputs = compile_step(rows, queries, keys[0] if keys else queries, args.heads, args.dtype,
                                            implementation)
            temporary = compiled.memory_analysis().temp_size_in_bytes
            took = median_ms(compiled, inputs, args.repeats) if temporary < 0.5 * free else float('nan')
            measured[implementation] = (took, temporary)
            print(f'{size:>12} {implementation:8} {took:9.1f} ms {temporary / 2**20:9.1f} MiB temporary', flush=True)
        time_ratio, memory_ratio = (chunked / xla for xla, chunked in zip(*measured.values(), strict=True))
        print(f'{size:>12} chunked : xla = {time_ratio:.2f} of the time, {memory_ratio:.3f} of the memory', flush=True)


if __name__ == '__main__':
    main()
