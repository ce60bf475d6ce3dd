"""Safetensors files, read and written one array at a time.

The `safetensors` library has no bfloat16 for NumPy and writes only arrays that are all in memory. The format is eight
bytes of header length, a JSON header, and raw little-endian arrays without gaps
(https://github.com/huggingface/safetensors).
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from t5flan.errors import MALFORMED, UserError
from t5flan.files import read_object

_NAMES = ('F64', 'F32', 'F16', 'BF16', 'I64', 'I32', 'I16', 'I8', 'U8', 'BOOL')
_CODES = ('<f8', '<f4', '<f2', ml_dtypes.bfloat16, '<i8', '<i4', '<i2', 'i1', 'u1', '?')
DTYPES: Mapping[str, np.dtype] = {name: np.dtype(code) for name, code in zip(_NAMES, _CODES, strict=True)}
NAME_OF = {dtype: name for name, dtype in DTYPES.items()}
INDEX = 'model.safetensors.index.json'
_LONGEST_HEADER = 100_000_000  # bytes; the library's limit
_TILE = 16  # rows transposed at a time: a cache line of float32
_Arrays = Mapping[str, tuple[Sequence[int], np.dtype]]  # name -> (shape, dtype)


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array in a file; `offset` is its first byte."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """The size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, first: int, last: int) -> np.ndarray:
        """Rows [first, last) of axis 0."""
        array = np.empty((last - first, *self.shape[1:]), self.dtype)
        read_bytes(self.file, self.offset + first * (self.size // max(1, self.shape[0])), array)
        return array

    def parts(self) -> Iterator[tuple[int, int]]:
        """Ranges (first, last) of rows to read at a time."""
        return strips(self.shape, self.dtype)

    def read(self) -> np.ndarray:
        """The whole array, of at least one dimension."""
        return self.rows(0, self.shape[0])

    def read_transposed(self) -> np.ndarray:
        """The transpose of a matrix; only one strip at a time is in memory twice."""
        result = np.empty(self.shape[::-1], self.dtype)
        for first, last in self.parts():
            transpose_into(result[:, first:last], self.rows(first, last))
        return result


def read_bytes(file: Path, offset: int, array: np.ndarray) -> None:
    """Fills `array` with the bytes of `file` from `offset` on."""
    # Not np.memmap: the pages of a mapped file count as memory of this process.
    with open(file, 'rb', buffering=0) as handle:
        handle.seek(offset)
        view, done = _bytes_of(array), 0
        while done < len(view):
            count = handle.readinto(view[done : done + 2**30])
            if not count:
                raise UserError(f'{file} was changed while an array was read from it. Run the command again.')
            done += count


def _bytes_of(array: np.ndarray) -> memoryview:
    flat: Any = array.reshape(-1).view(np.uint8)  # NumPy's type does not say that it is a buffer
    return memoryview(flat)


def strips(shape: Sequence[int], dtype: np.dtype, size: int = 2**20) -> Iterator[tuple[int, int]]:
    """Ranges (first, last) of rows of about `size` bytes each."""
    step = max(_TILE, size // max(1, math.prod(shape[1:]) * dtype.itemsize) // _TILE * _TILE)
    return ((first, min(first + step, shape[0])) for first in range(0, shape[0], step))


def transpose_into(result: np.ndarray, array: np.ndarray) -> None:
    """Does result[...] = array.T in tiles that stay in cache, several times as fast as NumPy."""
    for first in range(0, array.shape[0], _TILE):
        result[:, first : first + _TILE] = array[first : first + _TILE].T


def read_header(file: Path) -> dict[str, Stored]:
    """The arrays of one file.

    Raises:
        UserError: it is truncated, or not a safetensors file.
    """
    size = file.stat().st_size
    with open(file, 'rb') as handle:
        length = int.from_bytes(handle.read(8), 'little')
        if size < 8 or length > min(_LONGEST_HEADER, size - 8):
            problem = f'it has {size:,} bytes, and its header should have {length:,}'
            raise UserError(f'{file} is not a complete safetensors file: {problem}. Download it again.')
        try:
            header = json.loads(handle.read(length))
            header.pop('__metadata__', None)
            arrays = {name: _stored(file, 8 + length, entry) for name, entry in header.items()}
        except UserError:
            raise
        except MALFORMED as error:
            problem = f'its header cannot be read ({_first_line(error)})'
            raise UserError(f'{file} is not a safetensors file: {problem}. Download it again.') from None
    _check_layout(file, arrays, 8 + length, size)
    return arrays


def _stored(file: Path, start: int, entry: Mapping) -> Stored:
    if entry['dtype'] not in DTYPES:
        problem = f'holds arrays of dtype {entry["dtype"]}, which are not converted; expected {", ".join(DTYPES)}'
        fix = 'Save the model in one of them (if it is quantized, convert the original).'
        raise UserError(f'{file} {problem}. {fix}')
    first, last = (int(place) for place in entry['data_offsets'])
    stored = Stored(file, DTYPES[entry['dtype']], tuple(int(size) for size in entry['shape']), start + first)
    if last - first != stored.size or min(stored.shape, default=0) < 0:
        raise ValueError(f'{last - first} bytes for shape {list(stored.shape)} of {entry["dtype"]}')
    return stored


def _check_layout(file: Path, arrays: Mapping[str, Stored], start: int, size: int) -> None:
    """Requires every byte to belong to exactly one array, as the format does."""
    expected = start
    for name, stored in sorted(arrays.items(), key=lambda item: (item[1].offset, item[1].size)):
        if stored.offset != expected:
            problem = f'{name} starts at byte {stored.offset:,}, expected {expected:,}'
            raise UserError(f'{file} is not a valid safetensors file: {problem}. Download it again.')
        expected += stored.size
    if expected != size:
        problem = 'is truncated' if expected > size else 'has bytes that belong to no array'
        raise UserError(f'{file} {problem}: it has {size:,} bytes, expected {expected:,}. Download it again.')


def read_folder(folder: Path) -> dict[str, Stored]:
    """The arrays of model.safetensors, or of the shards that the index lists.

    Raises:
        UserError: both are missing, a shard is missing, index and shards disagree, or there are only pickle files.
    """
    single, index = folder / 'model.safetensors', folder / INDEX
    if index.is_file():
        return _read_shards(folder, index)
    if single.is_file():
        return read_header(single)
    endings = ('.bin', '.pt', '.pth', '.pkl', '.ckpt')
    pickles = sorted(file.name for file in folder.glob('*') if file.suffix in endings)
    if pickles:
        problem = f'{folder} holds its weights as {pickles[0]}, a pickle file: loading one can run any code'
        fix = 'Save the model with save_pretrained of transformers, which writes model.safetensors.'
        raise UserError(f'{problem}, so it is not read. {fix}')
    shards = sorted(folder.glob('model-*-of-*.safetensors'))
    if shards:
        raise UserError(f'{folder} has {shards[0].name} but no {INDEX}. Download the index too.')
    raise UserError(f'{folder} has no model.safetensors. Give a folder written by save_pretrained.')


def _read_shards(folder: Path, index: Path) -> dict[str, Stored]:
    try:
        weight_map = read_object(index, 'an index of safetensors shards', 'Download it again.')['weight_map']
        files = sorted(set(weight_map.values()))
        if not all(isinstance(file, str) and Path(file).name == file for file in files):
            raise ValueError('a shard is not a file name')
    except MALFORMED as error:
        problem = f'is not an index of safetensors shards ({_first_line(error)})'
        raise UserError(f'{index} {problem}. Download it again.') from None
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        problem = f'a shard that {INDEX} lists ({len(missing)} of {len(files)} shards are missing)'
        raise UserError(f'{folder} lacks {missing[0]}, {problem}. Download the missing shards.')
    shards = {file: read_header(folder / file) for file in files}
    for name, file in weight_map.items():
        if name not in shards[file]:
            raise UserError(f'{index} lists {name} in {file}, which does not hold it. Download index and shards again.')
    for file, held in shards.items():
        for name in held:
            if weight_map.get(name) != file:
                raise UserError(f'{file} holds {name}, which {INDEX} does not list. Download index and shards again.')
    return {name: shards[file][name] for name, file in weight_map.items()}


class FolderWriter:
    """Writes arrays of known shapes, in any order, to one file or to shards.

    Args:
        folder: an existing folder.
        arrays: name -> (shape, dtype), in the order in the files.
        shard_size: bytes per shard, at most (a larger array gets its own).
    """

    def __init__(self, folder: Path, arrays: _Arrays, shard_size: int) -> None:
        shards: list[dict[str, tuple[Sequence[int], np.dtype]]] = [{}]
        filled = total = 0
        for name, (shape, dtype) in arrays.items():
            size = math.prod(shape) * dtype.itemsize
            if filled and filled + size > shard_size:
                shards.append({})
                filled = 0
            shards[-1][name] = (shape, dtype)
            filled, total = filled + size, total + size
        count = len(shards)
        self._places: dict[str, Stored] = {}
        self._files: dict[Path, int] = {}  # descriptors
        for number, shard in enumerate(shards, 1):
            name = f'model-{number:05d}-of-{count:05d}.safetensors' if count > 1 else 'model.safetensors'
            self._begin(folder / name, shard)
        if count > 1:
            weight_map = {name: stored.file.name for name, stored in self._places.items()}
            index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
            (folder / INDEX).write_text(json.dumps(index, indent=2), 'utf-8')

    def _begin(self, file: Path, shard: _Arrays) -> None:
        header: dict[str, Any] = {'__metadata__': {'format': 'pt'}}
        offsets, offset = {}, 0
        for name, (shape, dtype) in shard.items():
            offsets[name], end = offset, offset + math.prod(shape) * dtype.itemsize
            header[name] = {'dtype': NAME_OF[dtype], 'shape': list(shape), 'data_offsets': [offset, end]}
            offset = end
        text = json.dumps(header).encode()
        text += b' ' * (-len(text) % 8)  # arrays start at a multiple of eight, as in the library's files
        start = 8 + len(text)
        self._files[file] = descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        os.write(descriptor, len(text).to_bytes(8, 'little') + text)
        os.truncate(descriptor, start + offset)
        for name, (shape, dtype) in shard.items():
            self._places[name] = Stored(file, dtype, tuple(shape), start + offsets[name])

    def write(self, name: str, array: np.ndarray, transpose: bool = False) -> None:
        """Writes one array, or its transpose, of the shape and dtype announced for it."""
        place = self._places[name]
        given = array.shape[::-1] if transpose else array.shape
        assert given == place.shape and array.dtype == place.dtype, (name, array.shape, array.dtype, place)
        offset = place.offset
        for first, last in strips(place.shape, place.dtype):
            rows = array[first:last]
            if transpose:
                rows = np.empty((last - first, *place.shape[1:]), place.dtype)
                transpose_into(rows, array[:, first:last])
            view = _bytes_of(np.ascontiguousarray(rows))
            while len(view):
                done = os.pwrite(self._files[place.file], view[: 2**30], offset)
                view, offset = view[done:], offset + done

    def close(self) -> None:
        """Closes the files."""
        for descriptor in self._files.values():
            os.close(descriptor)


def _first_line(error: Exception) -> str:
    return f'{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}'[:120]
