"""The paper recipes of gin/examples: their meshes divide the slices that they name, and they fit by estimate."""

import math
import re

import pytest

from t5flan import configurables
from t5flan.commands.compile import read_settings
from t5flan.config.gin_files import GIN_ROOT
from t5flan.planning.chips import find_chip
from t5flan.planning.cost import GIB, batch_of, memory_of

RECIPES = {
    't5_1_1_xl_v5e_16': 'v5e:4x4',
    't5_1_1_xxl_v5p_64': 'v5p:4x4x4',
    'ul2_20b_v5p_64': 'v5p:4x4x4',
    'palm_62b_v5p_512': 'v5p:8x8x8',
    'palm_540b_v4_6144': 'v4:12x16x16',
}


@pytest.mark.parametrize('name', RECIPES)
def test_a_recipe_divides_its_slice_and_fits_by_estimate(name):
    text = (GIN_ROOT / 'examples' / f'{name}.gin').read_text(encoding='utf-8')
    command = re.search(r't5flan compile --topology=(\S+)(?: --slices=(\d+))? --gin_file=(\S+)', text)
    assert command is not None and command[1] == RECIPES[name] and command[3] == f'examples/{name}'
    kind, _, shape = command[1].partition(':')
    devices = math.prod(map(int, shape.split('x'))) * int(command[2] or 1)
    settings = read_settings(configurables.parse([f'examples/{name}'], []))
    mesh, data, model = settings['mesh'], settings['data'], settings['model']
    assert mesh.data * mesh.fsdp * mesh.context * mesh.tensor == devices
    assert str(devices) in name.split('_') and data.batch_size % (mesh.data * mesh.fsdp) == 0
    batch = batch_of(model, data.batch_size, data.feature_lengths)
    memory = memory_of(model, batch, settings['optimizer'], mesh, devices)
    assert memory.total < 0.9 * find_chip(kind).memory_gib * GIB, memory.gib()


def test_every_recipe_of_a_slice_is_here():
    named = {path.stem for path in (GIN_ROOT / 'examples').glob('*.gin') if '--topology=' in path.read_text()}
    assert named == set(RECIPES)
