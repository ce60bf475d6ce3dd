"""The device mesh, the table from logical to mesh axes, and `constrain()`.

Parameters and activations have named logical axes; one table says which mesh axes each is split over. To change the
parallelism, change the table (`MeshConfig.rules` in gin), never model code:

    data     copies of the model, each on its part of the batch
    fsdp     splits the batch too, and the parameters, which are gathered where they are used
    context  splits every row along its length, for long rows, and the parameters; attention exchanges heads for tokens
    tensor   splits heads, MLP and vocabulary, but not the batch

This is the mapping of T5X's `LogicalAxisRules` and of jax-ml's llama example, except that two cases are errors here: a
size that does not divide, and two axes of one array on the same mesh axis.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from t5flan.config.memory import host_memory
from t5flan.errors import UserError
from t5flan.mesh import MESH_AXES, MeshConfig

DEFAULT_RULES: Mapping[str, tuple[str, ...]] = {
    # activations
    'batch': ('data', 'fsdp'),
    'length': ('context',),
    'act_embed': (),
    'act_heads': ('tensor',),
    'act_kv_heads': ('tensor',),
    'act_mlp': ('tensor',),
    'act_vocab': ('tensor',),
    # parameters
    'vocab': ('tensor',),
    'embed': ('fsdp', 'context'),
    'mlp': ('tensor',),
    'heads': ('tensor',),
    'kv_heads': ('tensor',),
    'kv': (),
    'rank': (),  # of adapters
    'adapters': (),
    'prompt': (),
    'relpos_buckets': (),
    'layers': (),
}

# The setting to change when a size does not divide.
_SETTING_OF_AXIS = {
    'vocab': 'ModelConfig.vocab_size',
    'embed': 'ModelConfig.emb_dim',
    'mlp': 'ModelConfig.mlp_dim',
    'heads': 'ModelConfig.num_heads',
    'kv_heads': 'ModelConfig.num_kv_heads',
    'batch': 'DataConfig.batch_size',
    'length': 'DataConfig.feature_lengths',
}


@dataclasses.dataclass(frozen=True)
class Sharding:
    """A mesh, and the rules that map logical axes to its axes."""

    mesh: Mesh
    rules: Mapping[str, tuple[str, ...]]

    def axis(self, name: str | None) -> tuple[str, ...] | None:
        """The mesh axes that a logical axis is split over, without those of size 1; None if it is not split.

        Raises:
            UserError: no rule for `name`.
        """
        if name is None:
            return None
        if name not in self.rules:
            known = f'expected one of {sorted(self.rules)}. Add a rule to MeshConfig.rules.'
            raise UserError(f'no rule for the logical axis {name!r}, {known}')
        return tuple(axis for axis in self.rules[name] if self.mesh.shape[axis] > 1) or None

    def size(self, name: str) -> int:
        """The number of parts that a logical axis is split into."""
        return int(np.prod([self.mesh.shape[axis] for axis in self.axis(name) or ()], dtype=int))

    def spec(self, axes: Sequence[str | None], shape: Sequence[int] | None = None) -> PartitionSpec:
        """Logical axes as mesh axes: ('embed', 'mlp') -> PartitionSpec('fsdp', 'tensor').

        With `shape`, an axis whose size does not divide over the mesh stays whole. `tree_shardings` checks parameters
        first, so this applies only to few key-value heads and to a last batch with fewer rows.

        Raises:
            UserError: no rule for an axis, or two axes on one mesh axis.
        """
        entries: list[Any] = []
        for i, name in enumerate(axes):
            mesh_axes = self.axis(name)
            if name and mesh_axes and shape is not None and shape[i] % self.size(name):
                mesh_axes = None
            entries.append(mesh_axes[0] if mesh_axes and len(mesh_axes) == 1 else mesh_axes)
        used = [axis for entry in entries if entry for axis in (entry if isinstance(entry, tuple) else (entry,))]
        if len(set(used)) != len(used):
            change = 'change MeshConfig.rules so that each mesh axis is used once.'
            raise UserError(f'the logical axes {tuple(axes)} of one array share a mesh axis ({entries}); {change}')
        return PartitionSpec(*entries)

    def named(self, axes: Sequence[str | None], shape: Sequence[int] | None = None) -> NamedSharding:
        """The `spec` as a sharding of this mesh."""
        return NamedSharding(self.mesh, self.spec(axes, shape))

    def replicated(self) -> NamedSharding:
        """A sharding with the whole array on every device."""
        return NamedSharding(self.mesh, PartitionSpec())


_current: list[Sharding] = []


def current() -> Sharding | None:
    """The sharding of the innermost `use()`, or None outside one or on a single device."""
    return _current[-1] if _current and _current[-1].mesh.size > 1 else None


def placement() -> Any:
    """The mesh and axis rules of the innermost `use()`, hashable: a static argument of programs that depend on them."""
    sharding = current()
    return None if sharding is None else (sharding.mesh, tuple(sorted(sharding.rules.items())))


def device() -> jax.Device:
    """A device that the program being traced will run on; of the current mesh, which may be compiled for only."""
    return _current[-1].mesh.devices.flat[0] if _current else jax.devices()[0]


def platform() -> str:
    """The platform that the program being traced will run on: 'cpu', 'gpu' or 'tpu'."""
    return device().platform


@contextlib.contextmanager
def use(sharding: Sharding | None) -> Iterator[Sharding | None]:
    """A context in which `constrain()` and `current()` use this sharding. Trace jitted functions inside it."""
    if sharding is None:
        yield None
        return
    _current.append(sharding)
    try:
        yield sharding
    finally:
        _current.pop()


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Pins an activation to its sharding on the mesh: `constrain(x_BTD, ('batch', 'length', 'act_embed'))`."""
    sharding = current()
    if sharding is None:
        return x
    return jax.lax.with_sharding_constraint(x, sharding.named(axes, x.shape))


def create_sharding(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Sharding:
    """Builds the mesh `data` x `fsdp` x `context` x `tensor` over all devices.

    Raises:
        UserError: the axes do not multiply to the number of devices, or a rule names an unknown axis.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = _sizes(config, len(devices))
    types = (AxisType.Auto,) * len(MESH_AXES)
    mesh = Mesh(place_devices(devices, tuple(sizes.values())), MESH_AXES, axis_types=types)
    return Sharding(mesh, _rules(config))


def place_devices(devices: Sequence[jax.Device], sizes: Sequence[int]) -> np.ndarray:
    """The devices as an array of the mesh's sizes, so that neighbours on a mesh axis are neighbours in the network.

    A mesh axis covers whole axes of a TPU's torus where that is possible, else it splits them: fsdp=32, tensor=2 on
    4x4x4 chips. The outermost mesh axes run over the slower network between slices, `data` before all others.

    Args:
        devices: those of the mesh, in any order.
        sizes: of the mesh axes, outermost first.
    """
    slices = len({getattr(device, 'slice_index', None) for device in devices})
    across = _across_slices(sizes, slices)
    inside = tuple(size // share for size, share in zip(sizes, across, strict=True))

    def place(split: bool) -> np.ndarray:
        if slices == 1:
            return mesh_utils.create_device_mesh(inside, devices, allow_split_physical_axes=split)
        return mesh_utils.create_hybrid_device_mesh(inside, across, devices, allow_split_physical_axes=split)

    try:
        return place(split=devices[0].device_kind in ('TPU v5 lite', 'TPU v5e'))  # as `jax.make_mesh` does
    except NotImplementedError:  # no whole axes of the torus have these sizes
        return place(split=True)


def _across_slices(sizes: Sequence[int], slices: int) -> tuple[int, ...]:
    """How many slices each mesh axis runs over; the sizes multiply to a multiple of `slices`."""
    shares = []
    for size in sizes:
        shares.append(math.gcd(size, slices))
        slices //= shares[-1]
    return tuple(shares)


def abstract_sharding(config: MeshConfig, devices: int) -> Sharding:
    """The same over a number of devices that need not be there: to know how arrays would be split.

    Raises:
        UserError: as for `create_sharding`.
    """
    sizes = _sizes(config, devices)
    mesh = AbstractMesh(tuple(sizes.values()), tuple(sizes))  # has sizes, but no devices
    return Sharding(cast(Mesh, mesh), _rules(config))


def _sizes(config: MeshConfig, devices: int) -> dict[str, int]:
    """The size of each mesh axis, of which one may be -1 in the settings."""
    sizes = {axis: getattr(config, axis) for axis in MESH_AXES}
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = int(np.prod([size for size in sizes.values() if size != -1], dtype=int))
    if len(free) > 1 or fixed < 1 or devices % fixed or (not free and fixed != devices):
        given = ' x '.join(f'{axis}={size}' for axis, size in sizes.items())
        change = (
            'Set MeshConfig.data, .fsdp, .context and .tensor to sizes whose product is that number (one may be -1).'
        )
        raise UserError(f'the mesh {given} does not divide {devices} devices. {change}')
    if free:
        sizes[free[0]] = devices // fixed
    return sizes


def _rules(config: MeshConfig) -> dict[str, tuple[str, ...]]:
    rules = dict(DEFAULT_RULES)
    for name, mesh_axes in config.rules:
        mesh_axes = (mesh_axes,) if isinstance(mesh_axes, str) else tuple(mesh_axes or ())
        unknown = [axis for axis in mesh_axes if axis not in MESH_AXES]
        if name not in rules or unknown:
            expected = f'a logical axis of {sorted(rules)} and mesh axes of {MESH_AXES}'
            raise UserError(f'MeshConfig.rules has ({name!r}, {mesh_axes!r}), expected {expected}.')
        rules[name] = mesh_axes
    return rules


def check_divides(sharding: Sharding, name: str, size: int) -> None:
    """Checks that the size of a logical axis divides over the mesh.

    Fewer key-value heads than parts are allowed: they stay whole on each device (multi-query attention).

    Raises:
        UserError: it does not; the message names the setting to change.
    """
    parts = sharding.size(name)
    if size % parts and not (name == 'kv_heads' and size < parts):
        setting = _SETTING_OF_AXIS.get(name, name)
        mesh_axes = ' x '.join(f'{axis}={sharding.mesh.shape[axis]}' for axis in sharding.axis(name) or ())
        changed = ', '.join(f'MeshConfig.{axis}' for axis in sharding.axis(name) or ())
        raise UserError(
            f'{setting}={size} does not divide over the mesh axes {mesh_axes}. '
            f'Set {setting} to a multiple of {parts}, or change {changed}.'
        )


def tree_shardings(sharding: Sharding, tree: Any, axes: Any) -> Any:
    """A sharding for each leaf of `tree` (arrays or their shapes); `axes` has a tuple of logical axes for each leaf.

    Raises:
        UserError: a size does not divide over its mesh axes.
    """

    def leaf(x: Any, names: Sequence[str | None]) -> NamedSharding:
        for name, size in zip(names, x.shape, strict=True):
            if name is not None:
                check_divides(sharding, name, size)
        return sharding.named(names, x.shape)

    return jax.tree.map(leaf, tree, axes)


def batch_axes(ndim: int) -> tuple[str | None, ...]:
    """The logical axes of a batch's array with `ndim` axes: rows, length, and unsplit ones."""
    return (('batch', 'length') + (None,) * ndim)[:ndim]


def put_batch(sharding: Sharding, batch: Mapping[str, np.ndarray], global_rows: int) -> dict[str, jax.Array]:
    """This host's rows of every feature [rows, length] -> global arrays [global_rows, length], split over the mesh.

    Raises:
        UserError: a length does not divide over its mesh axes.
    """

    def put(x: np.ndarray) -> jax.Array:
        shape, axes = (global_rows, *x.shape[1:]), batch_axes(x.ndim)
        if x.ndim > 1:
            check_divides(sharding, 'length', x.shape[1])
        return jax.make_array_from_process_local_data(sharding.named(axes, shape), x, shape)

    return {name: put(x) for name, x in batch.items()}


def host_rows(sharding: Sharding, global_rows: int) -> slice:
    """The rows of a global batch that this host's devices hold.

    Raises:
        UserError: the rows do not divide over the batch's mesh axes.
    """
    check_divides(sharding, 'batch', global_rows)
    placed = sharding.named(('batch',), (global_rows,)).addressable_devices_indices_map((global_rows,))
    ranges = [index[0].indices(global_rows) for index in placed.values() if index is not None]
    return slice(min(start for start, _, _ in ranges), max(stop for _, stop, _ in ranges))


def fetch(tree: Any) -> Any:
    """Arrays of the mesh as NumPy arrays, whole on every host. If the mesh spans several, all of them must call it."""

    def whole(x: Any) -> Any:
        if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
            return x
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(x, tiled=True)

    return jax.device_get(jax.tree.map(whole, tree))


def memory_left(devices: Sequence[jax.Device]) -> tuple[float, str, float]:
    """Bytes that each of the devices has left, what they are, and bytes that the host has left.

    Devices that do not tell, such as those of a CPU, share the host's memory.

    Args:
        devices: those of this process. Of others, which are only compiled for, nothing is known.
    """
    host = host_memory()
    if not set(devices) <= set(jax.local_devices()):  # only compiled for
        return float('inf'), 'this device', host
    found = [statistics for device in devices if (statistics := device.memory_stats()) and 'bytes_limit' in statistics]
    if len(found) == len(devices) > 0:
        least = min(one['bytes_limit'] - one.get('bytes_in_use', 0) for one in found)
        return float(least), f'a {devices[0].device_kind}', host
    each = '' if len(devices) == 1 else f' for each of its {len(devices)} devices'
    return host / max(1, len(devices)), f'this host{each}', host
