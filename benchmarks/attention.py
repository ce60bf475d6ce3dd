"""Speed and memory of attention, output and all gradients: `xla` (whole arrays), `chunked` (tiles) and the kernels.

    python benchmarks/attention.py                    # 8 x 512 and 1 x 8192, 6 heads of 64: T5 1.1 small's encoder
    python benchmarks/attention.py --sizes 8x114x512   # rows x queries x keys (without keys: as many as queries)
    python benchmarks/attention.py --topologies v5p:2x2x1 v4:2x2x1 --heads 64 --dtype bfloat16 --sizes 1x16384 1x65536

For each size and implementation prints the median time and XLA's temporary memory, and their ratios. A program that
needs more than half of the free memory is compiled but not run (nan). Hardware: any; on 2 CPU cores a few minutes, most
of them for `xla` with 8192.

On a GPU the first command compares the kernels with T5's bias, in bfloat16, with cuDNN's attention without one and
XLA's program with it, for the encoders of T5 XXL and XL (and for heads of 128 and 256) and 1,024, 4,096 and 16,384
tokens. It prints times and TFLOP/s of the forward pass and of both passes, and two ratios; their targets are 0.7 of
cuDNN's rate and a third of XLA's time at 4,096 tokens. About 5 minutes on an H100. `benchmarks/attention_blocks_gpu.py`
searches for better blocks.

With --topologies nothing runs: `libtpu` compiles for those TPUs, or JAX's CUDA plugin for `h100` and `a100`, with the
given rows on each device (`t5flan/compiling/targets.py` says what to install). For TPUs it also counts the tiles that
the kernels skip with four masks. Half a minute for each topology and size. One query (8x1x32768) is a decoding step: it
prints the bytes that the program moves, in sizes of the KV cache.
"""

import argparse
import functools
import os
import re
import time

import jax
import jax.numpy as jnp
import numpy as np

from t5flan import sharding
from t5flan.compiling.targets import GPUS, gpu_devices, run_nothing_here, tpu_devices
from t5flan.kernels.attention import RelativeBias, attend
from t5flan.kernels.operands import AttentionSpec, Operands, visible_tiles
from t5flan.kernels.tpu import flash as flash_tpu
from t5flan.mesh import MeshConfig


def step_of(implementation: str, bidirectional: bool = True):
    """A jitted function: output, and gradients of q, k, v and the bias table, of T5's attention."""

    @jax.jit
    def step(q_BTNH, k_BSKH, v_BSKH, table_NR, dy_BTNH, seen_BS):
        forward = functools.partial(
            attend,
            bias=RelativeBias(bidirectional=bidirectional),
            kv_segment_ids_BS=seen_BS,
            implementation=implementation,
        )
        y_BTNH, vjp = jax.vjp(
            lambda q, k, v, table: forward(q, k, v, bias_table=table), q_BTNH, k_BSKH, v_BSKH, table_NR
        )
        return y_BTNH, vjp(dy_BTNH)

    return step


def compile_step(
    rows: int, queries: int, keys: int, heads: int, head_dim: int, dtype: str, implementation: str
) -> tuple:
    """`step_of` compiled for the current device, and inputs for it."""
    rng = np.random.default_rng(0)
    shapes = [(rows, length, heads, head_dim) for length in (queries, keys, keys, queries)]
    q_BTNH, k_BSKH, v_BSKH, dy_BTNH = (jnp.asarray(0.3 * rng.normal(size=shape), dtype) for shape in shapes)
    table_NR = jnp.asarray(rng.normal(size=(heads, 32)), jnp.float32)
    inputs = (q_BTNH, k_BSKH, v_BSKH, table_NR, dy_BTNH, jnp.ones((rows, keys), jnp.int32))
    return step_of(implementation).lower(*inputs).compile(), inputs


def median_ms(compiled, inputs: tuple, repeats: int) -> float:
    """Median wall time of a call in milliseconds, after a warm-up call."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*inputs))
        times.append(time.perf_counter() - start)
    return 1e3 * float(np.median(times[1:]))


def measure(size: str, args: argparse.Namespace) -> None:
    """Prints times and memory on the current device, one line for each implementation."""
    rows, queries, keys = parse(size)
    free = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_AVPHYS_PAGES')
    kernels = {'tpu': ('flash_tpu',), 'gpu': ('flash_gpu',)}
    programs = ('xla', 'chunked', *kernels.get(jax.default_backend(), ()))
    measured = {}
    for implementation in programs:
        compiled, inputs = compile_step(rows, queries, keys, args.heads, args.head_dim, args.dtype, implementation)
        temporary = compiled.memory_analysis().temp_size_in_bytes
        took = median_ms(compiled, inputs, args.repeats) if temporary < 0.5 * free else float('nan')
        measured[implementation] = (took, temporary)
        print(f'{size:>12} {implementation:8} {took:9.1f} ms {temporary / 2**20:9.1f} MiB temporary', flush=True)
    for implementation in programs[1:]:
        time_ratio, memory_ratio = (a / b for a, b in zip(measured[implementation], measured['xla'], strict=True))
        ratios = f'{time_ratio:.2f} of the time, {memory_ratio:.3f} of the memory'
        print(f'{size:>12} {implementation} : xla = {ratios}', flush=True)


# Heads and head_dim: two encoders of T5, and two of the same width with larger heads.
GPU_SHAPES = {'T5 XXL': (64, 64), 'T5 XL': (32, 64), 'heads of 128': (32, 128), 'heads of 256': (16, 256)}
GPU_TOKENS = {1024: 16, 4096: 4, 16384: 1}  # and rows


def gpu_programs(cudnn: str = 'cudnn') -> dict:
    """Functions of q, k, v, the bias table and the seen keys, by name."""
    bias = RelativeBias(bidirectional=True)

    def ours(q, k, v, table, seen_BS, implementation='flash_gpu'):
        return attend(q, k, v, bias_table=table, bias=bias, kv_segment_ids_BS=seen_BS, implementation=implementation)

    return {
        'flash_gpu': ours,
        'flash_gpu, no bias': lambda q, k, v, table, seen_BS: attend(q, k, v, implementation='flash_gpu'),
        'cuDNN, no bias': lambda q, k, v, table, seen_BS: jax.nn.dot_product_attention(
            q, k, v, scale=1.0, implementation=cudnn
        ),
        'xla': functools.partial(ours, implementation='xla'),
    }


def compare_on_gpu(
    name: str,
    rows: int,
    tokens: int,
    heads: int,
    head_dim: int,
    programs: dict,
    args: argparse.Namespace,
) -> dict[tuple[str, bool], float]:
    """Prints times, rates and ratios; returns milliseconds by program, and whether with the backward pass."""
    rng = np.random.default_rng(0)
    q, k, v, dy = (jnp.asarray(0.3 * rng.normal(size=(rows, tokens, heads, head_dim)), args.dtype) for _ in range(4))
    inputs = (q, k, v, jnp.asarray(rng.normal(size=(heads, 32)), jnp.float32), jnp.ones((rows, tokens), jnp.int32))
    where, times = f'{name:12} {heads:2} x {head_dim:3}, {rows:2} x {tokens:5}', {}
    for backward in (False, True):
        flops = 4.0 * rows * heads * head_dim * tokens**2 * (3.5 if backward else 1.0)  # 2 products, and 5 more
        passes = 'both passes' if backward else 'forward'
        for program, forward in programs.items():
            times[program, backward], remark = time_on_gpu(forward, inputs, dy if backward else None, args.repeats)
            rate = f'{flops / times[program, backward] / 1e9:7.1f} TFLOP/s'
            print(f'{where} {passes:11} {program:18} {times[program, backward]:9.3f} ms {rate} {remark}', flush=True)
        cudnn, xla = (times[program, backward] / times['flash_gpu', backward] for program in ('cuDNN, no bias', 'xla'))
        rate = f'flash_gpu with the bias : cuDNN without = {cudnn:.2f} of the rate'
        print(f'{where} {passes:11} {rate}; xla : flash_gpu = {xla:.1f} times the time', flush=True)
    return times


def time_on_gpu(forward, inputs: tuple, dy, repeats: int) -> tuple[float, str]:
    """Median milliseconds of a call, measured over ten in a row; nan and the reason if it cannot run."""

    def both(*arrays):
        y, vjp = jax.vjp(lambda *four: forward(*four, arrays[4]), *arrays[:4])
        return y, vjp(arrays[5])

    step, inputs = jax.jit(both if dy is not None else forward), (*inputs, dy) if dy is not None else inputs
    try:
        compiled = step.lower(*inputs).compile()
        memory = (jax.devices()[0].memory_stats() or {}).get('bytes_limit', float('inf'))
        if compiled.memory_analysis().temp_size_in_bytes > 0.9 * memory:
            return float('nan'), f'needs {compiled.memory_analysis().temp_size_in_bytes / 2**30:.0f} GiB'
        return median_ms(lambda *arrays: [compiled(*arrays) for _ in range(10)], inputs, repeats) / 10, ''
    except (RuntimeError, TypeError, ValueError) as error:  # no memory, no cuDNN, or an unsupported shape
        return float('nan'), str(error).splitlines()[0][:120]


def parse(size: str) -> tuple[int, int, int]:
    """'8x114x512' -> rows, queries, keys."""
    rows, queries, *keys = (int(number) for number in size.split('x'))
    return rows, queries, keys[0] if keys else queries


def devices_of(topology: str) -> list:
    """The devices of a TPU slice, or two GPUs, to compile for."""
    return gpu_devices(GPUS[topology], 2) if topology in GPUS else tpu_devices(topology)


def temporaries(devices: list, size: str, args: argparse.Namespace, implementation: str) -> tuple[float, str]:
    """Bytes of temporaries on each device of a compiled program, and a remark."""
    rows, queries, keys = parse(size)
    with sharding.use(sharding.create_sharding(MeshConfig(data=len(devices)), devices)) as placed:

        def shaped(dtype: str, *shape: int, by_row: bool = True) -> jax.ShapeDtypeStruct:
            axes = ('batch' if by_row else None,) + (None,) * (len(shape) - 1)
            return jax.ShapeDtypeStruct(shape, dtype, sharding=placed.named(axes))

        rows *= len(devices)
        q, k = (shaped(args.dtype, rows, length, args.heads, args.head_dim) for length in (queries, keys))
        table, seen = shaped('float32', args.heads, 32, by_row=False), shaped('int32', rows, keys)
        try:
            compiled = step_of(implementation).lower(q, k, k, table, q, seen).compile()
        except jax.errors.JaxRuntimeError as error:
            needed = re.search(r'HLO temporaries \(([\d.]+)([GT])\) exceeds available HBM \(([\d.]+)G\)', str(error))
            if not needed:
                raise
            return float(needed[1]) * {'G': 2**30, 'T': 2**40}[needed[2]], f'does not fit in {needed[3]} GiB'
        memory = compiled.memory_analysis()
        return memory.temp_size_in_bytes, f'of {memory.peak_memory_in_bytes / 2**30:.2f} GiB in total'


def tiles_skipped(device_kind: str, size: str, args: argparse.Namespace) -> dict[str, float]:
    """The share of tiles, and so of FLOPs, that the TPU kernels skip, by mask."""
    _, queries, keys = parse(size)
    largest = flash_tpu.largest_blocks(device_kind, args.head_dim, args.dtype, RelativeBias(True))
    blocks = flash_tpu.block_sizes(queries, keys, largest)
    q, k = (jnp.zeros((1, length, 1, 128), 'bfloat16') for length in (queries, keys))
    masks = {'none': (False, 1), 'causal': (True, 1), '4 packed': (False, 4), '4 packed, causal': (True, 4)}
    shares = {}
    for name, (causal, examples) in masks.items():

        def seen(q, k, ids_T, ids_S, causal=causal):
            operands = Operands(q, k, k, jnp.int32(0), q_segment_ids_BT=ids_T, kv_segment_ids_BS=ids_S)
            _, arrays = flash_tpu.arrange(AttentionSpec(causal), operands, blocks)
            return jnp.mean(visible_tiles(arrays, *blocks, causal), dtype=jnp.float32)

        ids_T, ids_S = (1 + np.arange(length)[None] * examples // length for length in (queries, keys))
        shares[name] = 1.0 - float(jax.jit(seen)(q, k, ids_T, ids_S))
    return shares


def compare_decoding(topology: str, size: str, args: argparse.Namespace) -> None:
    """Prints the bytes that a decoding step moves, in sizes of the KV cache (1: the cache is read once)."""
    rows, _, keys = parse(size)
    placed = jax.sharding.SingleDeviceSharding(devices_of(topology)[0])
    shaped = lambda dtype, *shape: jax.ShapeDtypeStruct(shape, dtype, sharding=placed)
    q = shaped(args.dtype, rows, 1, args.heads, args.head_dim)
    k = shaped(args.dtype, rows, keys, args.kv_heads, args.head_dim)
    bias = RelativeBias(bidirectional=False)
    step = jax.jit(
        lambda q, k, v, table, at, seen_BS: attend(
            q, k, v, bias_table=table, bias=bias, q_offset=at, causal=True, kv_segment_ids_BS=seen_BS
        )
    )
    table, at, seen = shaped('float32', args.heads, 32), shaped('int32'), shaped('int32', rows, keys)
    compiled = step.lower(q, k, k, table, at, seen).compile()
    cache = 2 * rows * keys * args.kv_heads * args.head_dim * jnp.dtype(args.dtype).itemsize
    moved, kept = compiled.cost_analysis()['bytes accessed'], compiled.memory_analysis().temp_size_in_bytes
    heads = f'one query of {args.heads} heads over {args.kv_heads}'
    ratios = f'moves {moved / cache:.2f} and keeps {kept / cache:.2f} times the {cache / 2**20:.0f} MiB of the KV cache'
    print(f'{topology:>12} {size:>10} {heads}: {ratios}', flush=True)


def compare_for(topology: str, size: str, args: argparse.Namespace) -> None:
    """Prints the skipped tiles, the memory of the kernels and of `xla`, and their ratio."""
    devices, needed = devices_of(topology), {}
    kernels = {'tpu': 'flash_tpu', 'gpu': 'flash_gpu'}[devices[0].platform]
    if kernels == 'flash_tpu':
        shares = tiles_skipped(devices[0].device_kind, size, args)
        skipped = ', '.join(f'{name} {share:.1%}' for name, share in shares.items())
        print(f'{topology:>12} {size:>10} tiles (and FLOPs) that flash_tpu skips: {skipped}', flush=True)
    for implementation in (kernels, 'xla'):
        needed[implementation], remark = temporaries(devices, size, args, implementation)
        temporary = f'{needed[implementation] / 2**20:11.1f} MiB temporary'
        print(f'{topology:>12} {size:>10} {implementation:9} {temporary}, {remark}', flush=True)
    ratio = needed[kernels] / needed['xla']
    print(f'{topology:>12} {size:>10} {kernels} : xla = {ratio:.2g} of the memory', flush=True)


def main() -> None:
    """Prints one line for each size and implementation."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--sizes', nargs='+', metavar='ROWSxQUERIES[xKEYS]', help='default: 8x512 1x8192; on a GPU: above'
    )
    parser.add_argument('--heads', type=int, default=6)
    parser.add_argument('--head_dim', type=int, default=64)
    parser.add_argument('--kv_heads', type=int, help='for decoding (default: as many as heads)')
    parser.add_argument('--dtype', help='default: float32; on a GPU bfloat16')
    parser.add_argument('--repeats', type=int, default=3)
    what = 'TPUs to compile for, as v5p:2x2x1, or h100, a100'
    parser.add_argument('--topologies', nargs='+', default=[], metavar='NAME', help=what)
    args = parser.parse_args()
    args.kv_heads = args.kv_heads or args.heads
    if not args.topologies and not args.sizes and jax.default_backend() == 'gpu':
        args.dtype = args.dtype or 'bfloat16'
        print(f'attention in {args.dtype} on {jax.devices()[0].device_kind}')
        for name, shape in GPU_SHAPES.items():
            for tokens, rows in GPU_TOKENS.items():
                compare_on_gpu(name, rows, tokens, *shape, gpu_programs(), args)
        return
    args.sizes, args.dtype = args.sizes or ['8x512', '1x8192'], args.dtype or 'float32'
    what = f'output and gradients of attention, {args.heads} heads x {args.head_dim}, {args.dtype}'
    if not args.topologies:
        print(f'{what}, on {jax.devices()[0].device_kind}')
        for size in args.sizes:
            measure(size, args)
        return
    run_nothing_here()
    print(f'{what}, compiled, on each device')
    for size in args.sizes:
        for topology in args.topologies:
            (compare_decoding if parse(size)[1] == 1 else compare_for)(topology, size, args)


if __name__ == '__main__':
    main()
