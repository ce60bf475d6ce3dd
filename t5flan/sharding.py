"""Mesh, the one table from logical to mesh axes, and `constrain()`.

Parameters and activations name logical axes; this table says which mesh axis each is split over. Changing the
parallelism is changing the table (`MeshConfig.rules` in gin), never model code:

    data     copies of the model, each on its part of the batch
    fsdp     the batch is split here too, and so are the parameters (gathered where used)
    context  every row is split along its length, for long ones; keys and values are gathered where attention reads them
    tensor   heads, MLP and vocabulary are split; the batch is not

The mapping is that of T5X's `LogicalAxisRules` and of jax-ml's llama example, with two refusals in place of silence:
a size that does not divide, and two axes of one array on the same mesh axis.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

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
    'embed': ('fsdp',),
    'mlp': ('tensor',),
    'heads': ('tensor',),
    'kv_heads': ('tensor',),
    'kv': (),
    'relpos_buckets': (),
    'layers': (),
}

# Which setting mends a size that does not divide.
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
    """A mesh and the rules that place logical axes on it."""

    mesh: Mesh
    rules: Mapping[str, tuple[str, ...]]

    def axis(self, name: str | None) -> tuple[str, ...] | None:
        """The mesh axes of one logical axis, those of size 1 left out; None if it is not split.

        Raises:
            UserError: `name` is in no rule.
        """
        if name is None:
            return None
        if name not in self.rules:
            raise UserError(
                f'no rule places the logical axis {name!r}; the rules know {sorted(self.rules)}. '
                'Add it to MeshConfig.rules.'
            )
        return tuple(axis for axis in self.rules[name] if self.mesh.shape[axis] > 1) or None

    def size(self, name: str) -> int:
        """Into how many parts a logical axis is split."""
        return int(np.prod([self.mesh.shape[axis] for axis in self.axis(name) or ()], dtype=int))

    def spec(self, axes: Sequence[str | None], shape: Sequence[int] | None = None) -> PartitionSpec:
        """('embed', 'mlp') -> PartitionSpec('fsdp', 'tensor').

        With `shape`, an axis of that size that the mesh does not divide is left whole. Parameters are checked first
        (`parameter_shardings`), so this leaves whole just what may be: few key-value heads, a ragged last batch.
        """
        entries: list[Any] = []
        for i, name in enumerate(axes):
            mesh_axes = self.axis(name)
            if mesh_axes and shape is not None and shape[i] % self.size(name):
                mesh_axes = None
            entries.append(mesh_axes[0] if mesh_axes and len(mesh_axes) == 1 else mesh_axes)
        used = [axis for entry in entries if entry for axis in (entry if isinstance(entry, tuple) else (entry,))]
        if len(set(used)) != len(used):
            raise UserError(
                f'the logical axes {tuple(axes)} of one array share a mesh axis ({entries}); '
                'change MeshConfig.rules so that each mesh axis is used once.'
            )
        return PartitionSpec(*entries)

    def named(self, axes: Sequence[str | None], shape: Sequence[int] | None = None) -> NamedSharding:
        """`spec` as a sharding of this mesh."""
        return NamedSharding(self.mesh, self.spec(axes, shape))

    def replicated(self) -> NamedSharding:
        """Every device holds the whole."""
        return NamedSharding(self.mesh, PartitionSpec())


_current: list[Sharding] = []


def current() -> Sharding | None:
    """The sharding of the innermost `use()`, or None outside one or on a single device."""
    return _current[-1] if _current and _current[-1].mesh.size > 1 else None


def platform() -> str:
    """'cpu', 'gpu' or 'tpu': what the program being traced will run on, which may be a topology that is only compiled for."""
    sharding = current()
    return jax.default_backend() if sharding is None else sharding.mesh.devices.flat[0].platform


@contextlib.contextmanager
def use(sharding: Sharding | None) -> Iterator[Sharding | None]:
    """Inside, `constrain()` and `current()` speak of this sharding. Trace jitted functions inside it."""
    if sharding is None:
        yield None
        return
    _current.append(sharding)
    try:
        yield sharding
    finally:
        _current.pop()


def constrain(x: jax.Array, axes: Sequence[str | None]) -> jax.Array:
    """Pins an activation to its place on the mesh: `constrain(x_BTD, ('batch', 'length', 'act_embed'))`."""
    sharding = current()
    if sharding is None:
        return x
    return jax.lax.with_sharding_constraint(x, sharding.named(axes, x.shape))


def create_sharding(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Sharding:
    """The mesh `data` x `fsdp` x `context` x `tensor` over all devices; -1 on one axis takes what the others leave.

    Raises:
        UserError: the axes do not multiply to the number of devices, or a rule names an unknown axis.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = {axis: getattr(config, axis) for axis in MESH_AXES}
    free = [axis for axis, size in sizes.items() if size == -1]
    fixed = int(np.prod([size for size in sizes.values() if size != -1], dtype=int))
    if len(free) > 1 or fixed < 1 or len(devices) % fixed or (not free and fixed != len(devices)):
        given = ' x '.join(f'{axis}={size}' for axis, size in sizes.items())
        raise UserError(
            f'the mesh {given} does not divide over {len(devices)} devices. '
            'Set MeshConfig.data, .fsdp, .context and .tensor to sizes whose product is that number (one may be -1).'
        )
    if free:
        sizes[free[0]] = len(devices) // fixed
    mesh = jax.make_mesh(
        tuple(sizes.values()), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices
    )
    return Sharding(mesh, _rules(config))


def _rules(config: MeshConfig) -> dict[str, tuple[str, ...]]:
    rules = dict(DEFAULT_RULES)
    for name, mesh_axes in config.rules:
        mesh_axes = (mesh_axes,) if isinstance(mesh_axes, str) else tuple(mesh_axes or ())
        unknown = [axis for axis in mesh_axes if axis not in MESH_AXES]
        if name not in rules or unknown:
            raise UserError(
                f'MeshConfig.rules has ({name!r}, {mesh_axes!r}); logical axes are {sorted(rules)}, '
                f'mesh axes are {MESH_AXES}.'
            )
        rules[name] = mesh_axes
    return rules


def check_divides(sharding: Sharding, name: str, size: int) -> None:
    """Refuses a size that the mesh does not divide, naming the setting that mends it.

    Fewer key-value heads than parts are kept whole on each device (multi-query attention), not refused.
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
    """A sharding for each leaf of `tree` (arrays or their shapes); `axes` holds a tuple of logical axes per leaf.

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
    """The logical axes of an array of a batch of that many axes: rows, length, and what else there may be."""
    return (('batch', 'length') + (None,) * ndim)[:ndim]


def put_batch(sharding: Sharding, batch: Mapping[str, np.ndarray], global_rows: int) -> dict[str, jax.Array]:
    """This host's rows of every feature [rows, length] -> global arrays [global_rows, length] split over rows and length.

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
    starts = [index[0].indices(global_rows) for index in placed.values()]
    return slice(min(start for start, _, _ in starts), max(stop for _, stop, _ in starts))
