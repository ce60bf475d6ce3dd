"""t5flan's folder of an adapter: read with the adapter merged into its base, and written.

As everywhere in conversion, the base is read one layer at a time.
"""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import traverse_util

from t5flan.adapters.adapter import adapter_arrays, apply, fingerprint, fingerprint_of_pieces, from_record
from t5flan.adapters.config import Adapter
from t5flan.adapters.methods.dy_lora import DyLora
from t5flan.adapters.projection import AdaptedProjection, projections
from t5flan.conversion.checkpoint import Checkpoint, match_arrays
from t5flan.conversion.names import Shape
from t5flan.conversion.zarr_arrays import Folder
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.errors import UserError
from t5flan.files import write_whole
from t5flan.models.build import abstract_model
from t5flan.models.config import ModelConfig
from t5flan.models.parameters import named_parameters
from t5flan.training import checkpoints
from t5flan.training.checkpoints import whole

Arrays = Mapping[str, np.ndarray]


def abstract_adapted(config: ModelConfig, settings: Adapter) -> Any:
    """The model with an adapter, as shapes.

    Raises:
        UserError: the settings do not fit the model.
    """
    return jax.eval_shape(lambda model: apply(model, settings, jax.random.key(0)), abstract_model(config))


def read_arrays(where: str) -> tuple[Adapter, dict[str, np.ndarray]]:
    """The settings and the arrays of an adapter's folder.

    Raises:
        UserError: an array is missing or has another shape.
    """
    description = checkpoints.read_description(where)
    settings = from_record(description.adapter or {})
    root, step = checkpoints.checkpoint_root(where), checkpoints.find_step(where)
    whole.require_whole(root, step, ('parameters', 'meta'))
    folder = Folder(f'{root / checkpoints.CHECKPOINTS / str(step)}/parameters')
    own = adapter_arrays(abstract_adapted(description.model, settings))
    expected = {name: (name, [x.shape]) for name, x in own.items()}
    stored = {name.replace('.', '/'): folder.open(name) for name in folder.array_names()}
    source = f'the adapter of {checkpoints.DESCRIPTION}'
    found = match_arrays(folder.where, source, 'Copy the whole checkpoint again.', expected, stored)
    return settings, {name: array.read() for name, array in found.items()}


class Derived(NamedTuple):
    """An adapter that is made from others of the same base.

    Attributes:
        base: the folder of a step of the base.
        fingerprint: that of the base; None if it is not known.
        settings, arrays: its own.
    """

    base: str
    fingerprint: str | None
    settings: Adapter
    arrays: dict[str, np.ndarray]


def read_cut(where: str, rank: int) -> Derived:
    """An adapter of DyLoRA, cut to a rank: an adapter of LoRA.

    Raises:
        UserError: the folder holds something else, or the rank is above that of the adapter.
    """
    root = checkpoints.checkpoint_root(where)
    description = checkpoints.read_description(root)
    settings, arrays = read_arrays(where) if description.adapter is not None else (None, {})
    if not isinstance(settings, DyLora):
        found = 'a whole model' if settings is None else f'an adapter of the method {type(settings).__name__}'
        raise UserError(f'--rank={rank} is for an adapter of DyLora, but {where} is {found}. Remove --rank.')
    cut = settings.at_rank(rank)
    shapes = {name: x.shape for name, x in adapter_arrays(abstract_adapted(description.model, cut)).items()}
    arrays = {name: np.ascontiguousarray(x[tuple(map(slice, shapes[name]))]) for name, x in arrays.items()}
    record = description.adapter or {}
    base = f'{checkpoints.base_folder(root, description)}/{checkpoints.CHECKPOINTS}/{record["step"]}'
    return Derived(base, record['fingerprint'], cut, arrays)


def require_base(base: Checkpoint, known: str | None, where: str) -> None:
    """Requires the base of the adapter `where` to have the parameters with this fingerprint; reads all of them.

    Raises:
        UserError: they have changed.
    """
    if known is None or checkpoints.read_description(base.where).adapter is not None:
        return  # an adapter that is a base was compared with its own base; merged here, it may round otherwise
    pieces = ((shape.name, layer, array) for shape, layer, array in base.pieces(allow_nan=True))
    if fingerprint_of_pieces(pieces) != known:
        raise checkpoints.changed_base(where, base.where)


def merged(base: Checkpoint, settings: Adapter, arrays: Arrays, where: str) -> Checkpoint:
    """The base with the adapter merged into its kernels, which keep their dtypes.

    Raises:
        UserError: the adapter has parts that no kernel can hold.
    """
    model = abstract_adapted(base.config, settings)
    adapted: dict[str, AdaptedProjection] = {}
    for path, parent, name in projections(model):
        if isinstance(projection := getattr(parent, name), AdaptedProjection):
            adapted[f'{path}/kernel'] = projection
    if not settings.mergeable:
        problem = f'{where}: an adapter of the method {type(settings).__name__} has no kernel to be merged into'
        raise UserError(f'{problem}. Use the folder itself with `t5flan evaluate` and `t5flan infer`.')

    def read(shape: Shape, layer: int | None) -> np.ndarray:
        kernel = base.read(shape, layer)
        if shape.name not in adapted:
            return kernel
        projection, path = adapted[shape.name], shape.name.rpartition('/')[0]
        values = {'kernel': kernel.astype(np.float32)}
        for part in named_parameters(projection).keys() - values.keys():
            values[part] = arrays[f'{path}/{part}'][() if layer is None else layer]
        leaves = [values[part] for part in named_parameters(projection)]
        one = jax.tree.unflatten(jax.tree.structure(projection), leaves)
        return np.asarray(_merge(one)).astype(kernel.dtype)

    return dataclasses.replace(base, where=where, read=read)


@jax.jit
def _merge(projection: AdaptedProjection) -> jax.Array:
    return projection.merged_kernel()


def write(folder: Path, base: str, settings: Adapter, arrays: Arrays, extras: Mapping[str, bytes]) -> None:
    """Writes a folder that holds an adapter, with one step, 0; the folder exists and is empty.

    Args:
        base: the checkpoint folder of the base, named in t5flan.json.
        extras: files to keep unchanged, by name.

    Raises:
        UserError: the base is not a checkpoint folder.
    """
    root = checkpoints.checkpoint_root(base)
    description = checkpoints.read_description(root)
    vocabulary = load_vocabulary(root / checkpoints.VOCABULARY)
    vocabulary.save(folder / checkpoints.VOCABULARY)
    model = checkpoints.restore_parameters(base, _on_one_device(description.model))
    place = checkpoints.base_record(base, folder) | {'fingerprint': fingerprint(model)}
    fields = dataclasses.asdict(settings)
    record = {'method': type(settings).__name__, 'settings': fields} | place
    dataclasses.replace(description, adapter=record, step=None).write(folder)
    kept = root / checkpoints.HUGGING_FACE
    for file in kept.iterdir() if kept.exists() else ():
        write_whole(folder / checkpoints.HUGGING_FACE / file.name, file.read_bytes())
    for name, content in extras.items():
        write_whole(folder / name, content)
    handler = ocp.CompositeCheckpointHandler(
        parameters=ocp.PyTreeCheckpointHandler(use_ocdbt=False), meta=ocp.JsonCheckpointHandler()
    )
    tree = traverse_util.unflatten_dict(dict(arrays), sep='/')
    with ocp.Checkpointer(handler) as checkpointer:
        items = ocp.args.Composite(parameters=ocp.args.PyTreeSave(tree), meta=ocp.args.JsonSave({'step': 0}))
        checkpointer.save((folder / checkpoints.CHECKPOINTS / '0').absolute(), items)
    whole.write_checksums(folder / checkpoints.CHECKPOINTS / '0', folder, 0)


def write_derived(folder: Path, where: str, derived: Derived) -> None:
    """Writes the folder of an adapter that was made from those in `where`; see `write`.

    Raises:
        UserError: the parameters of the base have changed.
    """
    write(folder, derived.base, derived.settings, derived.arrays, {})
    found = (checkpoints.read_description(folder).adapter or {})['fingerprint']
    if derived.fingerprint not in (None, found):
        raise checkpoints.changed_base(where, derived.base)


@functools.cache
def _on_one_device(config: ModelConfig) -> Any:
    placed = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placed), abstract_model(config))
