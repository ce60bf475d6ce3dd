"""Paths that begin with gs://: `epath.Path('gs://BUCKET/NAME')`, in Orbax and TFDS too, comes here.

Without this module, `etils.epath` gives such paths to TensorFlow, whose client can be neither bounded nor pointed at a
test server. Modules that make such paths import `epath` from here. The arrays of checkpoints are read and written by
TensorStore; see `bound_tensorstore`.
"""

import contextlib
import fnmatch
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

from etils import epath as epath
from etils.epath import backend, stat_utils

from t5flan.errors import UserError
from t5flan.files import gcs

# -- Folders ---------------------------------------------------------------------------------------------------------


class _Gcs(backend.Backend):
    """What `epath.Path` does with gs://. Folders are the common starts of names, or objects NAME/ without content."""

    def open(self, path: Any, mode: str) -> Any:
        return gcs.open_object(os.fspath(path), mode)

    def exists(self, path: Any) -> bool:
        return gcs.find(os.fspath(path)) is not None or self.isdir(path)

    def isdir(self, path: Any) -> bool:
        return gcs.has_folder(os.fspath(path))

    def listdir(self, path: Any) -> list[str]:
        objects, folders = gcs.list_folder(os.fspath(path))
        if not objects and not folders and not self.isdir(path):
            raise FileNotFoundError(2, os.strerror(2), os.fspath(path))
        return sorted({*folders, *(one.name.rpartition('/')[2] for one in objects)})

    def glob(self, path: Any) -> list[str]:
        bucket, *parts = os.fspath(path).removeprefix('gs://').split('/')
        found = [f'gs://{bucket}']
        for number, part in enumerate(parts):
            if not any(character in part for character in '*?['):
                found = [f'{one}/{part}' for one in found]
                if number == len(parts) - 1:
                    found = [one for one in found if self.exists(one)]
                continue
            inside = [(one, name) for one in found if self.isdir(one) for name in self.listdir(one)]
            found = [f'{one}/{name}' for one, name in inside if fnmatch.fnmatchcase(name, part)]
        return found

    def walk(self, top: Any, *, top_down: bool = True, on_error: Any = None) -> Iterator[Any]:
        objects, folders = gcs.list_folder(os.fspath(top))
        own = (top, folders, [one.name.rpartition('/')[2] for one in objects])
        if top_down:
            yield own
        for name in folders:
            yield from self.walk(f'{os.fspath(top)}/{name}', top_down=top_down)
        if not top_down:
            yield own

    def makedirs(self, path: Any, *, exist_ok: bool = False, mode: int | None = None) -> None:
        path = os.fspath(path)
        if self.isdir(path):
            if not exist_ok:
                raise FileExistsError(17, os.strerror(17), path)
            return
        if gcs.find(path) is not None:
            raise FileExistsError(17, os.strerror(17), path)
        bucket, name = gcs.split(path)
        gcs.request(path, functools.partial(bucket.blob(f'{name}/').upload_from_string, b''), missing=False)

    mkdir = makedirs

    def rmtree(self, path: Any) -> None:
        objects, _ = gcs.list_folder(os.fspath(path), deep=True)
        if not objects:
            raise FileNotFoundError(2, os.strerror(2), os.fspath(path))
        _each(lambda one: gcs.request(os.fspath(path), _of_thread(one).delete), objects)

    def remove(self, path: Any) -> None:
        bucket, name = gcs.split(os.fspath(path))
        done = lambda **given: bucket.blob(name).delete(**given) or True
        found, tries = gcs.request(os.fspath(path), done)
        if found is None and not tries:  # after a retry, the first try may have done it
            raise FileNotFoundError(2, os.strerror(2), os.fspath(path))

    def rename(self, path: Any, dst: Any) -> None:
        if self.exists(dst):
            raise FileExistsError(17, os.strerror(17), os.fspath(dst))
        self._move(os.fspath(path), os.fspath(dst))

    def replace(self, path: Any, dst: Any) -> None:
        if self.isdir(dst):
            raise IsADirectoryError(21, os.strerror(21), os.fspath(dst))
        self._move(os.fspath(path), os.fspath(dst))

    def _move(self, path: str, target: str) -> None:
        """Copies, then removes: a bucket has no renaming."""
        if not gcs.is_bucket(path) or not gcs.is_bucket(target):
            epath.Path(path).copy(target, overwrite=True)
            epath.Path(path).unlink()
            return
        one = gcs.find(path)
        objects = [one] if one is not None else gcs.list_folder(path, deep=True)[0]
        if not objects:
            raise FileNotFoundError(2, os.strerror(2), path)
        start, end = gcs.split(path)[1], gcs.split(target)[1]
        _each(lambda one: _copy(_of_thread(one), target, end + one.name.removeprefix(start)), objects)
        _each(lambda one: gcs.request(path, _of_thread(one).delete), objects)

    def copy(self, path: Any, dst: Any, overwrite: bool) -> None:
        path, dst = os.fspath(path), os.fspath(dst)
        if epath.Path(dst).is_dir():
            raise IsADirectoryError(21, os.strerror(21), dst)
        if not overwrite and epath.Path(dst).exists():
            raise FileExistsError(17, os.strerror(17), dst)
        if gcs.is_bucket(path) and gcs.is_bucket(dst):
            if (one := gcs.find(path)) is None:
                raise FileNotFoundError(2, os.strerror(2), path)
            _copy(one, dst, gcs.split(dst)[1])
            return
        with epath.Path(path).open('rb') as read, epath.Path(dst).open('wb') as write:
            shutil.copyfileobj(cast(Any, read), cast(Any, write), gcs.PIECE)

    def stat(self, path: Any) -> stat_utils.StatResult:
        one = gcs.find(os.fspath(path))
        if one is not None:
            return stat_utils.StatResult(is_directory=False, length=one.size, mtime=int(one.updated.timestamp()))
        if self.isdir(path):
            return stat_utils.StatResult(is_directory=True, length=0, mtime=0)
        raise FileNotFoundError(2, os.strerror(2), os.fspath(path))


def _use_for_gs() -> None:
    """Makes `epath.Path` use this backend; it has no public way to replace TensorFlow's."""
    ours, theirs = _Gcs(), epath.gpath._GPath._backend.fget
    chosen = lambda path: ours if path._uri_scheme == 'gs' else theirs(path)
    epath.gpath._GPath._backend = property(chosen)
    epath.gpath._GCS_BACKENDS |= {ours}


_use_for_gs()


def match_objects(pattern: str) -> list[str]:
    """The objects and folders that match gs://BUCKET/GLOB, sorted; one that exists under the very name is literal."""
    if epath.Path(pattern).exists():
        return [pattern]
    bucket, _, rest = pattern.removeprefix('gs://').partition('/')
    return sorted(map(str, epath.Path(f'gs://{bucket}').glob(rest)))


def sizes(folder: str) -> dict[str, int]:
    """Path in a folder -> size, of all objects below it; empty folders end in '/'."""
    start = f'{gcs.split(folder)[1]}/'.lstrip('/')
    found = {one.name.removeprefix(start): int(one.size) for one in gcs.list_folder(folder, deep=True)[0]}
    return {name: size for name, size in found.items() if name and not name.endswith('/')}


def _of_thread(blob: Any) -> Any:
    """The same object, with the client of this thread."""
    return gcs.client().bucket(blob.bucket.name).blob(blob.name)


def _copy(blob: Any, target: str, name: str) -> None:
    new = gcs.split(target)[0].blob(name)

    def rewrite(retry: Any, timeout: Any) -> None:
        token, *_ = new.rewrite(blob, retry=retry, timeout=timeout)
        while token is not None:
            token, *_ = new.rewrite(blob, token=token, retry=retry, timeout=timeout)

    gcs.request(target, rewrite, missing=False)


def _each(run: Callable[[Any], Any], objects: list[Any]) -> None:
    with ThreadPoolExecutor(min(16, len(objects))) as pool:
        list(pool.map(run, objects))


@contextlib.contextmanager
def fetched(folder: str) -> Iterator[str]:
    """A local copy of a folder in a bucket while the block runs; another path is given back as it is.

    Raises:
        UserError: there is no such folder.
    """
    if not gcs.is_bucket(folder):
        yield folder
        return
    names = sizes(folder)
    if not names:
        raise UserError(f'{folder} does not exist, or has no files. Check the path.')
    with tempfile.TemporaryDirectory() as parent:
        target = Path(parent, folder.rstrip('/').rpartition('/')[2])
        for name in names:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            epath.Path(f'{folder}/{name}').copy(target / name)
        yield str(target)


_INCOMPLETE = '.t5flan.incomplete'
"""An object in a folder of which not everything has been sent."""


@contextlib.contextmanager
def sent(folder: str, last: Collection[str] = ()) -> Iterator[str]:
    """A local path for a new folder that goes to a bucket after the block; another path is given back as it is.

    What a killed process sent of it is removed. The caller holds the lock of the folder.

    Args:
        last: the files that are sent last, which make the folder complete.

    Raises:
        UserError: the folder in the bucket exists.
    """
    if not gcs.is_bucket(folder):
        yield folder
        return
    target = epath.Path(folder.rstrip('/'))
    if target.exists():
        if not (target / _INCOMPLETE).exists():
            raise UserError(f'{folder} exists already: nothing is overwritten. Name another folder, or remove it.')
        target.rmtree()
    with tempfile.TemporaryDirectory() as parent:
        here = Path(parent, folder.rstrip('/').rpartition('/')[2])
        yield str(here)
        files = sorted((path for path in here.rglob('*') if path.is_file()), key=lambda path: path.name in last)
        (target / _INCOMPLETE).write_text('')
        for path in files:
            epath.Path(path).copy(target / str(path.relative_to(here)), overwrite=True)
        (target / _INCOMPLETE).unlink()
        print(f'{folder}: {len(files)} files')


# -- TensorStore and Orbax --------------------------------------------------------------------------------------------

RETRIES = {'max_retries': 8, 'initial_delay': '500ms', 'max_delay': '32s'}
"""Of TensorStore's requests, about two minutes: its default is a quarter of an hour."""


@functools.cache
def bound_tensorstore() -> None:
    """Bounds how long Orbax waits for a bucket, and spares it rights that nobody needs.

    Orbax asks for the properties of the bucket (storage.buckets.get, which writers of objects lack) to see whether it
    has real folders; names of objects are the same in both.
    """
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    for context in (tensorstore_utils._BASE_TS_CONTEXT, tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT):
        context['gcs_request_retries'] = RETRIES
    gcs_utils.is_hierarchical_namespace_enabled = lambda path: False
