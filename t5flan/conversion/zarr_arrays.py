"""Reads and writes zarr arrays with TensorStore, in a folder or a bucket, plain (as T5X) or inside OCDBT (as Orbax)."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from t5flan.errors import UserError
from t5flan.files.buckets import RETRIES, epath

UNSYNCED = {'file_io_sync': False}
"""No chunk waits for the disk: a result is renamed into place at the end."""
_CHUNK = 2**26  # bytes per chunk, about, as in T5X


def kvstore_spec(folder: str) -> dict[str, Any]:
    """TensorStore's spec of a local folder or of gs://BUCKET/PATH (TENSORSTORE_GCS_HTTP_URL sets another server)."""
    if folder.startswith('gs://'):
        bucket, _, path = folder.removeprefix('gs://').partition('/')
        bounded = {'gcs_request_retries': RETRIES}
        return {'driver': 'gcs', 'bucket': bucket, 'path': path.rstrip('/') + '/' if path else '', 'context': bounded}
    return {'driver': 'file', 'path': os.path.abspath(folder) + '/', **UNSYNCED}


class Folder:
    """A folder of small files and arrays, local or gs://BUCKET/PATH; a UserError if it cannot be read."""

    def __init__(self, where: str) -> None:
        self.where = where.rstrip('/')
        self._spec = kvstore_spec(self.where)
        if self.where.startswith('gs://'):
            epath.Path(self.where).exists()  # tells soon what is wrong with the bucket
        try:
            self._store = ts.KvStore.open(self._spec).result()
            self._ocdbt = self.read_file('manifest.ocdbt') is not None
        except Exception as error:
            problem = f'{self.where} cannot be read: {one_line(error)}'
            raise UserError(f'{problem}. Check the path and your access to it.') from None

    def read_file(self, name: str) -> bytes | None:
        """The content of a small file; None if it does not exist."""
        result = self._store.read(name).result()
        return bytes(result.value) if result.state == 'value' else None

    def names(self) -> list[str]:
        """The paths of all files in the folder and below."""
        return sorted(key.decode() for key in self._store.list().result())

    def array_names(self) -> list[str]:
        """The names of the arrays, which are folders."""
        store = ts.KvStore.open(self._array_store('')).result() if self._ocdbt else self._store
        keys = (key.decode() for key in store.list().result())
        return sorted(key.rsplit('/', 1)[0] for key in keys if key.endswith(('/.zarray', '/zarr.json')))

    def open(self, name: str) -> 'StoredArray':
        """Opens an array; a UserError if there is none."""
        errors = []
        for driver in ('zarr', 'zarr3'):
            try:
                spec = {'driver': driver, 'kvstore': self._array_store(f'{name}/')}
                store = ts.open(spec, open=True, read=True).result()
                if store.fill_value is None:  # then every chunk was written, and a missing one is an error
                    store = ts.open({**spec, 'fill_missing_data_reads': False}, open=True, read=True).result()
                return StoredArray(f'{self.where}/{name}', store)
            except ValueError as error:
                errors.append(one_line(error))
        raise UserError(f'{self.where} has no array {name} ({errors[0]}). Copy the whole checkpoint again.')

    def _array_store(self, path: str) -> dict[str, Any]:
        if self._ocdbt:
            return {'driver': 'ocdbt', 'base': self._spec, 'path': path}
        return {**self._spec, 'path': self._spec['path'] + path}


class StoredArray:
    """An array of a `Folder`.

    If a chunk holds several layers, the whole array is read once and kept until its last layer is read.
    """

    def __init__(self, where: str, store: ts.TensorStore) -> None:
        self.where, self._store = where, store
        self.shape: tuple[int, ...] = tuple(store.shape)
        self.dtype = np.dtype(store.dtype.numpy_dtype)
        self._kept: np.ndarray | None = None

    def read(self) -> np.ndarray:
        """The whole array; a UserError if a chunk is missing or broken."""
        return self._result(self._store)

    def layer(self, axis: int, number: int) -> np.ndarray:
        """Index `number` of `axis`. Read the layers in ascending order."""
        if _chunk_size(self._store.chunk_layout.read_chunk, axis) == 1:
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
            problem = f'{self.where} cannot be read: {one_line(error)}'
            raise UserError(f'{problem}. Copy the whole checkpoint again.') from None


def _chunk_size(chunk: ts.ChunkLayout.Grid, axis: int) -> int:
    """The size of a chunk along an axis; an open array's chunks have known shapes."""
    return (chunk.shape or ())[axis] or 1


def write_array(folder: Path, array: np.ndarray) -> dict[str, Any]:
    """Writes a new uncompressed zarr array and returns its metadata."""
    metadata = {'shape': list(array.shape), 'chunks': chunks(array.shape, array.dtype), 'compressor': None}
    spec = {'driver': 'zarr', 'kvstore': kvstore_spec(str(folder)), 'metadata': metadata}
    store = ts.open(spec, dtype=ts.dtype(array.dtype), create=True, delete_existing=False, open=False).result()
    write_rows(store, array)
    return json.loads((folder / '.zarray').read_bytes())


def chunks(shape: Sequence[int], dtype: np.dtype) -> list[int]:
    """The chunk shape: full rows, about 64 MiB of them."""
    if not shape:
        return []
    row = math.prod(shape[1:]) * dtype.itemsize
    return [max(1, min(shape[0], _CHUNK // max(1, row))), *shape[1:]]


def write_rows(store: ts.TensorStore, array: np.ndarray) -> None:
    """Writes an array chunk by chunk, because TensorStore copies what it encodes.

    Raises:
        OSError: it cannot be written (no space left, for example).
    """
    try:
        if not array.ndim:
            store.write(array).result()
            return
        size = _chunk_size(store.chunk_layout.write_chunk, 0)
        for first in range(0, array.shape[0], size):
            last = min(first + size, array.shape[0])
            store[first:last].write(array[first:last]).result()
    except ValueError as error:
        if 'No space left' in str(error) or 'RESOURCE_EXHAUSTED' in str(error):
            raise OSError(28, 'No space left on device') from None
        raise OSError(5, one_line(error)) from None


def one_line(error: Exception) -> str:
    """The first sentence of TensorStore's message, without the spec that it repeats."""
    return ' '.join(str(error).split('[tensorstore_spec')[0].split('[source locations')[0].split())[:240].rstrip(' .')
