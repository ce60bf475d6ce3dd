"""The search: every choice divides the run, the estimates order them, and the programs decide."""

import dataclasses

import jax
import pytest

from t5flan.compiling.search import RECOMPUTED, choices, estimated_seconds, search, worth_compiling
from t5flan.compiling.targets import Target
from t5flan.compiling.terminal import print_search
from t5flan.errors import UserError
from t5flan.planning.chips import find_chip
from tests.compiling.step_test import settings_of

TARGET = Target('v5e:2x4', find_chip('v5e'), 1, jax.devices())


def test_every_choice_divides_and_fits_by_estimate():
    found = choices(settings_of(), TARGET)
    meshes = {(one.settings['mesh'].data, one.settings['mesh'].fsdp, one.settings['mesh'].tensor) for one in found}
    assert {(8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 2, 4)} <= meshes
    assert all(data * fsdp * tensor == 8 and tensor <= 4 for data, fsdp, tensor in meshes)  # of four heads
    assert [one.seconds for one in found] == sorted(one.seconds for one in found)
    assert {one.settings['optimizer'].microbatches for one in found} == {1, 2, 4}
    tiny = Target('tiny', dataclasses.replace(find_chip('v5e'), memory_gib=1e-9), 1, jax.devices())
    assert choices(settings_of(), tiny) == []


def test_of_equally_fast_meshes_the_one_that_needs_less_memory_is_first():
    found = choices(settings_of("ModelConfig.dtype='bfloat16'"), TARGET)
    order = [(mesh.data, mesh.fsdp) for mesh in (one.settings['mesh'] for one in found) if mesh.tensor == 1]
    assert order.index((1, 8)) < order.index((8, 1))


def test_recomputation_and_more_microbatches_take_longer():
    chip = find_chip('v5e')
    base = estimated_seconds(settings_of("ModelConfig.remat='none'", 'MeshConfig.data=1', 'MeshConfig.fsdp=8'), chip, 8)
    for change in (["ModelConfig.remat='full'"], ['OptimizerConfig.microbatches=2']):
        changed = settings_of("ModelConfig.remat='none'", 'MeshConfig.data=1', 'MeshConfig.fsdp=8', *change)
        assert estimated_seconds(changed, chip, 8) > base


def test_the_given_settings_and_the_best_of_each_remat_are_compiled():
    slow = settings_of("ModelConfig.remat='minimal'", 'MeshConfig.tensor=4', 'OptimizerConfig.microbatches=4')
    found = choices(slow, TARGET)
    chosen = worth_compiling(found, slow, 8, 4)
    assert len(chosen) == 4 and [one.seconds for one in chosen] == sorted(one.seconds for one in chosen)
    by_remat = {remat: [one for one in found if one.settings['model'].remat == remat] for remat in RECOMPUTED}
    assert all(best[0] in chosen for best in by_remat.values())
    (given,) = (one for one in chosen if one.settings['optimizer'].microbatches == 4)
    assert given.settings['mesh'].data == 2 and given.settings['model'].remat == 'minimal'
    assert given not in (best[0] for best in by_remat.values())
    many = worth_compiling(found, slow, 8, len(found) + 1)
    assert len(many) == len(found)


def test_the_fastest_program_that_fits_is_chosen(capsys):
    programs = iter([(9, False, 0.1), (5, True, 0.3), (4, True, 0.2)])

    def describe(settings):
        size, fits, seconds = next(programs)
        bounds = {'roofline_seconds': {'compute': seconds}, 'bound': 'compute'}
        return {'peak_bytes_per_device': size, 'fits': fits, 'mesh': settings['mesh'], **bounds}

    report, rows = search(settings_of(), TARGET, 3, describe)
    assert report['peak_bytes_per_device'] == 4
    assert [row.get('best', False) for row in rows] == [False, False, True]
    print_search(rows)
    assert f'to run it: {rows[2]["settings"]}' in capsys.readouterr().out


def test_a_search_without_a_chip_or_a_fit_is_one_line():
    with pytest.raises(UserError, match='--fit ranks by the speed of a chip'):
        choices(settings_of(), Target('cpu:8', None, 1, jax.devices()))
    none_fits = lambda settings: {'peak_bytes_per_device': 9, 'fits': False}
    with pytest.raises(UserError, match='none of the 2 that were compiled'):
        search(settings_of(), TARGET, 2, none_fits)
