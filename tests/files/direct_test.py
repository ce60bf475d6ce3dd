import ctypes
import errno
import mmap
import os

import numpy as np
import pytest

from t5flan.files import direct

SIZES = (0, 1, 4095, 4096, 4097, 2**20, 2**20 + 1, 2**22, 2 * 2**22 + 4096, 2 * 2**22 + 4097)


def content_of(size, aligned=False):
    array = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    if not aligned:
        return np.concatenate([array[:1], array])[1:]
    result = direct.aligned(size)
    result[:] = array
    return result


def resident_pages(path):
    """The pages of a file that are in the page cache, by mincore(2)."""
    with open(path, 'rb') as file, mmap.mmap(file.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ) as view:
        array = np.frombuffer(view, np.uint8)
        pages = (ctypes.c_ubyte * -(-array.size // mmap.PAGESIZE))()
        assert ctypes.CDLL(None).mincore(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.size), pages) == 0
        del array
        return sum(page & 1 for page in pages)


def takes_direct(folder):
    """Whether a file system takes direct I/O, so that its files can stay out of the page cache."""
    if not (direct._DIRECT and os.path.exists('/proc/self')):
        return False
    try:
        os.close(os.open(folder / 'probe', os.O_RDWR | os.O_CREAT | direct._DIRECT))
    except OSError:
        return False
    (folder / 'probe').write_bytes(bytes(mmap.PAGESIZE))
    with open(folder / 'probe', 'rb') as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return resident_pages(folder / 'probe') == 0  # a tmpfs is memory


@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('size', SIZES)
def test_what_is_written_is_read(tmp_path, size, aligned):
    content = content_of(size, aligned)
    direct.write(tmp_path / 'a', content)
    assert (tmp_path / 'a').read_bytes() == content.tobytes()


def test_a_shorter_file_replaces_a_longer_one(tmp_path):
    for size in (2**21, 2**20 + 3, 5):
        direct.write(tmp_path / 'a', content_of(size))
        assert (tmp_path / 'a').read_bytes() == content_of(size).tobytes()


def test_files_pass_by_the_page_cache(tmp_path):
    if not takes_direct(tmp_path):
        pytest.skip('the file system has no direct I/O')
    for size in (2**21, 2**21 + 5):
        direct.write(tmp_path / 'a', content_of(size))
        assert resident_pages(tmp_path / 'a') <= 1  # the end that is no whole block
    (tmp_path / 'a').read_bytes()
    assert resident_pages(tmp_path / 'a') == 2**21 // mmap.PAGESIZE + 1


@pytest.mark.skipif(not direct._DIRECT, reason='the system has no O_DIRECT')
def test_a_file_system_that_refuses_it_gets_ordinary_writes(tmp_path, monkeypatch):
    opened, content = os.open, content_of(2**22 + 7)

    def refuses(path, flags, mode=0o777):
        if flags & direct._DIRECT:
            raise OSError(errno.EINVAL, 'Invalid argument')
        return opened(path, flags, mode)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'open', refuses)
        direct.write(tmp_path / 'a', content)
    assert (tmp_path / 'a').read_bytes() == content.tobytes()


@pytest.mark.skipif(not direct._DIRECT, reason='the system has no O_DIRECT')
def test_a_file_system_that_wants_larger_blocks_gets_ordinary_writes(tmp_path, monkeypatch):
    import fcntl

    written, content, refused = os.write, content_of(2**22 + 7), []

    def refuses(descriptor, data):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & direct._DIRECT:
            refused.append(len(data))
            raise OSError(errno.EINVAL, 'Invalid argument')
        return written(descriptor, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, 'write', refuses)
        direct.write(tmp_path / 'a', content)
    assert (tmp_path / 'a').read_bytes() == content.tobytes()
    assert len(refused) == (1 if takes_direct(tmp_path) else 0)


def test_writes_that_are_cut_short_go_on(tmp_path, monkeypatch):
    written, content = os.write, content_of(2**22 + 4096 + 7)
    with monkeypatch.context() as patch:
        patch.setattr(
            os, 'write', lambda descriptor, data: written(descriptor, data[: max(1, len(data) // 8192 * 4096)])
        )
        direct.write(tmp_path / 'a', content)
    assert (tmp_path / 'a').read_bytes() == content.tobytes()


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='the system has no /dev/full')
@pytest.mark.parametrize('size', [5, 2**21])
def test_a_full_disk_is_an_error(size):
    with pytest.raises(OSError) as error:
        direct.write('/dev/full', content_of(size))
    assert error.value.errno == errno.ENOSPC
