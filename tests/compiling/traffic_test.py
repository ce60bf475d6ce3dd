"""FLOPs, memory traffic and collectives of a recorded program, counted by hand."""

from pathlib import Path

import numpy as np
import pytest

from t5flan.compiling import hlo, traffic

MODULE = hlo.parse((Path(__file__).parent / 'program.hlo').read_text(encoding='utf-8'))
MESH = {'data': 1, 'fsdp': 4, 'context': 1, 'tensor': 2}


def test_products_in_loops_count_as_often_as_the_loop_runs():
    dot = 2 * 64 * 64 * 32
    product = 2 * 4 * 8 * 2 * 16 * 64  # of each head its own 16 x 64, though the window is over both heads
    assert traffic.executed_flops(MODULE) == dot + 3 * product


@pytest.mark.parametrize(
    'window, size, kernel, out, pairs',
    [
        ('size=3', 10, 3, 8, 24),  # every position meets an input
        ('size=3 pad=1_1', 8, 3, 8, 22),  # but for one at each end
        ('size=3 stride=2 pad=1_1', 8, 3, 4, 11),
        ('size=8 stride=7 lhs_dilate=8', 8, 8, 8, 8),  # a batch axis, as the TPU compiler writes it
    ],
)
def test_positions_outside_the_input_are_free(window, size, kernel, out, pairs):
    assert traffic._window_products(f'window={{{window}}}', 0, size, kernel, out) == pairs


def test_a_loop_over_stacked_layers_reads_a_slice_in_each_turn():
    layer = 64 * 64 * 4
    stacked = 3 * (2 * layer)  # read and written; the operands in on-chip memory are free
    dot = (64 * 32 + 32 * 64 + 64 * 64) * 4
    permuted = 64 * 32 * 4  # its result is in on-chip memory
    assert traffic.memory_bytes(MODULE) == stacked + dot + permuted + 2 * layer


def test_collectives_by_kind_and_mesh_axis():
    found = {one.kind: one for one in traffic.collectives(MODULE, MESH)}
    gather = found['all-gather']  # in two fusions, of one channel: once in each turn
    assert (gather.axes, gather.devices, gather.bytes) == (('fsdp',), 4, 3 * 64 * 64 * 2)
    assert gather.sent == gather.bytes * 3 / 4
    reduce = found['all-reduce']
    assert (reduce.axes, reduce.bytes, reduce.sent) == (('tensor',), 64 * 64 * 4, 64 * 64 * 4)
    assert found['collective-permute'].axes == ('fsdp',)
    assert len(traffic.collectives(MODULE, MESH)) == 3


@pytest.mark.parametrize(
    'text, groups',
    [
        ('replica_groups={{0,2,4,6},{1,3,5,7}}', [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ('replica_groups={}', [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ('replica_groups=[4,2]<=[8]', [[0, 1], [2, 3], [4, 5], [6, 7]]),
        ('replica_groups=[2,4]<=[4,2]T(1,0)', [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2] {'a'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
        ("replica_groups=mesh['a'=4,'b'=2] {'a','b'}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
        ("replica_groups=mesh['a'=8] {'a':(2)4}", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ('source_target_pairs={{0,0},{2,4},{4,2}}', [[2, 4], [4, 2]]),
    ],
)
def test_every_form_of_groups_is_read(text, groups):
    assert traffic.replica_groups(f'channel_id=1, {text}, dimensions={{0}}', 8).tolist() == groups


def test_groups_of_an_unknown_form_have_no_axis():
    assert traffic.replica_groups('replica_groups=@new', 8) is None
    assert traffic.axes_of(np.array([[0, 7]]), MESH) == ('fsdp', 'tensor')
