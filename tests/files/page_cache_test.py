import ctypes
import mmap
import os
import subprocess
import threading

import numpy as np
import pytest

from t5flan.files.page_cache import forget_while

SIZE = 2**23

pytestmark = pytest.mark.skipif(not hasattr(os, 'posix_fadvise'), reason='the system has no posix_fadvise')


def resident_pages(path):
    """The pages of a file that are in the page cache, by mincore(2)."""
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as view:
        array = np.frombuffer(view, np.uint8)
        pages = (ctypes.c_ubyte * -(-array.size // mmap.PAGESIZE))()
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.size), pages) == 0
        del array
        return sum(page & 1 for page in pages)


def rounds(count, then):
    """A `writing` that is true `count` times and calls `then` before the last."""
    left = iter(range(count, -1, -1))

    def writing():
        number = next(left)
        if number == 1:
            then()
        return number > 0

    return writing


@pytest.mark.skipif(not os.path.exists('/proc/self'), reason='pages are counted as Linux does')
def test_files_leave_the_page_cache_whole(tmp_path):
    content = np.random.default_rng(0).bytes(SIZE)
    paths = [tmp_path / name for name in ('a', 'b', 'small')]
    for path in paths:
        path.write_bytes(content[: 4096 if path.name == 'small' else SIZE])
    system = subprocess.run(['stat', '--file-system', '--format=%T', tmp_path], capture_output=True, text=True).stdout
    if system.strip() == 'tmpfs':
        pytest.skip('a tmpfs keeps its files in memory')
    assert resident_pages(paths[0]) == SIZE // mmap.PAGESIZE
    forget_while(rounds(1, lambda: None), lambda: list(map(os.fspath, paths))).join(20)
    left = [resident_pages(path) for path in paths]
    assert left == [0, 0, 1]
    assert paths[0].read_bytes() == paths[1].read_bytes() == content


def test_a_file_that_is_gone_does_not_end_it(tmp_path):
    path, seen = tmp_path / 'b', []
    path.write_bytes(bytes(SIZE))

    def files():
        seen.append(path.exists())
        return [os.fspath(tmp_path / 'gone'), os.fspath(path)]

    thread = forget_while(rounds(2, path.unlink), files)
    thread.join(20)
    assert not thread.is_alive()
    assert seen == [True, False]


def test_it_ends_with_the_writing():
    writing = threading.Event()
    writing.set()
    thread = forget_while(writing.is_set, list)
    assert thread.is_alive()
    writing.clear()
    thread.join(20)
    assert not thread.is_alive()
