"""t5flan's own checkpoint folder <-> a Checkpoint. It is written an array at a time, by Orbax."""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import absl.logging
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from flax import traverse_util

from t5flan.conversion import names
from t5flan.conversion.checkpoint import Checkpoint, one_dtype
from t5flan.conversion.zarr_arrays import UNSYNCED, Folder, chunks, write_rows
from t5flan.data.vocabulary.loading import load_vocabulary
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError
from t5flan.training import checkpoints
from t5flan.training.checkpoints import Description

HUGGING_FACE = 'huggingface'
"""Files of the Hugging Face folder that it came from: they go back as they were."""


def read(where: str, step: int | None = None, vocabulary: Vocabulary | None = None) -> Checkpoint:
    """What a checkpoint folder holds.

    Args:
        where: the workdir of a run, or one of its steps (WORKDIR/checkpoints/1000).
        step: default the latest.
        vocabulary: instead of the folder's own.

    Raises:
        UserError: no checkpoint folder, or arrays that are not the model's.
    """
    root = checkpoints.checkpoint_root(where)
    description = checkpoints.read_description(root)
    found = checkpoints.find_step(where, step)
    folder = Folder(f'{root}/{checkpoints.CHECKPOINTS}/{found}/parameters')
    stored = set(folder.array_names())
    arrays, dtypes = {}, {}
    for name, shape in names.shapes(description.model).items():
        dotted = name.replace('/', '.')
        if dotted not in stored:
            raise UserError(
                f'{folder.where} lacks {name} {list(shape.whole)}, which {checkpoints.DESCRIPTION} asks for. Copy the '
                'checkpoint again, whole.'
            )
        stored.remove(dotted)
        arrays[name] = folder.open(dotted)
        if arrays[name].shape != shape.whole:
            raise UserError(
                f'{folder.where}: {name} has shape {list(arrays[name].shape)}, {checkpoints.DESCRIPTION} asks for '
                f'{list(shape.whole)}. They do not belong together.'
            )
        dtypes[name] = one_dtype(folder.where, name, {arrays[name].dtype})
    if stored:
        raise UserError(
            f'{folder.where} holds {min(stored).replace(".", "/")}, which the model of {checkpoints.DESCRIPTION} does not '
            'have. They do not belong together.'
        )

    def read_one(shape: names.Shape, layer: int | None) -> np.ndarray:
        return arrays[shape.name].read() if layer is None else arrays[shape.name].layer(0, layer)

    beside = Path(root) / HUGGING_FACE
    extras = {file.name: file.read_bytes() for file in beside.iterdir()} if beside.is_dir() else {}
    notes = (
        ('the optimizer state was left behind',)
        if (root / checkpoints.CHECKPOINTS / str(found) / 'optimizer').exists()
        else ()
    )
    return Checkpoint(
        str(where),
        description.model,
        dtypes,
        read_one,
        vocabulary or load_vocabulary(root / checkpoints.VOCABULARY),
        description.format,
        found,
        description.feature_lengths,
        extras,
        notes,
    )


def write(checkpoint: Checkpoint, folder: Path, allow_nan: bool = False) -> list[str]:
    """Writes a checkpoint folder with one step; the folder exists and is empty. Nothing is lost."""
    vocabulary = checkpoint.vocabulary
    vocabulary.save(folder / checkpoints.VOCABULARY)
    Description(
        checkpoint.config,
        checkpoint.format,
        checkpoint.feature_lengths,
        {'size': vocabulary.vocab_size, 'fingerprint': vocabulary.fingerprint},
    ).write(folder)
    if checkpoint.extras:
        (folder / HUGGING_FACE).mkdir()
        for name, content in checkpoint.extras.items():
            (folder / HUGGING_FACE / name).write_bytes(content)
    coming = {name: _Coming(shape, checkpoint.dtypes[name]) for name, shape in names.shapes(checkpoint.config).items()}
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False,
        use_compression=False,  # a file a chunk, as it lies in memory: arrays of floats hardly shrink
        type_handler_registry=ocp.type_handlers.create_type_handler_registry(
            (_Coming, _PieceWriter(checkpoint.pieces(allow_nan)))
        ),
    )
    step = folder / checkpoints.CHECKPOINTS / str(checkpoint.step)
    step.parent.mkdir()
    args = ocp.args.Composite(
        parameters=ocp.args.PyTreeSave(traverse_util.unflatten_dict(coming, sep='/')),
        meta=ocp.args.JsonSave({'step': checkpoint.step}),
    )
    with (
        _quiet(),
        ocp.Checkpointer(
            ocp.CompositeCheckpointHandler(parameters=handler, meta=ocp.JsonCheckpointHandler())
        ) as checkpointer,
    ):
        checkpointer.save(step.absolute(), args)
    return []


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Orbax's log: what fails is raised, and said once."""
    before = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.FATAL)
    try:
        yield
    finally:
        absl.logging.set_verbosity(before)


@dataclasses.dataclass
class _Coming:
    """An array that is still to be read: what Orbax asks of one before it is written."""

    of: names.Shape
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.of.whole

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize


class _PieceWriter(ocp.type_handlers.NumpyHandler):
    """Orbax's writer of NumPy arrays, fed a layer at a time."""

    def __init__(self, pieces: Iterator) -> None:
        super().__init__(deepcopy_host_arrays=False)
        self._pieces = pieces
        self._stores: dict[str, ts.TensorStore] = {}

    async def _background_serialize(self, values: Sequence[_Coming], infos: Sequence[Any], args: Any = None) -> None:
        await super()._background_serialize(values, infos, args)
        for shape, layer, array in self._pieces:
            store = self._stores[shape.name]
            write_rows(store if layer is None else store[layer], array)

    async def _open_and_write(self, value: _Coming, tspec: dict[str, Any], ts_context: ts.Context) -> None:
        """Opens only; what is written comes after, in the order it is read."""
        shape = value.of
        tspec['metadata']['chunks'] = ([] if shape.layers is None else [1]) + chunks(shape.one, value.dtype)
        tspec['kvstore'] |= UNSYNCED
        self._stores[shape.name] = await ts.open(ts.Spec(tspec), create=True, open=True, context=ts_context)
