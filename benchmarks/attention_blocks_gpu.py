"""Block sizes of the GPU attention kernels: the compiler's report without a GPU, and times on a GPU.

    python benchmarks/attention_blocks_gpu.py --gpus h100 a100       # compiled, on any machine with jax-cuda12-plugin
    python benchmarks/attention_blocks_gpu.py --head_dims 64 128 256  # on a GPU: timed, the fastest of each kernel last

Compiled, a line shows the registers of a thread, the bytes that the compiler had to spill, a program's shared memory,
and how many warps a multiprocessor of that GPU holds at once. Of the blocks that spill nothing and allow at least 8
warps, a rule chooses those that read least (the most queries; for the gradient of keys the most keys), then the most
warps, then the largest tile, then the most stages: the `_TILINGS` of `t5flan/kernels/gpu/flash.py`, until measured
times replace them. `t5flan/compiling/targets.py` says what to install. 15 seconds for each line of blocks on one CPU
core; on a GPU about 5 minutes for each head size.
"""

import argparse
import importlib.util
import itertools
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from attention import median_ms  # in this folder

from t5flan.compiling.targets import GPUS, Gpu, gpu_devices, run_nothing_here
from t5flan.kernels.gpu import flash as flash_gpu
from t5flan.kernels.gpu.tile import Blocks, Tiling
from t5flan.kernels.operands import AttentionSpec, Operands
from t5flan.kernels.relative_bias import RelativeBias

ROWS, LENGTH, WIDTH = 1, 4096, 4096  # rows, tokens, and heads x head_dim of T5 XXL
KERNELS = {
    'forward': 'forward',
    'gradient_of_queries': 'gradient_of_queries',
    'gradient_of_keys': 'gradient_of_keys',
    'diagonals': 'gradient_of_bias',
}


def step_of(tiling: Tiling, head_dim: int, dtype: str, backward: bool):
    """A jitted attention of an encoder with key padding, and the shapes of its inputs."""
    bias, heads = RelativeBias(bidirectional=True), max(1, WIDTH // head_dim)

    def forward(q, k, v, table, seen_BS):
        operands = Operands(q, k, v, jnp.int32(0), table, key_seen_BS=seen_BS)
        return flash_gpu.flash_attention(AttentionSpec(bias=bias), operands, tiling)

    def both(q, k, v, table, seen_BS, dy):
        y, vjp = jax.vjp(lambda *arrays: forward(*arrays, seen_BS), q, k, v, table)
        return y, vjp(dy)

    x = ((ROWS, LENGTH, heads, head_dim), dtype)
    shapes = [x, x, x, ((heads, bias.num_buckets), 'float32'), ((ROWS, LENGTH), 'bool'), x]
    return (jax.jit(both), shapes) if backward else (jax.jit(forward), shapes[:-1])


class Compiled(NamedTuple):
    """The compiler's report on a kernel."""

    registers: int  # of a thread
    spilled: int  # bytes
    shared: int  # bytes of a program
    warps: int  # on a processor

    def __str__(self) -> str:
        return (
            f'{self.registers:4} registers, {self.spilled:5} bytes spilled, {self.shared / 1024:6.1f} KiB shared, '
            f'{self.warps:2} warps'
        )


def resources(gpu: Gpu, tiling: Tiling, head_dim: int, dtype: str, folder: Path) -> dict[str, Compiled]:
    """The compiler's report on each kernel, by its name in `Tiling`; empty if one needs too much shared memory."""
    for path in folder.iterdir():
        path.unlink()
    placed = jax.sharding.SingleDeviceSharding(gpu_devices(gpu)[0])
    step, shapes = step_of(tiling, head_dim, dtype, backward=True)
    try:
        step.lower(*[jax.ShapeDtypeStruct(*x, sharding=placed) for x in shapes]).compile()
    except jax.errors.JaxRuntimeError as error:
        if 'shared memory' not in str(error).lower():
            raise
        return {}
    launches = next(folder.glob('*thunk_sequence.txt')).read_text(encoding='utf-8')
    launched = {
        m[1]: (int(m[2]), int(m[3]))
        for m in re.finditer(r't5flan_attention_(\w+) grid: .*?threads: \[(\d+),.*?shared_memory: (\d+)', launches)
    }
    found = {}
    for path in folder.glob('*.ptx'):
        entry = re.search(r'\.entry t5flan_attention_(\w+)', path.read_text(encoding='utf-8'))
        if entry:
            threads, shared = launched[entry[1]]
            said = subprocess.run(
                [ptxas(), '-v', f'-arch={gpu.architecture}', path, '-o', os.devnull],
                check=True,
                capture_output=True,
                text=True,
            ).stderr
            registers, spilled = (
                int(re.search(pattern, said)[1]) for pattern in (r'Used (\d+) reg', r'(\d+) bytes spill st')
            )
            programs = min(65536 // (-(-registers // 8) * 8 * threads), gpu.shared // (shared + 1024))
            found[entry[1]] = Compiled(registers, spilled, shared, programs * threads // 32)
    return {kernel: found[name] for kernel, name in KERNELS.items()}


def ptxas() -> str:
    """The assembler: that of the wheel, or else the system's."""
    package = importlib.util.find_spec('nvidia')
    for folder in package.submodule_search_locations if package else ():
        for path in Path(folder).glob('*/bin/ptxas'):
            return str(path)
    return 'ptxas'


def candidates(head_dim: int, dtype: str) -> dict[str, list[Blocks]]:
    """Blocks to try for each kernel, without those whose sums and logits alone would fill a thread's registers."""
    narrow = head_dim >= 256 or jnp.dtype(dtype).itemsize == 4
    rows = (32, 64, 128) if narrow else (64, 128)
    found = {kernel: [] for kernel in KERNELS}
    for warps, stages, own, other in itertools.product((4, 8), (2, 3), rows, (32, 64, 128)):
        fits = lambda numbers, warps=warps: numbers <= 160 * 32 * warps
        if fits(own * (head_dim + other)) and other * head_dim <= 8192:
            found['forward'].append(Blocks(own, other, warps, stages))
        if fits(own * (head_dim + 2 * other)) and other <= 64:
            found['gradient_of_queries'].append(Blocks(own, other, warps, stages))
        if fits(own * 2 * (head_dim + other)) and other <= 64:
            found['gradient_of_keys'].append(Blocks(other, own, warps, stages))
    found['diagonals'] = [
        Blocks(size, size, warps, stages)
        for size in ((32,) if narrow else (32, 64))
        for warps in (4, 8)
        for stages in (1, 2)
    ]
    return found


def list_compiled(gpu: Gpu, head_dim: int, dtype: str, most_shared: int, folder: Path) -> None:
    """Prints a line for each kernel and candidate, and the rule's choice; one compilation covers all four kernels."""
    tried, lists = candidates(head_dim, dtype), {kernel: {} for kernel in KERNELS}
    for i in range(max(map(len, tried.values()))):
        tiling = Tiling(*(blocks[min(i, len(blocks) - 1)] for blocks in tried.values()))
        for kernel, compiled in resources(gpu, tiling, head_dim, dtype, folder).items():
            blocks = getattr(tiling, kernel)
            if blocks not in lists[kernel]:
                lists[kernel][blocks] = compiled
                print(
                    f'{gpu.name} {dtype} head_dim {head_dim:3} {kernel:20} {blocks.queries:3} x {blocks.keys:3}, '
                    f'{blocks.warps} warps, {blocks.stages} stages: {compiled}',
                    flush=True,
                )
    taken = Tiling(*(by_rule(kernel, lists[kernel], most_shared) for kernel in KERNELS))
    print(f'{gpu.name} {dtype} head_dim {head_dim:3} by the rule: {[tuple(blocks) for blocks in taken]}', flush=True)


def by_rule(kernel: str, compiled: dict[Blocks, Compiled], most_shared: int) -> Blocks:
    """The choice by the rule in this file's docstring."""
    own = lambda blocks: blocks.keys if kernel == 'gradient_of_keys' else blocks.queries
    good = [blocks for blocks, x in compiled.items() if not x.spilled and x.warps >= 8 and x.shared <= most_shared]
    return max(
        good, key=lambda blocks: (own(blocks), compiled[blocks].warps, blocks.queries * blocks.keys, blocks.stages)
    )


def tune(head_dim: int, dtype: str, repeats: int) -> Tiling:
    """Times every candidate of one kernel after another, with the best blocks so far for the rest; returns the best."""
    best = flash_gpu.largest_tiling(jax.devices()[0].device_kind, head_dim, dtype)
    rng = np.random.default_rng(0)
    for kernel, tried in candidates(head_dim, dtype).items():
        times = {}
        for blocks in dict.fromkeys([getattr(best, kernel), *tried]):
            step, shapes = step_of(best._replace(**{kernel: blocks}), head_dim, dtype, backward=kernel != 'forward')
            inputs = [jnp.asarray(0.3 * rng.normal(size=shape), kind) for shape, kind in shapes]
            try:
                times[blocks] = median_ms(step.lower(*inputs).compile(), inputs, repeats)
            except jax.errors.JaxRuntimeError as error:  # too much shared memory or too many registers
                print(f'{kernel:20} {tuple(blocks)}: {str(error).splitlines()[0][:100]}', flush=True)
                continue
            print(f'{kernel:20} {tuple(blocks)}: {times[blocks]:8.3f} ms', flush=True)
        best = best._replace(**{kernel: min(times, key=times.get)})
    print(f'{jax.devices()[0].device_kind}, {dtype}, head_dim {head_dim}: {best}', flush=True)
    return best


def main() -> None:
    """Prints one line for each kernel and its blocks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--gpus', nargs='+', default=[], choices=list(GPUS), help='compile for these GPUs, and run nothing'
    )
    parser.add_argument('--head_dims', nargs='+', type=int, default=[64, 128, 256])
    parser.add_argument('--dtype', default='bfloat16')
    parser.add_argument('--shared', type=int, default=2**20, help='largest shared memory of a program, in bytes')
    parser.add_argument('--repeats', type=int, default=20)
    args = parser.parse_args()
    if not args.gpus:
        for head_dim in args.head_dims:
            tune(head_dim, args.dtype, args.repeats)
        return
    with tempfile.TemporaryDirectory(prefix='t5flan-blocks-') as folder:
        # Read at the first compilation.
        os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} --xla_dump_to={folder}'
        os.environ['PATH'] = f'{Path(ptxas()).parent}{os.pathsep}{os.environ["PATH"]}'
        run_nothing_here()
        for gpu in args.gpus:
            for head_dim in args.head_dims:
                list_compiled(GPUS[gpu], head_dim, args.dtype, args.shared, Path(folder))


if __name__ == '__main__':
    main()
