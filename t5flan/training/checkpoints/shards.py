"""Saving arrays to a local folder: each shard is a file, written by direct I/O.

An array is a folder as TensorStore writes it for zarr without compression (and T5X with it): .zarray, and a file for
each chunk, which is the part of the array that a device holds, as it is in memory. TensorStore itself writes through
the page cache, which takes the processor from training for as long as that takes; see `t5flan.files.direct`.
"""

import asyncio
import concurrent.futures
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts
from orbax.checkpoint._src.serialization.jax_array_handlers import _async_serialize_shardings, check_array_values

from t5flan.files import PathLike, direct, read_object, write_json

_THREADS = 2
"""That copy arrays, and that write files."""
_DIGESTS = 'digests.process_'
_PIECE = 2**25
"""Bytes that a thread copies at once."""


def tree_handler() -> ocp.PyTreeCheckpointHandler:
    """Orbax's handler of a tree of jax.Array, which writes with `ShardHandler`."""
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, ShardHandler()))
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False, use_compression=False, type_handler_registry=registry)
    handler.finalize = lambda directory: None  # it warns that there is no OCDBT to merge
    return handler


class ShardHandler(ocp.type_handlers.ArrayHandler):
    """Orbax's handler of jax.Array, which reads as it does and writes each shard to a file of a local folder.

    One save ends before the next begins. The memory for copies of a CPU's arrays is kept from one to the next: if the
    next step found them in use, it would allocate others, in the gap that the step before left for its temporaries.
    """

    def __init__(self) -> None:
        super().__init__()
        self._copies = np.empty(0, np.uint8)

    async def serialize(
        self, values: Sequence[jax.Array], infos: Sequence[Any], args: Any = None
    ) -> Sequence[ocp.future.Future]:
        """Starts writing arrays; returns once they are copied off the devices.

        Args:
            infos: Orbax's ParamInfo of each array.
            args: not used.

        Raises:
            ValueError: an array has no numbers.
        """
        del args
        check_array_values(values, infos)
        shards = [
            (number, name, shard) for number, value in enumerate(values) for name, shard in _own_shards(value, number)
        ]
        for _, _, shard in shards:
            shard.copy_to_host_async()
        contents = [np.ascontiguousarray(shard).reshape(-1).view(np.uint8) for _, _, shard in shards]
        if jax.default_backend() == 'cpu':
            contents = self._copied(contents)
        files = [(number, name, content) for (number, name, _), content in zip(shards, contents, strict=True)]
        return [ocp.future.CommitFutureAwaitingContractedSignals(_write(values, infos, files), name='shards')]

    def _copied(self, contents: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Copies in the handler's memory."""
        if not contents:  # other processes write all arrays
            return []
        ends = np.cumsum([direct.rounded_up(content.size) for content in contents], dtype=np.int64)
        if self._copies.size < ends[-1]:
            self._copies = direct.aligned(int(ends[-1]))
        copies = [
            self._copies[end - direct.rounded_up(content.size) :][: content.size]
            for content, end in zip(contents, ends, strict=True)
        ]
        pieces = [
            (copy[start : start + _PIECE], content[start : start + _PIECE])
            for copy, content in zip(copies, contents, strict=True)
            for start in range(0, content.size, _PIECE)
        ]
        with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(np.copyto, *zip(*pieces, strict=True)))
        return copies


def _own_shards(value: jax.Array, number: int) -> Iterator[tuple[str, jax.Array]]:
    """The file names of the chunks that this process writes, and their arrays.

    Processes share the work: of the devices that hold the same shard, one writes it, for each array another.
    """
    chunk = value.sharding.shard_shape(value.shape)
    replicas = len(value.sharding.device_set) * math.prod(chunk) // value.size
    for shard in value.addressable_shards:
        if shard.replica_id == number % replicas:
            index = [(part.start or 0) // size for part, size in zip(shard.index, chunk, strict=True)]
            yield '.'.join(map(str, index)) or '0', shard.data


async def _write(
    values: Sequence[jax.Array], infos: Sequence[Any], files: Sequence[tuple[int, str, np.ndarray]]
) -> None:
    """Writes chunks; the first process also writes what says how to read them.

    Args:
        files: the number of the array, the name of the chunk and its content.
    """
    for info in infos:
        await info.await_path_creation()
    if jax.process_index() == 0:
        shardings = [value.sharding for value in values]
        await asyncio.gather(
            _async_serialize_shardings(shardings, infos, primary_host=0),
            *(_create(value, info.path) for value, info in zip(values, infos, strict=True)),
        )
    paths = [os.path.join(infos[number].path, name) for number, name, _ in files]
    for folder in {os.path.dirname(path) for path in paths}:
        os.makedirs(folder, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        digests = list(pool.map(_write_file, paths, [content for _, _, content in files]))
    if paths:
        item = os.fspath(infos[0].parent_dir)
        found = {os.path.relpath(path, item): digest for path, digest in zip(paths, digests, strict=True)}
        write_json(os.path.join(item, f'{_DIGESTS}{jax.process_index()}.json'), found)


def _write_file(path: str, content: np.ndarray) -> str:
    """Writes a file and returns its digest, as `checksums.digest` finds it in the file."""
    import xxhash

    direct.write(path, content)
    return xxhash.xxh3_128_hexdigest(content.data)


def take_digests(step_folder: PathLike) -> dict[str, str]:
    """The digests of the files that all processes have written to a local step, by path; removes the records of them.

    With them the first process need not read back what the others wrote.
    """
    digests: dict[str, str] = {}
    for path in pathlib.Path(step_folder).glob(f'*/{_DIGESTS}*.json'):
        digests |= {f'{path.parent.name}/{name}': digest for name, digest in read_object(path).items()}
        path.unlink()
    return digests


async def _create(value: jax.Array, folder: os.PathLike) -> None:
    """Creates a zarr array that has no chunks yet."""
    metadata = {'shape': value.shape, 'chunks': value.sharding.shard_shape(value.shape), 'compressor': None}
    store = {'driver': 'file', 'path': os.fspath(folder)}
    await ts.open({'driver': 'zarr', 'kvstore': store, 'metadata': metadata, 'dtype': value.dtype.name}, create=True)
