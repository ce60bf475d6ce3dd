"""How many tiles a window costs, as benchmarks/attention_tiles.py counts them for docs/attention.md."""

import sys

import pytest

from tests.docs.markdown import ROOT

sys.path.insert(0, str(ROOT / 'benchmarks'))

import attention_tiles

BLOCKS = 512 + 1024  # queries and keys of a tile on a v5p, the largest of all implementations
WINDOW = 256


@pytest.fixture(scope='module')
def counted():
    """Length -> mask -> its row."""
    return {length: {row.mask: row for row in attention_tiles.rows(length, [WINDOW])} for length in (2048, 4096)}


@pytest.mark.parametrize('mask, reach', [('encoder', 2 * WINDOW), ('decoder', WINDOW)])
def test_a_window_costs_its_own_tiles_whatever_the_length(mask, reach, counted):
    for length, rows in counted.items():
        row, whole = rows[f'{mask}, window {WINDOW}'], rows[mask]
        assert row.of == whole.of and row.tiles < whole.tiles
        assert all(reach / 2 < keys <= reach + BLOCKS for keys in row[3:]), length
    short, long = (rows[f'{mask}, window {WINDOW}'] for rows in counted.values())
    assert long.tiles <= 2 * short.tiles + 2  # linear in the length


def test_merged_attention_reads_the_encoder_whole_and_the_tokens_by_their_window(counted):
    """Only the TPU kernels skip the tokens between: a GPU takes the range from the first key, `chunked` all keys."""
    for length, rows in counted.items():
        row, whole = rows[f'merged attention, window {WINDOW}'], rows['merged attention']
        assert length <= row.tpu <= length + WINDOW + BLOCKS
        assert length * 4 / 3 < row.gpu <= whole.gpu and row.chunked == 2 * length
