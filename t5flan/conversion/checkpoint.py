"""A checkpoint of any format as t5flan's parameters, read a layer at a time, so that no more of it lies in memory."""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterator, Mapping

import ml_dtypes
import numpy as np

from t5flan.conversion.names import Shape, all_pieces, shapes
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError
from t5flan.models.config import ModelConfig

Piece = tuple[Shape, int | None, np.ndarray]
FLOATS: Mapping[str, np.dtype] = {
    'float32': np.dtype(np.float32),
    'bfloat16': np.dtype(ml_dtypes.bfloat16),
    'float16': np.dtype(np.float16),
}
_READ_AHEAD = 2**28  # bytes: of larger arrays there shall be one in memory, not two
_NAN_ROWS = 2**24  # numbers looked at together


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a reader found.

    Attributes:
        where: the folder or file, for messages.
        config: the shape of the model.
        dtypes: t5flan's parameter name -> dtype its numbers have in the file.
        read: (shape, layer) -> the array of `shape.one` in that dtype; layer None for a parameter without layers.
        vocabulary: one of ids alone where the checkpoint brings none.
        step: how long it was trained, where that is known.
        feature_lengths: with what lengths, where that is known.
        format: 'encoder_decoder', 'prefix_lm' or 'causal_lm'.
        extras: other files of a Hugging Face folder (tokenizer, generation), name -> content, which travel as they are.
        notes: what was assumed, and what of the checkpoint is left behind; one line each.
    """

    where: str
    config: ModelConfig
    dtypes: Mapping[str, np.dtype]
    read: Callable[[Shape, int | None], np.ndarray]
    vocabulary: Vocabulary
    format: str
    step: int = 0
    feature_lengths: Mapping[str, int] = dataclasses.field(default_factory=dict)
    extras: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Of all parameters."""
        return sum(
            int(np.prod(shape.whole)) * self.dtypes[name].itemsize for name, shape in shapes(self.config).items()
        )

    def cast(self, dtype: str) -> 'Checkpoint':
        """The same with every number rounded to `dtype`."""
        wanted, read = FLOATS[dtype], self.read
        return dataclasses.replace(
            self,
            dtypes=dict.fromkeys(self.dtypes, wanted),
            read=lambda shape, layer: read(shape, layer).astype(wanted, copy=False),
        )

    def pieces(self, allow_nan: bool = False) -> Iterator[Piece]:
        """Every array, the next one read while one is used.

        Raises:
            UserError: one holds NaN, unless that is allowed.
        """

        def one(place: tuple[Shape, int | None]) -> Piece:
            shape, layer = place
            array = self.read(shape, layer)
            assert array.shape == shape.one and array.dtype == self.dtypes[shape.name], (
                shape,
                array.shape,
                array.dtype,
            )
            if not allow_nan and has_nan(array):
                where = shape.name if layer is None else f'layer {layer} of {shape.name}'
                raise UserError(
                    f'{self.where}: {where} holds NaN: the training that made it had failed. Take an earlier '
                    'checkpoint, or set --allow_nan.'
                )
            return shape, layer, array

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            coming: list[concurrent.futures.Future[Piece]] = []
            for place in all_pieces(self.config):
                small = int(np.prod(place[0].one)) * self.dtypes[place[0].name].itemsize <= _READ_AHEAD
                if small:
                    coming.append(pool.submit(one, place))
                if len(coming) > 1 or (coming and not small):
                    yield coming.pop(0).result()
                if not small:
                    yield one(place)
            if coming:
                yield coming.pop().result()


def has_nan(array: np.ndarray) -> bool:
    """Whether any number is NaN."""
    flat = array.reshape(-1)
    for start in range(0, len(flat), _NAN_ROWS):
        part = flat[start : start + _NAN_ROWS]
        if part.dtype == FLOATS['bfloat16']:  # NumPy has no fast loops for it
            found = (part.view(np.uint16) & 0x7FFF).max() > 0x7F80
        else:
            found = np.isnan(part.max())  # the largest of numbers with a NaN among them is NaN
        if found:
            return True
    return False


def one_dtype(where: str, name: str, found: set[np.dtype]) -> np.dtype:
    """The dtype of a parameter whose layers may have several: the one that holds all their numbers.

    Raises:
        UserError: they are not floating-point numbers of 32 bits or less.
    """
    for dtype in found:
        if dtype not in FLOATS.values():
            raise UserError(
                f'{where}: {name} holds {dtype.name} numbers; expected float32, bfloat16 or float16 (quantized '
                'weights are not converted).'
            )
    return found.pop() if len(found) == 1 else FLOATS['float32']
