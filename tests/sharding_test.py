"""t5flan/sharding.py: axes are split as the table says; errors name the setting for a size that does not divide."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from t5flan import sharding as sharding_lib
from t5flan.errors import UserError
from t5flan.mesh import MeshConfig


@pytest.fixture(scope='module')
def mixed():
    return sharding_lib.create_sharding(MeshConfig(data=2, fsdp=2, tensor=2))


def test_a_free_axis_takes_the_remaining_devices():
    sharding = sharding_lib.create_sharding(MeshConfig(data=-1, tensor=2))
    assert dict(sharding.mesh.shape) == {'data': 4, 'fsdp': 1, 'context': 1, 'tensor': 2}


@pytest.mark.parametrize('config', [MeshConfig(data=3), MeshConfig(data=-1, fsdp=3), MeshConfig(data=16)])
def test_error_for_a_mesh_that_does_not_divide_names_the_setting(config):
    with pytest.raises(UserError, match=r'8 devices.*MeshConfig\.data'):
        sharding_lib.create_sharding(config)


def test_specs_follow_the_table(mixed):
    assert mixed.spec(('layers', 'embed', 'heads', 'kv')) == PartitionSpec(None, 'fsdp', 'tensor', None)
    assert mixed.spec(('batch', 'length', 'act_embed')) == PartitionSpec(('data', 'fsdp'), None, None)


def test_mesh_axes_of_size_one_are_omitted():
    sharding = sharding_lib.create_sharding(MeshConfig(data=8))
    assert sharding.spec(('vocab', 'embed')) == PartitionSpec(None, None)
    assert sharding.spec(('batch',)) == PartitionSpec('data')


def test_configured_rules_override_the_table():
    sharding = sharding_lib.create_sharding(MeshConfig(data=2, fsdp=2, tensor=2, rules=(('embed', None),)))
    assert sharding.spec(('embed', 'mlp')) == PartitionSpec(None, 'tensor')


@pytest.mark.parametrize('rule', [('embedd', 'fsdp'), ('embed', 'model')])
def test_a_rule_with_unknown_axes_raises(rule):
    with pytest.raises(UserError, match='MeshConfig.rules'):
        sharding_lib.create_sharding(MeshConfig(rules=(rule,)))


def test_two_axes_on_one_mesh_axis_raise():
    sharding = sharding_lib.create_sharding(MeshConfig(fsdp=4, tensor=2, rules=(('mlp', 'fsdp'),)))
    with pytest.raises(UserError, match='share a mesh axis'):
        sharding.spec(('embed', 'mlp'))


def test_error_for_a_parameter_that_does_not_divide_names_its_setting(mixed):
    with pytest.raises(UserError, match=r'ModelConfig\.num_heads=3 .*tensor=2'):
        sharding_lib.tree_shardings(mixed, jnp.zeros((4, 3, 8)), ('embed', 'heads', 'kv'))


def test_few_key_value_heads_stay_whole(mixed):
    placed = sharding_lib.tree_shardings(mixed, jnp.zeros((4, 1, 8)), ('embed', 'kv_heads', 'kv'))
    assert placed.spec == PartitionSpec('fsdp', None, None)


def test_constrain_does_nothing_without_a_mesh():
    x = jnp.ones((4, 2))
    assert sharding_lib.constrain(x, ('batch', 'length')) is x


def test_constrain_shards_inside_jit(mixed):
    with sharding_lib.use(mixed):
        y = jax.jit(lambda x: sharding_lib.constrain(x * 2, ('batch', 'act_mlp')))(jnp.ones((8, 4)))
    assert y.sharding.spec == PartitionSpec(('data', 'fsdp'), 'tensor')
    np.testing.assert_array_equal(y, 2 * np.ones((8, 4)))


def test_batches_are_split_over_the_batch_axis(mixed):
    batch = {'tokens': np.arange(32, dtype=np.int32).reshape(8, 4)}
    put = sharding_lib.put_batch(mixed, batch, 8)
    np.testing.assert_array_equal(put['tokens'], batch['tokens'])
    assert put['tokens'].addressable_shards[0].data.shape == (2, 4)


def test_rows_are_split_along_their_length():
    sharding = sharding_lib.create_sharding(MeshConfig(data=2, context=4))
    assert sharding.spec(('batch', 'length', 'act_embed')) == PartitionSpec('data', 'context', None)
    assert sharding.spec(('embed', 'mlp')) == PartitionSpec('context', None)  # and so are parameters
    batch = {'tokens': np.arange(64, dtype=np.int32).reshape(8, 8), 'weights': np.ones(8, np.float32)}
    put = sharding_lib.put_batch(sharding, batch, 8)
    np.testing.assert_array_equal(put['tokens'], batch['tokens'])
    assert put['tokens'].addressable_shards[0].data.shape == (4, 2)
    with pytest.raises(
        UserError, match=r'DataConfig\.feature_lengths=6 .*context=4.* or change MeshConfig\.context'
    ) as error:
        sharding_lib.put_batch(sharding, {'tokens': np.zeros((8, 6), np.int32)}, 8)
    assert '\n' not in str(error.value)


def test_one_host_has_all_rows_and_they_must_divide(mixed):
    assert sharding_lib.host_rows(mixed, 8) == slice(0, 8)
    with pytest.raises(UserError, match=r'DataConfig\.batch_size=6'):
        sharding_lib.host_rows(mixed, 6)


def test_the_device_of_a_mesh_of_one_is_its_own():
    last = jax.devices()[-1]
    with sharding_lib.use(sharding_lib.create_sharding(MeshConfig(), [last])):
        assert sharding_lib.device() == last and sharding_lib.current() is None


def test_the_platform_is_that_of_the_mesh(mixed):
    assert sharding_lib.platform() == 'cpu'
    with sharding_lib.use(mixed):
        assert sharding_lib.platform() == mixed.mesh.devices.flat[0].platform


@dataclasses.dataclass(frozen=True)
class Chip:
    """What `place_devices` reads of a TPU."""

    id: int
    coords: tuple[int, int, int]
    slice_index: int = 0
    device_kind: str = 'TPU v5'
    platform: str = 'tpu'
    core_on_chip: int = 0
    process_index: int = 0


def chips(*shape, slices=1):
    """The chips of TPU slices, without a compiler for them."""
    coords = [(x, y, z) for z in range(shape[2]) for y in range(shape[1]) for x in range(shape[0])]
    places = [(number, at) for number in range(slices) for at in coords]
    return [Chip(i, at, number) for i, (number, at) in enumerate(places)]


@pytest.mark.parametrize(
    'sizes', [(1, 32, 1, 2), (2, 8, 2, 2), (1, 1, 1, 64), (64, 1, 1, 1), (32, 1, 2, 1), (2, 2, 2, 8), (1, 4, 4, 4)]
)
def test_a_mesh_axis_may_split_an_axis_of_the_torus(sizes):
    placed = sharding_lib.place_devices(chips(4, 4, 4), sizes)
    assert placed.shape == sizes and sorted(chip.id for chip in placed.flat) == list(range(64))


def test_devices_on_one_tensor_axis_are_neighbours():
    placed = sharding_lib.place_devices(chips(4, 4, 4), (1, 32, 1, 2))
    for one, other in placed.reshape(32, 2):
        assert sum(min(abs(a - b), 4 - abs(a - b)) for a, b in zip(one.coords, other.coords, strict=True)) == 1


@pytest.mark.parametrize('sizes, across', [((2, 8, 1, 2), 0), ((4, 4, 2, 1), 0), ((1, 16, 1, 2), 1)])
def test_only_the_outermost_axis_runs_over_the_network_between_slices(sizes, across):
    placed = sharding_lib.place_devices(chips(4, 4, 1, slices=2), sizes)
    assert placed.shape == sizes
    number = np.vectorize(lambda chip: chip.slice_index)(placed)
    for axis in range(4):
        assert np.any(number != np.take(number, [0], axis=axis)) == (axis == across)
