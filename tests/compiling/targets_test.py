"""Topologies: which there are, and what is said of those that there are not."""

import importlib.util

import pytest

from t5flan.compiling import targets
from t5flan.compiling.targets import find_target, nearest_slice
from t5flan.errors import UserError


def test_devices_of_the_cpu():
    target = find_target('cpu:4')
    assert len(target.devices) == 4 and target.chip is None


@pytest.mark.parametrize(
    'topology, said',
    [
        ('v5x:4x4x4', 'did you mean v5p'),
        ('v5p:banana', 'e.g. v5p:'),
        ('v5p:', 'e.g. v5p:'),
        ('v5p:0x4x4', 'the chips along each axis'),
        ('v5e:4', 'e.g. v5e:2x2'),
        ('v5p:64', 'e.g. v5p:4x4x4'),
        ('cpu:many', 'e.g. cpu:8'),
        ('cpu:9999', 'up to 512'),
        ('cpu:64', 'XLA_FLAGS'),
        ('', 'expected CHIP:SHAPE'),
    ],
)
def test_a_topology_that_does_not_exist_is_one_line_with_the_nearest(topology, said):
    with pytest.raises(UserError, match=said) as error:
        find_target(topology)
    assert '\n' not in str(error.value)


def test_slices_are_of_tpus():
    with pytest.raises(UserError, match='--slices=2 is for TPUs'):
        find_target('cpu:8', slices=2)


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(UserError, match=r't5flan\[compile\]'):
        find_target('v5e:2x2')
    with pytest.raises(UserError, match='CUDA'):
        find_target('h100:8')


@pytest.mark.parametrize('found, fits', [('0.0.42', True), ('0.0.42.1', True), ('0.0.4', False), ('0.0.52', False)])
def test_another_version_of_the_compiler_is_refused_with_the_one_to_install(monkeypatch, found, fits):
    monkeypatch.setattr(targets.importlib.util, 'find_spec', lambda name: True)
    monkeypatch.setattr(targets.importlib.metadata, 'version', lambda name: found)
    named = ['numpy>=2.0', 'libtpu==0.0.42.*; extra == "tpu"']
    monkeypatch.setattr(targets.importlib.metadata, 'requires', lambda name: named)
    monkeypatch.setattr(targets, 'tpu_devices', lambda topology, slices: [])
    if fits:
        assert find_target('v5e:2x2').devices == []
        return
    with pytest.raises(UserError, match=rf'libtpu {found} is installed.* libtpu 0.0.42. .*jax\[tpu\]==') as error:
        find_target('v5e:2x2')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'kind, shape, nearest', [('v5p', '3x3x3', 'v5p:2x4x4'), ('v5e', '3x5', 'v5e:4x4'), ('v6e', '99x99', 'v6e:16x16')]
)
def test_the_nearest_slice_has_about_as_many_chips(kind, shape, nearest):
    assert nearest_slice(kind, shape) == nearest


@pytest.mark.slow
@pytest.mark.parametrize('topology', ['v4:2x2x1', 'v5e:2x2', 'v5p:2x2x1', 'v6e:2x2', 'tpu7x:2x2x1'])
def test_the_tpu_compiler_knows_the_slices(topology):
    pytest.importorskip('libtpu', reason='the compiler comes with t5flan[compile]')
    target = find_target(topology)
    assert len(target.devices) == 4 * target.chip.devices
    several = find_target(topology, slices=3)
    assert len({device.slice_index for device in several.devices}) == 3
    with pytest.raises(UserError, match='The nearest slice is'):
        find_target(topology.replace('2x2', '3x5'))
