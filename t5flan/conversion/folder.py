"""t5flan's own checkpoint folder <-> a Checkpoint. Orbax writes it, one array at a time."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import absl.logging
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from flax import traverse_util

from t5flan.conversion import names
from t5flan.conversion.adapters import folder as adapter_folder
from t5flan.conversion.checkpoint import Checkpoint, Piece, match_arrays, one_dtype
from t5flan.conversion.zarr_arrays import UNSYNCED, Folder, chunks, write_rows
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError
from t5flan.training import checkpoints
from t5flan.training.checkpoints import Description, whole


def read(where: str, step: int | None = None, vocabulary: Vocabulary | None = None) -> Checkpoint:
    """Opens a checkpoint folder.

    Args:
        where: the workdir of a run, or one of its steps (WORKDIR/checkpoints/1000).
        step: the step; None is the latest.
        vocabulary: a vocabulary to use instead of the folder's.

    Raises:
        UserError: there is no checkpoint folder, or its arrays are not the model's.
    """
    root = checkpoints.checkpoint_root(where)
    description = checkpoints.read_description(root)
    if description.adapter is not None:
        base = read(f'{checkpoints.base_folder(root, description)}', description.adapter['step'], vocabulary)
        adapter_folder.require_base(base, description.adapter['fingerprint'], where)
        return dataclasses.replace(
            adapter_folder.merged(base, *adapter_folder.read_arrays(where), where), step=checkpoints.find_step(where)
        )
    found = checkpoints.find_step(where, step)
    whole.require_whole(root, found, ('parameters', 'meta'))
    step_folder = root / checkpoints.CHECKPOINTS / str(found)
    folder = Folder(f'{step_folder}/parameters')
    expected = {name: (name, [shape.whole]) for name, shape in names.shapes(description.model).items()}
    stored = {name.replace('.', '/'): folder.open(name) for name in folder.array_names()}
    fix = 'Copy the whole checkpoint again.'
    arrays = match_arrays(folder.where, f'the model of {checkpoints.DESCRIPTION}', fix, expected, stored)

    own = load_vocabulary(root / checkpoints.VOCABULARY) if vocabulary is None else vocabulary
    known = description.vocabulary.get('fingerprint')
    if vocabulary is None and known not in (None, own.fingerprint):
        problem = f'{root / checkpoints.VOCABULARY} is not the vocabulary that the model was trained with'
        raise UserError(f'{problem}. Put it back, or set --vocabulary.')

    def read_one(shape: names.Shape, layer: int | None) -> np.ndarray:
        return arrays[shape.name].read() if layer is None else arrays[shape.name].layer(0, layer)

    kept = Path(root) / checkpoints.HUGGING_FACE
    return Checkpoint(
        str(where),
        description.model,
        {name: one_dtype(array.where, name, {array.dtype}) for name, array in arrays.items()},
        read_one,
        own,
        description.format,
        found,
        description.feature_lengths,
        {file.name: file.read_bytes() for file in kept.iterdir()} if kept.is_dir() else {},
        ('the optimizer state is not converted',) if (step_folder / 'optimizer').exists() else (),
    )


def write(checkpoint: Checkpoint, folder: Path, allow_nan: bool = False) -> list[str]:
    """Writes a checkpoint folder with one step; the folder exists and is empty.

    Returns:
        What could not be kept: nothing.
    """
    vocabulary = checkpoint.vocabulary
    vocabulary.save(folder / checkpoints.VOCABULARY)
    fields = {'size': vocabulary.vocab_size, 'fingerprint': vocabulary.fingerprint}
    Description(checkpoint.config, checkpoint.format, checkpoint.feature_lengths, fields).write(folder)
    if checkpoint.extras:
        (folder / checkpoints.HUGGING_FACE).mkdir()
        for name, content in checkpoint.extras.items():
            (folder / checkpoints.HUGGING_FACE / name).write_bytes(content)
    shapes = names.shapes(checkpoint.config)
    pending = {name: _PendingArray(one, checkpoint.dtypes[name]) for name, one in shapes.items()}
    writer = _PieceWriter(checkpoint.pieces(allow_nan))
    parameters = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False,
        use_compression=False,  # one file per chunk, as in memory: arrays of floats hardly compress
        type_handler_registry=ocp.type_handlers.create_type_handler_registry((_PendingArray, writer)),
    )
    handler = ocp.CompositeCheckpointHandler(parameters=parameters, meta=ocp.JsonCheckpointHandler())
    step = folder / checkpoints.CHECKPOINTS / str(checkpoint.step)
    step.parent.mkdir()
    tree = ocp.args.PyTreeSave(traverse_util.unflatten_dict(pending, sep='/'))
    meta = ocp.args.JsonSave({'step': checkpoint.step})
    with _quiet(), ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(step.absolute(), ocp.args.Composite(parameters=tree, meta=meta))
    whole.write_checksums(step, folder, checkpoint.step)
    return []


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences Orbax's log: an error is raised and reported once."""
    before = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.FATAL)
    try:
        yield
    finally:
        absl.logging.set_verbosity(before)


@dataclasses.dataclass
class _PendingArray:
    """An array that is not read yet, with the attributes that Orbax needs to plan its file."""

    of: names.Shape
    dtype: np.dtype

    shape = property(lambda self: self.of.whole)
    size = property(lambda self: math.prod(self.shape))
    nbytes = property(lambda self: self.size * self.dtype.itemsize)


class _PieceWriter(ocp.type_handlers.NumpyHandler):
    """Orbax's writer of NumPy arrays, which gets one layer at a time."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        super().__init__(deepcopy_host_arrays=False)
        self._pieces = pieces
        self._stores: dict[str, ts.TensorStore] = {}

    async def _background_serialize(
        self, values: Sequence[_PendingArray], infos: Sequence[Any], args: Any = None
    ) -> None:
        await super()._background_serialize(values, infos, args)
        for shape, layer, array in self._pieces:
            store = self._stores[shape.name]
            write_rows(store if layer is None else store[layer], array)

    async def _open_and_write(self, value: _PendingArray, tspec: dict[str, Any], ts_context: ts.Context) -> None:
        """Only opens the file: `_background_serialize` writes the numbers in the order in which they are read."""
        shape = value.of
        tspec['metadata']['chunks'] = ([] if shape.layers is None else [1]) + chunks(shape.one, value.dtype)
        tspec['kvstore'] |= UNSYNCED
        self._stores[shape.name] = await ts.open(ts.Spec(tspec), create=True, open=True, context=ts_context)
