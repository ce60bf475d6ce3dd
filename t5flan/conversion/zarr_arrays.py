"""Arrays in zarr, in a folder or a bucket, plain (T5X's own format) or inside OCDBT (Orbax's): read and written by TensorStore."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from t5flan.errors import UserError

UNSYNCED = {'file_io_sync': False}
"""A result appears by a rename at the end; until then no chunk need wait for the disk."""
_CHUNK = 2**26  # bytes a chunk holds about, as T5X writes them


def kvstore_spec(folder: str) -> dict[str, Any]:
    """TensorStore's name of a local folder or of gs://BUCKET/PATH. (TENSORSTORE_GCS_HTTP_URL takes another server.)"""
    if folder.startswith('gs://'):
        bucket, _, path = folder.removeprefix('gs://').partition('/')
        return {'driver': 'gcs', 'bucket': bucket, 'path': path.rstrip('/') + '/' if path else ''}
    return {'driver': 'file', 'path': os.path.abspath(folder) + '/', **UNSYNCED}


class Folder:
    """Small files and arrays under one place."""

    def __init__(self, where: str) -> None:
        self.where = where.rstrip('/')
        self._spec = kvstore_spec(self.where)
        try:
            self._store = ts.KvStore.open(self._spec).result()
            self._ocdbt = self.read_file('manifest.ocdbt') is not None
        except Exception as error:
            raise UserError(
                f'{self.where} cannot be read: {one_line(error)}. Check the path and the access to it.'
            ) from None

    def read_file(self, name: str) -> bytes | None:
        """The content of a small file; None where there is none."""
        result = self._store.read(name).result()
        return bytes(result.value) if result.state == 'value' else None

    def names(self) -> list[str]:
        """Every file below."""
        return sorted(key.decode() for key in self._store.list().result())

    def array_names(self) -> list[str]:
        """The arrays in it, by the names of their folders."""
        store = ts.KvStore.open(self._array_store('')).result() if self._ocdbt else self._store
        keys = (key.decode() for key in store.list().result())
        return sorted(key.rsplit('/', 1)[0] for key in keys if key.endswith(('/.zarray', '/zarr.json')))

    def open(self, name: str) -> 'StoredArray':
        """One array.

        Raises:
            UserError: it is not there, or no array.
        """
        errors = []
        for driver in ('zarr', 'zarr3'):
            try:
                spec = {'driver': driver, 'kvstore': self._array_store(f'{name}/')}
                store = ts.open(spec, open=True, read=True).result()
                if store.fill_value is None:  # then every chunk was written, and one that is not there was lost
                    store = ts.open({**spec, 'fill_missing_data_reads': False}, open=True, read=True).result()
                return StoredArray(f'{self.where}/{name}', store)
            except ValueError as error:
                errors.append(one_line(error))
        raise UserError(f'{self.where} holds no array {name} ({errors[0]}). Copy the checkpoint again, whole.')

    def _array_store(self, path: str) -> dict[str, Any]:
        if self._ocdbt:
            return {'driver': 'ocdbt', 'base': self._spec, 'path': path}
        return {**self._spec, 'path': self._spec['path'] + path}


class StoredArray:
    """One array. Layers that its chunks hold together are read together and kept until the last was asked for."""

    def __init__(self, where: str, store: ts.TensorStore) -> None:
        self.where, self._store = where, store
        self.shape: tuple[int, ...] = tuple(store.shape)
        self.dtype = np.dtype(store.dtype.numpy_dtype)
        self._kept: np.ndarray | None = None

    def read(self) -> np.ndarray:
        """The whole.

        Raises:
            UserError: a chunk is missing or broken.
        """
        return self._result(self._store)

    def layer(self, axis: int, number: int) -> np.ndarray:
        """[number] of `axis`; numbers are asked for in ascending order."""
        if self._store.chunk_layout.read_chunk.shape[axis] == 1:
            return np.ascontiguousarray(self._result(self._store[(slice(None),) * axis + (number,)]))
        if self._kept is None:
            self._kept = self.read()
        array = np.ascontiguousarray(np.take(self._kept, number, axis))
        if number == self.shape[axis] - 1:
            self._kept = None
        return array

    def _result(self, store: ts.TensorStore) -> np.ndarray:
        try:
            return np.asarray(store.read().result())
        except ValueError as error:
            raise UserError(
                f'{self.where} cannot be read: {one_line(error)}. Copy the checkpoint again, whole.'
            ) from None


def write_array(folder: Path, array: np.ndarray) -> dict[str, Any]:
    """Writes a new zarr array, uncompressed; gives its metadata."""
    store = ts.open(
        {
            'driver': 'zarr',
            'kvstore': kvstore_spec(str(folder)),
            'metadata': {'shape': list(array.shape), 'chunks': chunks(array.shape, array.dtype), 'compressor': None},
        },
        dtype=ts.dtype(array.dtype),
        create=True,
        delete_existing=False,
        open=False,
    ).result()
    write_rows(store, array)
    return json.loads((folder / '.zarray').read_bytes())


def chunks(shape: Sequence[int], dtype: np.dtype) -> list[int]:
    """The chunk shape: whole rows, about 64 MiB of them."""
    if not shape:
        return []
    row = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
    return [max(1, min(shape[0], _CHUNK // max(1, row))), *shape[1:]]


def write_rows(store: ts.TensorStore, array: np.ndarray) -> None:
    """Writes an array chunk after chunk: TensorStore copies what it encodes, so that not all of it is given at once.

    Raises:
        OSError: it cannot be written (no space left, say).
    """
    size = store.chunk_layout.write_chunk.shape[0] if array.ndim else 0
    try:
        if not array.ndim:
            store.write(array).result()
        for first in range(0, array.shape[0] if array.ndim else 0, max(1, size)):
            last = min(first + size, array.shape[0])
            store[first:last].write(array[first:last]).result()
    except ValueError as error:
        if 'No space left' in str(error) or 'RESOURCE_EXHAUSTED' in str(error):
            raise OSError(28, 'No space left on device') from None
        raise OSError(5, one_line(error)) from None


def one_line(error: Exception) -> str:
    """The first sentence of TensorStore's complaint, without the specification that it repeats."""
    return ' '.join(str(error).split('[tensorstore_spec')[0].split('[source locations')[0].split())[:240].rstrip(' .')


def nested_names(tree: Mapping[str, Any], above: str = '') -> dict[str, Any]:
    """{'a': {'b': leaf}} -> {'a/b': leaf}; a mapping that describes an array of TensorStore is a leaf."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f'{above}/{key}' if above else str(key)
        if isinstance(value, Mapping) and 'driver' not in value:
            flat |= nested_names(value, name)
        else:
            flat[name] = value
    return flat
