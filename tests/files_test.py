"""t5flan/files.py: files appear whole or not at all, locally and in a bucket."""

import io
import json
import os
import pathlib
import threading
import time

import pytest
from etils import epath

from t5flan.errors import UserError
from t5flan.files import (
    append_whole,
    cache_folder,
    check_folder,
    check_links,
    check_output,
    open_whole,
    remove_folders,
    remove_partial,
    to_path,
    write_json,
    write_whole,
)


@epath.register_path_cls('standin://')
class Bucket(pathlib.PurePosixPath):
    """A bucket in memory: an object appears when its file is closed, as in gs://."""

    objects: dict[str, str | bytes] = {}

    def __fspath__(self):
        return str(self).replace(':/', '://', 1)

    def mkdir(self, parents=False, exist_ok=False):
        assert parents and exist_ok

    def open(self, mode='r', encoding=None):
        name, kind = os.fspath(self), io.BytesIO if 'b' in mode else io.StringIO

        class Object(kind):
            def close(self):
                Bucket.objects[name] = self.getvalue()
                super().close()

        return Object()


@pytest.fixture
def bucket():
    Bucket.objects.clear()
    return Bucket.objects


def names(folder):
    return sorted(path.name for path in folder.rglob('*') if path.is_file())


@pytest.mark.parametrize('content', ['a ü\n\u2028b\r\n', b'\x00\xff\r\n', ''])
def test_text_and_bytes_are_written_as_they_are_and_parent_folders_are_created(tmp_path, content):
    path = tmp_path / 'new' / 'folder' / 'file'
    write_whole(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    write_whole(str(path), 'again')
    assert path.read_text() == 'again' and names(tmp_path) == ['file'], 'replaced, and no temporary file is left'


@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt])
def test_after_an_error_nothing_is_left_and_an_existing_file_keeps_its_content(tmp_path, error):
    (tmp_path / 'old').write_text('old')
    for name in ('old', 'new'):
        with pytest.raises(error), open_whole(tmp_path / name) as file:
            file.write('half of it')
            raise error
    assert names(tmp_path) == ['old'] and (tmp_path / 'old').read_text() == 'old'


def test_a_file_appears_only_at_the_end_of_the_block(tmp_path):
    with open_whole(tmp_path / 'a', 'wb') as file:
        file.write(b'1')
        file.flush()
        assert not (tmp_path / 'a').exists() and names(tmp_path)[0].startswith('.a.')
    assert names(tmp_path) == ['a']


@pytest.mark.parametrize('mask', [0o022, 0o077])
def test_permissions_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_whole(tmp_path / 'a', 'x')
    finally:
        os.umask(before)
    assert (tmp_path / 'a').stat().st_mode & 0o777 == 0o666 & ~mask


def test_json_is_readable_and_ends_with_a_newline(tmp_path):
    write_json(tmp_path / 'a.json', {'ü': [1, None]})
    assert (tmp_path / 'a.json').read_text('utf-8') == '{\n "ü": [\n  1,\n  null\n ]\n}\n'


def test_paths_of_buckets_and_of_this_machine():
    assert to_path('a/b') == pathlib.Path('a/b') and isinstance(to_path('standin://a/b'), Bucket)
    assert to_path(to_path('standin://a/b')) == to_path('standin://a/b')
    path = to_path('gs://bucket/a.json')
    assert os.fspath(path) == 'gs://bucket/a.json' and os.fspath(path.parent / 'b') == 'gs://bucket/b'


def test_objects_of_a_bucket_are_whole_or_absent(bucket):
    write_whole('standin://bucket/a', 'ü\n')
    write_whole(to_path('standin://bucket/b'), b'\xff')
    with pytest.raises(RuntimeError), open_whole('standin://bucket/c') as file:
        file.write('half of it')
        raise RuntimeError
    assert bucket == {'standin://bucket/a': 'ü\n', 'standin://bucket/b': b'\xff'}


def test_the_cache_folder_follows_xdg(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert cache_folder() == tmp_path / 't5flan'
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert cache_folder() == tmp_path / '.cache' / 't5flan'


def test_json_with_half_a_character_reads_back(tmp_path):
    """A file name that is not UTF-8 and a row of JSON may hold a lone surrogate."""
    value = {'path': 'a\udcff.txt', 'text': 'na\u00efve \u6f22'}
    write_json(tmp_path / 'value.json', value)
    assert json.loads((tmp_path / 'value.json').read_text('utf-8')) == value
    assert 'na\u00efve \u6f22' in (tmp_path / 'value.json').read_text('utf-8')


@pytest.mark.parametrize(
    'path, words', [('', 'is empty'), (' ', 'is empty'), ('/dev/full', 'a device'), ('/', 'a folder')]
)
def test_what_cannot_be_an_output_is_refused(path, words):
    with pytest.raises(UserError, match=f'{words}.* Set --output'):
        check_output(path, '--output')


@pytest.mark.parametrize('path', ['', '/', '/dev/null', 'a [1]', 'a*'])
def test_what_cannot_be_a_workdir_is_refused(path):
    with pytest.raises(UserError, match='Set --workdir') as error:
        check_folder(path, '--workdir')
    assert '\n' not in str(error.value)


def test_links_that_lead_out_are_refused(tmp_path):
    run, blobs = tmp_path / 'run', tmp_path / 'blobs'
    for folder in (run / 'vocabulary', blobs):
        folder.mkdir(parents=True)
    (blobs / 'x').write_text('x')
    (run / 'mine').symlink_to(run / 'vocabulary')
    check_links(run)
    (run / 'vocabulary' / 'x').symlink_to(blobs / 'x')
    with pytest.raises(UserError, match='vocabulary/x is a link that leads out of .*run, to .*blobs/x'):
        check_links(run, ['vocabulary'])
    check_links(run, ['checkpoints', 'mine/absent'])
    with pytest.raises(UserError, match='mine is a link, to .* and would be written'):
        check_links(run, (), plain=['mine'])
    snapshot = tmp_path / 'snapshots' / 'abc'
    snapshot.mkdir(parents=True)
    (snapshot / 'config.json').symlink_to('../../blobs/x')
    check_links(snapshot)  # as in the cache of the Hugging Face hub


def test_lines_are_appended_whole_or_not_at_all(tmp_path):
    class Full(io.FileIO):
        def write(self, data):
            if len(data) < 4:
                raise OSError(28, 'No space left on device')
            return super().write(data[:3])

    with open(tmp_path / 'a', 'ab', buffering=0) as file:
        append_whole(file, b'one\n')
    with Full(tmp_path / 'a', 'ab') as file, pytest.raises(OSError, match='No space left on device'):
        append_whole(file, b'twelve\n')
    assert (tmp_path / 'a').read_bytes() == b'one\n'


def test_what_a_killed_process_wrote_by_half_is_removed(tmp_path):
    for name in ('.a.json.0123abcd.tmp', '.b.json.0123abcd.tmp', '.a.json.mine.tmp', 'a.json'):
        (tmp_path / name).write_text('x')
    remove_partial(tmp_path / 'a.json')
    assert names(tmp_path) == ['.a.json.mine.tmp', '.b.json.0123abcd.tmp', 'a.json']


def test_folders_that_threads_still_write_into_are_removed(tmp_path):
    def write():
        for _ in range(10):
            (tmp_path / '6.part' / 'array').mkdir(parents=True, exist_ok=True)
            time.sleep(0.02)

    (tmp_path / '6').mkdir()
    writer = threading.Thread(target=write)
    writer.start()
    remove_folders(tmp_path, '.part', quiet=0.5)
    writer.join()
    assert os.listdir(tmp_path) == ['6']
