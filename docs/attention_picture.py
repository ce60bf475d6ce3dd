"""Draws docs/attention.png: why T5's bias needs one short vector a head, and which tiles are computed.

python docs/attention_picture.py
"""

from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use('Agg')
import matplotlib.pyplot as plt

from t5flan.kernels.relative_bias import RelativeBias, relative_buckets
from t5flan.kernels.tpu.tile import LANES, Band

BIAS = RelativeBias(bidirectional=True)
BLOCK, LENGTH = 256, 2048
TILES = {
    'on the diagonal': (768, 768, 'tab:red'),
    'next to it': (768, 1024, 'tab:orange'),
    'far from it': (256, 1536, 'tab:purple'),
}


def bias_of(distance: np.ndarray) -> np.ndarray:
    """A head's bias by distance: invented, with a shape that trained heads often have."""
    bucket = relative_buckets(distance, BIAS, np)
    side = bucket % 16
    return np.where(bucket >= 16, -0.25, 0.1) * side + 0.6 * np.sin(bucket)


def draw_matrix(axes: plt.Axes) -> None:
    """The bias of all pairs, with three tiles marked."""
    position = np.arange(LENGTH)
    axes.imshow(bias_of(position[None] - position[:, None]), cmap='viridis', interpolation='nearest')
    for name, (query, key, color) in TILES.items():
        axes.add_patch(plt.Rectangle((key, query), BLOCK, BLOCK, fill=False, color=color, lw=2.5, label=name))
    axes.set(
        title=f'1  The bias of {LENGTH} x {LENGTH} pairs: equal along\neach diagonal, constant beyond distance 128',
        xlabel='key',
        ylabel='query',
    )
    axes.legend(loc='lower left', fontsize=8)


def slices(query: int, key: int) -> int:
    """Where the slice of a tile's first 128 keys starts."""
    band = Band(BLOCK, BIAS.max_distance)
    return int(np.clip(band.centre - key + query, LANES, band.last))


def draw_vector(axes: plt.Axes) -> None:
    """The band of distances, with what each tile reads."""
    band = Band(BLOCK, BIAS.max_distance)
    axes.step(np.arange(band.width), bias_of(band.centre - np.arange(band.width)), where='mid', color='black', lw=1)
    for height, (_, (query, key, color)) in enumerate(TILES.items()):
        start = slices(query, key)
        axes.plot([start - LANES, start + BLOCK], 2 * [-4.6 - 0.4 * height], color=color, lw=4, solid_capstyle='butt')
    axes.set(
        title=f'2  All that a kernel reads of it: {band.width} numbers\nfor each head, for inputs of any length',
        xlabel='number (distance falls from left to right)',
        ylabel='bias',
    )


def draw_rows(axes: plt.Axes) -> None:
    """The sheared rows, with the slices of the tiles' first 128 keys."""
    band = Band(BLOCK, BIAS.max_distance)
    distance = band.centre - np.arange(band.width)[None] + np.arange(LANES)[:, None]
    axes.imshow(bias_of(distance), cmap='viridis', interpolation='nearest', aspect=3)
    for query, key, color in TILES.values():
        axes.add_patch(
            plt.Rectangle((slices(query, key), 0), BLOCK, LANES - 1, fill=False, color=color, lw=2.5, clip_on=False)
        )
    axes.set(
        title='3  Laid out once for each head as 128 shifted rows:\na tile is slices that start at a multiple of 128',
        xlabel='number',
        ylabel='key modulo 128',
    )


def draw_tiles(axes: plt.Axes) -> None:
    """Four packed examples in a causal decoder: what is computed."""
    ids = np.repeat([1, 2, 3, 4, 0], [400, 700, 300, 500, 148])
    blocks = ids.reshape(-1, 128)
    seen = np.zeros((16, 16))
    for i in range(16):
        for o in range(16):
            seen[i, o] = o <= i and bool(set(blocks[i][blocks[i] > 0]) & set(blocks[o][blocks[o] > 0]))
    axes.imshow(seen, cmap='Greys', vmin=0, vmax=1.6, interpolation='nearest')
    axes.set(
        title=f'4  Four packed examples, causal: the grey tiles\nare computed, {1 - seen.mean():.0%} are skipped',
        xlabel='block of 128 keys',
        ylabel='block of 128 queries',
    )


def main() -> None:
    """Writes the picture next to this file."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 9), layout='constrained')
    for draw, place in zip((draw_matrix, draw_vector, draw_rows, draw_tiles), axes.flat, strict=True):
        draw(place)
    figure.savefig(Path(__file__).with_suffix('').with_name('attention.png'), dpi=80)


if __name__ == '__main__':
    main()
