"""A tensor of a GGUF file as an array: dequantized a strip of rows at a time, in Hugging Face's layout."""

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from t5flan.conversion.safetensors_files import Stored, read_bytes, strips
from t5flan.errors import UserError

QUANTIZED = ('Q8_0', 'Q4_0', 'Q4_1', 'Q4_K', 'Q6_K')
_FLOATS = {'F32': np.dtype('<f4'), 'F16': np.dtype('<f2'), 'BF16': np.dtype(ml_dtypes.bfloat16)}
TYPES = (*_FLOATS, *QUANTIZED)


def require_library(where: object) -> None:
    """Raises a UserError if the `gguf` package is missing."""
    try:
        import gguf  # noqa: F401
    except ImportError:
        raise UserError(f"{where} needs the gguf package: pip install 't5flan[convert]'.") from None


@functools.cache
def blocks() -> Mapping[int, tuple[int, int]]:
    """Number of a type that is read -> numbers and bytes of a block."""
    import gguf

    types = [gguf.GGMLQuantizationType[name] for name in TYPES]
    return {int(one): gguf.GGML_QUANT_SIZES[one] for one in types}


def type_name(number: int) -> str:
    """'Q4_K' for 12; the number itself if it is not known."""
    import gguf

    try:
        return gguf.GGMLQuantizationType(number).name
    except ValueError:
        return str(number)


@dataclasses.dataclass(frozen=True)
class Tensor(Stored):
    """A tensor; `dtype` is of the numbers that it stands for: float32 if it is quantized.

    Attributes:
        type: the number of its type.
        heads: above 0, rows are in GGUF's order of a Llama's queries and keys: pairs of a rotation are neighbors,
            [head, head_dim / 2, 2]. They are returned in Hugging Face's, [head, 2, head_dim / 2].
        shift: added to every number.
    """

    type: int
    heads: int = 0
    shift: float = 0.0

    @classmethod
    def of(cls, file: Path, type: int, shape: tuple[int, ...], offset: int) -> 'Tensor':
        """A tensor as it lies in the file."""
        return cls(file, _FLOATS.get(type_name(type), np.dtype(np.float32)), shape, offset, type)

    @property
    def stored_bytes(self) -> int:
        """The size in the file."""
        block, size = blocks()[self.type]
        return math.prod(self.shape) // block * size

    def parts(self) -> Iterator[tuple[int, int]]:
        """Ranges of rows to read at a time, which hold whole heads."""
        if not self.heads:
            return strips(self.shape, self.dtype)
        whole = self.shape[0] // self.heads
        step = whole * max(1, 2**20 // (whole * math.prod(self.shape[1:]) * 4))
        return ((first, min(first + step, self.shape[0])) for first in range(0, self.shape[0], step))

    def rows(self, first: int, last: int) -> np.ndarray:
        """Rows [first, last) of axis 0."""
        if len(self.shape) == 1:
            return self._dequantized(0, 1).reshape(-1)[first:last]
        if not self.heads:
            return self._dequantized(first, last)
        size = self.shape[0] // self.heads
        start = first // size * size
        rows = self._dequantized(start, -(-last // size) * size)
        ordered = rows.reshape(-1, size // 2, 2, *self.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
        return ordered[first - start : last - start]

    def read(self) -> np.ndarray:
        """The whole array; what is quantized is in memory only a strip at a time."""
        result = np.empty(self.shape, self.dtype)
        for first, last in self.parts():
            result[first:last] = self.rows(first, last)
        return result

    def _dequantized(self, first: int, last: int) -> np.ndarray:
        """Rows [first, last) as they are ordered in the file; a vector is one row."""
        block, size = blocks()[self.type]
        count = math.prod(self.shape[1:]) if len(self.shape) > 1 else self.shape[0]
        raw = np.empty((last - first, count // block * size), np.uint8)
        read_bytes(self.file, self.offset + first * raw.shape[1], raw)
        name = type_name(self.type)
        if name in _FLOATS:
            numbers: Any = raw.view(_FLOATS[name])
        else:
            import gguf

            numbers = gguf.dequantize(raw, gguf.GGMLQuantizationType(self.type))
        numbers = numbers.reshape(last - first if len(self.shape) > 1 else self.shape[0], *self.shape[1:])
        return numbers + np.asarray(self.shift, numbers.dtype) if self.shift else numbers
