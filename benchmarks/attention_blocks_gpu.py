"""Block sizes of the GPU attention kernels: what the compiler makes of them, with no GPU; and on a GPU their times.

    python benchmarks/attention_blocks_gpu.py --gpus h100 a100       # compiled; any machine with jax-cuda12-plugin
    python benchmarks/attention_blocks_gpu.py --head_dims 64 128 256  # on a GPU: timed, the fastest of each kernel last

Compiled, a line tells the registers of a thread, the bytes that the compiler had to spill, a program's shared memory, and
how many warps a processor of that GPU holds at once. Of those that spill nothing and leave a processor 8 warps or more, a
rule takes the one that reads least (the most queries, for the gradient of keys the most keys), then the most warps, then
the largest tile, then the most stages: the `TILINGS` of `t5flan/kernels/gpu/flash.py`, until times replace them. The plugin and `ptxas`
(`pip install jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12`, no GPU or driver needed) stay beside the CPU's jax.
15 seconds for each line of blocks on one CPU core; on a GPU about 5 minutes for each head size.
"""

import argparse
import dataclasses
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
from attention import median_ms  # beside this file

from t5flan.kernels.chunked import Operands
from t5flan.kernels.gpu import flash as flash_gpu
from t5flan.kernels.gpu.tile import Blocks, Tiling
from t5flan.kernels.relative_bias import RelativeBias

ROWS, LENGTH, WIDTH = 1, 4096, 4096  # rows, tokens, and heads x head_dim of T5 XXL
KERNELS = {
    'forward': 'forward',
    'gradient_of_queries': 'gradient_of_queries',
    'gradient_of_keys': 'gradient_of_keys',
    'diagonals': 'gradient_of_bias',
}


@dataclasses.dataclass(frozen=True)
class Gpu:
    """What decides how many programs a processor holds: bytes of shared memory of a processor and of a program."""

    name: str
    capability: tuple[int, int]
    processors: int
    shared: int
    shared_of_program: int
    architecture: str

    def config(self) -> str:
        """The device as XLA's compiler wants it described."""
        return f'''gpu_device_info {{
          threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
          shared_memory_per_core: {self.shared} shared_memory_per_block_optin: {self.shared_of_program}
          threads_per_core_limit: 2048 core_count: {self.processors} fpus_per_core: 64 block_dim_limit_x: 2147483647
          block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 2039040000000 l2_cache_size: 41943040
          clock_rate_ghz: 1.41 device_memory_size: 85100068864 registers_per_core_limit: 65536
          registers_per_block_limit: 65536 thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
          cuda_compute_capability {{ major: {self.capability[0]} minor: {self.capability[1]} }}
        }} platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }} device_description_str: "{self.name}"'''


GPUS = {
    'h100': Gpu('NVIDIA H100 80GB HBM3', (9, 0), 132, 233472, 232448, 'sm_90a'),
    'a100': Gpu('NVIDIA A100-SXM4-80GB', (8, 0), 108, 167936, 166912, 'sm_80'),
}


def compile_only(gpu: Gpu, count: int = 1) -> list[jax.Device]:
    """Devices of one machine that programs are compiled for and that nothing runs on."""
    from jax.experimental import topologies

    return topologies.get_topology_desc('', 'cuda', topology=f'1x1x{count}', target_config=gpu.config()).devices


def step_of(tiling: Tiling, head_dim: int, dtype: str, backward: bool):
    """A jitted encoder's attention with key padding, and shapes of its inputs."""
    bias, heads = RelativeBias(bidirectional=True), max(1, WIDTH // head_dim)
    form = flash_gpu.FlashForm(False, 1.0, None, 0.0, None, bias.max_distance, tiling)

    def forward(q, k, v, table, seen_BS):
        vector = flash_gpu.bias_by_distance(table, bias)
        operands = Operands(q, k, v, vector, None, None, None, None, seen_BS, jnp.int32(0))
        return flash_gpu.flash_attention(form, operands)

    def both(q, k, v, table, seen_BS, dy):
        y, vjp = jax.vjp(lambda *arrays: forward(*arrays, seen_BS), q, k, v, table)
        return y, vjp(dy)

    x = ((ROWS, LENGTH, heads, head_dim), dtype)
    shapes = [x, x, x, ((heads, bias.num_buckets), 'float32'), ((ROWS, LENGTH), 'bool'), x]
    return (jax.jit(both), shapes) if backward else (jax.jit(forward), shapes[:-1])


class Compiled(NamedTuple):
    """What the compiler made of a kernel."""

    registers: int  # of a thread
    spilt: int  # bytes
    shared: int  # bytes of a program
    warps: int  # on a processor

    def __str__(self) -> str:
        return (
            f'{self.registers:4} registers, {self.spilt:5} bytes spilt, {self.shared / 1024:6.1f} KiB shared, '
            f'{self.warps:2} warps'
        )


def resources(gpu: Gpu, tiling: Tiling, head_dim: int, dtype: str, folder: Path) -> dict[str, Compiled]:
    """What the compiler made of each kernel, by its name in `Tiling`; nothing if one needs too much shared memory."""
    for path in folder.iterdir():
        path.unlink()
    placed = jax.sharding.SingleDeviceSharding(compile_only(gpu)[0])
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
            registers, spilt = (
                int(re.search(pattern, said)[1]) for pattern in (r'Used (\d+) reg', r'(\d+) bytes spill st')
            )
            programs = min(65536 // (-(-registers // 8) * 8 * threads), gpu.shared // (shared + 1024))
            found[entry[1]] = Compiled(registers, spilt, shared, programs * threads // 32)
    return {kernel: found[name] for kernel, name in KERNELS.items()}


def ptxas() -> str:
    """The assembler, of the wheel if it is there."""
    package = importlib.util.find_spec('nvidia')
    for folder in package.submodule_search_locations if package else ():
        for path in Path(folder).glob('*/bin/ptxas'):
            return str(path)
    return 'ptxas'


def candidates(head_dim: int, dtype: str) -> dict[str, list[Blocks]]:
    """Blocks to try for each kernel; those whose sums and logits alone would fill a thread's registers are left out."""
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
    """One line for each kernel and candidate, and what the rule takes; one compilation tells of all four kernels."""
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
    """What the docstring says."""
    own = lambda blocks: blocks.keys if kernel == 'gradient_of_keys' else blocks.queries
    good = [blocks for blocks, x in compiled.items() if not x.spilt and x.warps >= 8 and x.shared <= most_shared]
    return max(
        good, key=lambda blocks: (own(blocks), compiled[blocks].warps, blocks.queries * blocks.keys, blocks.stages)
    )


def tune(head_dim: int, dtype: str, repeats: int) -> Tiling:
    """Times every candidate of one kernel after the other, the others as they are best so far; prints and returns the best."""
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
    parser.add_argument('--gpus', nargs='+', default=[], choices=list(GPUS), help='compile for these, and run nothing')
    parser.add_argument('--head_dims', nargs='+', type=int, default=[64, 128, 256])
    parser.add_argument('--dtype', default='bfloat16')
    parser.add_argument(
        '--shared', type=int, default=2**20, help='take blocks of at most so many bytes of shared memory'
    )
    parser.add_argument('--repeats', type=int, default=20)
    args = parser.parse_args()
    if not args.gpus:
        for head_dim in args.head_dims:
            tune(head_dim, args.dtype, args.repeats)
        return
    with tempfile.TemporaryDirectory(prefix='t5flan-blocks-') as folder:
        os.environ['XLA_FLAGS'] = (
            f'{os.environ.get("XLA_FLAGS", "")} --xla_dump_to={folder}'  # read at the first compilation
        )
        os.environ['PATH'] = f'{Path(ptxas()).parent}{os.pathsep}{os.environ["PATH"]}'
        jax.config.update('jax_platforms', 'cpu')
        for gpu in args.gpus:
            for head_dim in args.head_dims:
                list_compiled(GPUS[gpu], head_dim, args.dtype, args.shared, Path(folder))


if __name__ == '__main__':
    main()
