"""Safetensors files, read and written one array at a time.

The `safetensors` library gives NumPy no bfloat16 and writes only what lies in memory whole; the format is eight bytes of
header length, a JSON header, and raw little-endian arrays without gaps (https://github.com/huggingface/safetensors).
"""

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import ml_dtypes
import numpy as np

from t5flan.errors import UserError

DTYPES: Mapping[str, np.dtype] = {
    'F64': np.dtype('<f8'),
    'F32': np.dtype('<f4'),
    'F16': np.dtype('<f2'),
    'BF16': np.dtype(ml_dtypes.bfloat16),
    'I64': np.dtype('<i8'),
    'I32': np.dtype('<i4'),
    'I16': np.dtype('<i2'),
    'I8': np.dtype('i1'),
    'U8': np.dtype('u1'),
    'BOOL': np.dtype('?'),
}
NAME_OF = {dtype: name for name, dtype in DTYPES.items()}
_LONGEST_HEADER = 100_000_000  # bytes; the library's own limit
INDEX = 'model.safetensors.index.json'
_TILE = 16  # rows transposed at a time: a cache line of float32


@dataclasses.dataclass(frozen=True)
class Stored:
    """Where an array lies."""

    file: Path
    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def rows(self, first: int, last: int) -> np.ndarray:
        """Rows [first, last) of axis 0. (Read, not mapped: pages of a mapped file count as this process's memory.)"""
        array = np.empty((last - first, *self.shape[1:]), self.dtype)
        with open(self.file, 'rb', buffering=0) as handle:
            handle.seek(self.offset + first * (self.size // max(1, self.shape[0])))
            view, done = memoryview(array.reshape(-1).view(np.uint8)), 0
            while done < len(view):
                count = handle.readinto(view[done : done + 2**30])
                if not count:
                    raise UserError(
                        f'{self.file} ended while an array was read: it was changed meanwhile. Start again.'
                    )
                done += count
        return array

    def read(self) -> np.ndarray:
        """The whole array, of at least one dimension."""
        return self.rows(0, self.shape[0])

    def read_transposed(self) -> np.ndarray:
        """The transpose of a matrix, of which only strips lie in memory twice."""
        result = np.empty(self.shape[::-1], self.dtype)
        for first, last in strips(self.shape, self.dtype):
            transpose_into(result[:, first:last], self.rows(first, last))
        return result


def strips(shape: Sequence[int], dtype: np.dtype, size: int = 2**20) -> Iterator[tuple[int, int]]:
    """Ranges of rows of about `size` bytes each."""
    step = max(_TILE, size // max(1, math.prod(shape[1:]) * dtype.itemsize) // _TILE * _TILE)
    return ((first, min(first + step, shape[0])) for first in range(0, shape[0], step))


def transpose_into(result: np.ndarray, array: np.ndarray) -> None:
    """result = array.T, by tiles that stay in cache: several times as fast as NumPy's own."""
    for first in range(0, array.shape[0], _TILE):
        result[:, first : first + _TILE] = array[first : first + _TILE].T


def read_header(file: Path) -> dict[str, Stored]:
    """The arrays of one file.

    Raises:
        UserError: it is cut short, or no safetensors file.
    """
    size = file.stat().st_size
    with open(file, 'rb') as handle:
        length = int.from_bytes(handle.read(8), 'little')
        if size < 8 or length > min(_LONGEST_HEADER, size - 8):
            raise UserError(
                f'{file} is no whole safetensors file: {size:,} bytes, its header claims {length:,}. Download it again.'
            )
        try:
            header = json.loads(handle.read(length))
            header.pop('__metadata__', None)
            arrays = {name: _stored(file, 8 + length, entry) for name, entry in header.items()}
        except UserError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f'{file} is no safetensors file: its header cannot be read ({_first_line(error)}). Download it again.'
            ) from None
    _check_layout(file, arrays, 8 + length, size)
    return arrays


def _stored(file: Path, start: int, entry: Mapping) -> Stored:
    if entry['dtype'] not in DTYPES:
        raise UserError(
            f'{file} holds arrays of dtype {entry["dtype"]}, which are not converted; expected '
            f'{", ".join(DTYPES)}. Save the model in one of them (quantized weights: the original ones).'
        )
    first, last = (int(place) for place in entry['data_offsets'])
    stored = Stored(file, DTYPES[entry['dtype']], tuple(int(size) for size in entry['shape']), start + first)
    if last - first != stored.size or min(stored.shape, default=0) < 0:
        raise ValueError(f'{last - first} bytes for shape {list(stored.shape)} of {entry["dtype"]}')
    return stored


def _check_layout(file: Path, arrays: Mapping[str, Stored], start: int, size: int) -> None:
    """Every byte belongs to exactly one array, as the format demands."""
    expected = start
    for name, stored in sorted(arrays.items(), key=lambda item: (item[1].offset, item[1].size)):
        if stored.offset != expected:
            raise UserError(
                f'{file} is no sound safetensors file: {name} begins at byte {stored.offset:,}, expected '
                f'{expected:,}. Download it again.'
            )
        expected += stored.size
    if expected != size:
        what = 'is cut short' if expected > size else 'has bytes that belong to no array'
        raise UserError(f'{file} {what}: {size:,} bytes, its header promises {expected:,}. Download it again.')


def read_folder(folder: Path) -> dict[str, Stored]:
    """The arrays of model.safetensors, or of the shards that the index names.

    Raises:
        UserError: neither is there, a shard is missing, the index and the shards disagree, or there are only pickle files.
    """
    single, index = folder / 'model.safetensors', folder / INDEX
    if index.is_file():
        return _read_shards(folder, index)
    if single.is_file():
        return read_header(single)
    pickles = sorted(
        file.name for pattern in ('*.bin', '*.pt', '*.pth', '*.pkl', '*.ckpt') for file in folder.glob(pattern)
    )
    if pickles:
        raise UserError(
            f'{folder} holds its weights as {pickles[0]}, a pickle file: loading one can run any code, so it is not '
            'read. Save the model with save_pretrained of transformers, which writes model.safetensors.'
        )
    shards = sorted(folder.glob('model-*-of-*.safetensors'))
    if shards:
        raise UserError(
            f'{folder} has {shards[0].name} and no {INDEX}, which says what the shards hold. Download it too.'
        )
    raise UserError(f'{folder} has no model.safetensors. Give a folder written by save_pretrained.')


def _read_shards(folder: Path, index: Path) -> dict[str, Stored]:
    try:
        weight_map = json.loads(index.read_text('utf-8'))['weight_map']
        files = sorted(set(weight_map.values()))
        if not all(isinstance(file, str) and Path(file).name == file for file in files):
            raise ValueError('a shard that is no file name')
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'{index} is no index of safetensors shards ({_first_line(error)}). Download it again.'
        ) from None
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise UserError(
            f'{folder} lacks {missing[0]} ({len(missing)} of {len(files)} shards are missing), which {INDEX} '
            'names. Download the missing shards.'
        )
    held = {file: read_header(folder / file) for file in files}
    arrays = {}
    for name, file in weight_map.items():
        if name not in held[file]:
            raise UserError(f'{index} says that {name} is in {file}; it is not. Download index and shards again.')
        arrays[name] = held[file][name]
    unnamed = [(file, name) for file in files for name in held[file] if weight_map.get(name) != file]
    if unnamed:
        raise UserError(
            f'{unnamed[0][0]} holds {unnamed[0][1]}, which {INDEX} does not place there. Download index and '
            'shards again.'
        )
    return arrays


class FolderWriter:
    """Writes arrays, whose shapes are known before and whose values come in any order, as one file or as shards.

    Args:
        folder: exists already.
        arrays: name -> (shape, dtype), in the order they shall lie.
        shard_size: bytes a shard holds at most (a larger array has one of its own).
    """

    def __init__(self, folder: Path, arrays: Mapping[str, tuple[Sequence[int], np.dtype]], shard_size: int) -> None:
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
        names = (
            ['model.safetensors']
            if count == 1
            else [f'model-{i:05d}-of-{count:05d}.safetensors' for i in range(1, count + 1)]
        )
        self._places: dict[str, Stored] = {}
        self._handles: dict[Path, BinaryIO] = {}
        for file, shard in zip(names, shards, strict=True):
            self._begin(folder / file, shard)
        if count > 1:
            weight_map = {name: stored.file.name for name, stored in self._places.items()}
            (folder / INDEX).write_text(
                json.dumps({'metadata': {'total_size': total}, 'weight_map': weight_map}, indent=2), 'utf-8'
            )

    def _begin(self, file: Path, shard: Mapping[str, tuple[Sequence[int], np.dtype]]) -> None:
        header, offset = {'__metadata__': {'format': 'pt'}}, 0
        for name, (shape, dtype) in shard.items():
            size = math.prod(shape) * dtype.itemsize
            header[name] = {'dtype': NAME_OF[dtype], 'shape': list(shape), 'data_offsets': [offset, offset + size]}
            offset += size
        text = json.dumps(header).encode()
        text += b' ' * (-len(text) % 8)  # arrays begin at a multiple of eight, as the library writes them
        self._handles[file] = handle = open(file, 'wb', buffering=0)
        handle.write(len(text).to_bytes(8, 'little') + text)
        handle.truncate(8 + len(text) + offset)
        for name, (shape, dtype) in shard.items():
            self._places[name] = Stored(file, dtype, tuple(shape), 8 + len(text) + header[name]['data_offsets'][0])

    def write(self, name: str, array: np.ndarray, transpose: bool = False) -> None:
        """One array, whole; its shape (or that of its transpose) and dtype are those given before."""
        place = self._places[name]
        given = array.shape[::-1] if transpose else array.shape
        assert given == place.shape and array.dtype == place.dtype, (name, array.shape, array.dtype, place)
        offset = place.offset
        for first, last in strips(place.shape, place.dtype):
            rows = array[first:last]
            if transpose:
                rows = np.empty((last - first, *place.shape[1:]), place.dtype)
                transpose_into(rows, array[:, first:last])
            view = memoryview(np.ascontiguousarray(rows).reshape(-1).view(np.uint8))
            while len(view):
                done = os.pwrite(self._handles[place.file].fileno(), view[: 2**30], offset)
                view, offset = view[done:], offset + done

    def close(self) -> None:
        """Ends the files."""
        for handle in self._handles.values():
            handle.close()


def _first_line(error: Exception) -> str:
    return f'{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}'[:120]
