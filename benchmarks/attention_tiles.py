"""Which part of all pairs of queries and keys attention computes with a window, in each implementation with tiles.

    python benchmarks/attention_tiles.py                          # 16,384 tokens, windows of 512 and 4,096
    python benchmarks/attention_tiles.py --length 65536 --windows 1024

Prints a table: of each mask, how many tiles of queries by keys the TPU kernels compute (blocks as on a v5p), and how
many keys a query's tiles hold on average, on a TPU, on an H100, and in `chunked` on this machine. The least that a
window of W costs is W keys. Nothing is compiled; hardware: any, some seconds.
"""

import argparse
from typing import NamedTuple

import jax
import jax.numpy as jnp

from t5flan.kernels.chunked import choose_tiles
from t5flan.kernels.gpu import flash as flash_gpu
from t5flan.kernels.gpu import tile as flash_gpu_tile
from t5flan.kernels.operands import AttentionSpec, Operands, visible_tiles
from t5flan.kernels.tpu import flash as flash_tpu

HEAD_DIM = 128


class Row(NamedTuple):
    """What a mask costs: tiles on a TPU, of how many, and keys of a query's tiles."""

    mask: str
    tiles: int
    of: int
    tpu: float
    gpu: float
    chunked: float


def count(mask: str, spec: AttentionSpec, queries: int, source: int = 0) -> Row:
    """The tiles of `queries` queries; with `source`, the first keys are those of an encoder, which all queries see."""
    q = jnp.zeros((1, queries, 1, HEAD_DIM), jnp.bfloat16)
    k = jnp.zeros((1, source + queries, 1, HEAD_DIM), jnp.bfloat16)
    prefix_BS = jnp.arange(source + queries)[None, :] < source if source else None
    operands = Operands(q, k, k, jnp.int32(source), prefix_BS=prefix_BS)
    block_q, block_k = blocks = flash_tpu.choose_blocks('TPU v5', spec, operands)
    _, arrays = flash_tpu.arrange(spec, operands, blocks)
    seen_BIO = visible_tiles(arrays, block_q, block_k, spec.causal, spec.window, spec.far_prefix)
    tiles = int(seen_BIO.sum())
    tiling = flash_gpu.choose_tiling('NVIDIA H100 80GB HBM3', spec, operands)
    gpu_spec, gpu_arrays = flash_gpu.arrange(spec, operands, tiling)
    range_BI2 = flash_gpu_tile.bounds(gpu_spec, gpu_arrays, tiling.forward, 2)
    gpu = int(jnp.sum(range_BI2[..., 1] - range_BI2[..., 0])) * tiling.forward.queries * tiling.forward.keys
    of_query = (tiles * block_q * block_k / queries, gpu / queries, choose_tiles(spec, operands).keys)
    return Row(mask, tiles, seen_BIO.size, *of_query)


def rows(length: int, windows: list[int]) -> list[Row]:
    """Every mask, without and with the windows; merged attention reads as many keys of an encoder."""
    found = []
    for window in (None, *windows):
        reach, named = (None, '') if window is None else ((window - 1, window - 1), f', window {window:,}')
        found.append(count(f'encoder{named}', AttentionSpec(window=reach), length))
        found.append(count(f'decoder{named}', AttentionSpec(causal=True, window=reach), length))
        merged = AttentionSpec(causal=True, window=reach, far_prefix=window is not None)
        found.append(count(f'merged attention{named}', merged, length, length))
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--length', type=int, default=16384, help='tokens of a row (default: %(default)s)')
    parser.add_argument('--windows', type=int, nargs='+', default=[512, 4096])
    args = parser.parse_args()
    jax.config.update('jax_platforms', 'cpu')
    print('| mask | tiles on a TPU | keys of a query: TPU | H100 | `chunked` |')
    print('|---|---|---|---|---|')
    for row in rows(args.length, args.windows):
        keys = ' | '.join(f'{keys:,.0f}' for keys in row[3:])
        print(f'| {row.mask} | {row.tiles:,} of {row.of:,} | {keys} |')


if __name__ == '__main__':
    main()
