"""Block sizes of the TPU attention kernels, ranked by the compiler's schedule, without a TPU.

    python benchmarks/attention_blocks.py --topologies v5e:2x2 v5p:2x2x1 v6e:2x2 tpu7x:2x2x1

A TPU core issues one bundle of instructions a cycle in a fixed order, so the length of a kernel's schedule is the time
of a tile, apart from waits for memory. For each size this prints the bundles of the three kernels and the bundles per
1024 logits of one head, forward and backward, or that it does not fit in a core's memory. The schedule includes what
runs once for each head, so compare the blocks of one chip, not chips. The choice is in `t5flan/kernels/tpu/flash.py`
(`BLOCKS`); on a TPU, `benchmarks/attention.py` measures it. Half a minute for each size on one CPU core.
"""

import argparse
import os
import re
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

from t5flan.compiling.targets import run_nothing_here, tpu_devices
from t5flan.kernels.attention import RelativeBias
from t5flan.kernels.operands import AttentionSpec, Operands
from t5flan.kernels.tpu import flash as flash_tpu

LENGTH = 4096
KERNELS = ('forward', 'gradients', 'gradient_of_bias')


def compile_blocks(device, head_dim: int, dtype: str, blocks: tuple[int, int]) -> None:
    """Compiles the kernels of a packed T5 encoder for one device of a topology."""
    placed = jax.sharding.SingleDeviceSharding(device)
    bias = RelativeBias(bidirectional=True)
    heads = heads_of(head_dim)
    x, table, ids = (
        jax.ShapeDtypeStruct(shape, kind, sharding=placed)
        for shape, kind in (
            ((1, LENGTH, heads, head_dim), dtype),
            ((heads, bias.num_buckets), 'float32'),
            ((1, LENGTH), 'int32'),
        )
    )

    def step(q, k, v, table, ids, dy):
        def forward(q, k, v, table):
            operands = Operands(q, k, v, jnp.int32(0), table, q_segment_ids_BT=ids, kv_segment_ids_BS=ids)
            return flash_tpu.flash_attention(AttentionSpec(bias=bias), operands, blocks)

        y, vjp = jax.vjp(forward, q, k, v, table)
        return y, vjp(dy)

    jax.jit(step).lower(x, x, x, table, ids, x).compile()


def heads_of(head_dim: int) -> int:
    """The heads that one step of a kernel works on."""
    return max(1, 128 // head_dim)


def bundles(folder: Path) -> list[int]:
    """The bundles of each kernel, from the compiler's reports."""
    counts = []
    for kernel in KERNELS:
        report = next(folder.glob(f'*{kernel}*schedule-analysis_final_bundles.txt')).read_text(encoding='utf-8')
        counts.append(int(re.search(r'total scheduled bundles:\s+(\d+)', report)[1]))
    return counts


def main() -> None:
    """Prints one line for each topology, head size and block size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--topologies', nargs='+', default=['v5e:2x2'], metavar='NAME')
    parser.add_argument('--head_dims', nargs='+', type=int, default=[64, 128])
    parser.add_argument('--blocks', nargs='+', default=['256x512', '512x512', '512x1024'], metavar='QUERIESxKEYS')
    parser.add_argument('--dtype', default='bfloat16')
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix='t5flan-schedule-'))
    os.environ['LIBTPU_INIT_ARGS'] = f'--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true'
    run_nothing_here()
    for topology in args.topologies:
        device = tpu_devices(topology)[0]
        for head_dim in args.head_dims:
            for size in args.blocks:
                blocks = tuple(int(number) for number in size.split('x'))
                for path in folder.iterdir():
                    path.unlink()
                line = f'{device.device_kind:12} head_dim {head_dim:3} blocks {size:>9}'
                try:
                    compile_blocks(device, head_dim, args.dtype, blocks)
                except jax.errors.JaxRuntimeError as error:
                    if 'vmem' not in str(error).lower():
                        raise
                    print(f"{line}  does not fit in the core's memory", flush=True)
                    continue
                counts = bundles(folder)
                each = 1024 * sum(counts) / (blocks[0] * blocks[1] * heads_of(head_dim))
                print(f'{line}  {counts} bundles, {each:.1f} for 1024 logits', flush=True)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()


if __name__ == '__main__':
    main()
