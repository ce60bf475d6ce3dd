"""t5flan/files/checksums.py: every change of a folder is found; unreadable objects of strangers are one line."""

import os

import pytest

from t5flan.errors import UserError, reading
from t5flan.files import checksums, read_object, write_whole


@pytest.fixture
def folder(tmp_path):
    (tmp_path / 'a' / 'b').mkdir(parents=True)
    for name in ('one', 'a/two', 'a/b/three'):
        (tmp_path / name).write_text(name)
    checksums.write(tmp_path, {'step': 3})
    return tmp_path


def test_an_unchanged_folder_is_the_same(folder):
    content = checksums.read(folder)
    assert content['step'] == 3 and sorted(content['files']) == ['a/b/three', 'a/two', 'one']
    checksums.compare(folder, content, ('a',))


def test_an_empty_folder_is_a_part_without_content(folder):
    (folder / 'empty').mkdir()
    checksums.write(folder, {'step': 3})
    content = checksums.read(folder)
    assert 'empty/' in content['files']
    checksums.compare(folder, content, ('empty',))
    (folder / 'empty').rmdir()
    with pytest.raises(checksums.Damaged, match='empty/ is missing'):
        checksums.compare(folder, content, ('empty',))


def test_parts_that_are_not_read_may_be_gone(folder):
    content = checksums.read(folder)
    (folder / 'a' / 'two').unlink()
    checksums.compare(folder, content, ())
    with pytest.raises(checksums.Damaged, match='a/two is missing'):
        checksums.compare(folder, content, ('a',))


def test_sizes_are_compared_without_reading(folder):
    content = checksums.read(folder)
    (folder / 'one').write_text('two')
    checksums.compare(folder, content, (), sizes_only=True)
    with pytest.raises(checksums.Damaged, match='one has changed since it was saved'):
        checksums.compare(folder, content, ())
    (folder / 'one').write_text('longer')
    with pytest.raises(checksums.Damaged, match='one has 6 bytes, expected 3'):
        checksums.compare(folder, content, (), sizes_only=True)


def test_links_pipes_and_empty_folders_are_found(folder):
    content = checksums.read(folder)
    (folder / 'a' / 'empty').mkdir()
    with pytest.raises(checksums.Damaged, match='a/empty/ was not saved'):
        checksums.compare(folder, content, ('a',))
    (folder / 'a' / 'empty').rmdir()
    (folder / 'one').unlink()
    os.mkfifo(folder / 'one')
    with pytest.raises(checksums.Damaged, match='one is a link or a device'):
        checksums.compare(folder, content, ())


def test_a_snapshot_of_the_hub_may_link_to_its_blobs(folder, tmp_path):
    content = checksums.read(folder)
    snapshot, blobs = tmp_path / 'snapshots' / 'abc', tmp_path / 'blobs'
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (folder / 'one').rename(blobs / '1')
    (snapshot / 'one').symlink_to('../../blobs/1')
    checksums.compare(snapshot, content, ())
    (blobs / '1').write_text('two')
    with pytest.raises(checksums.Damaged):
        checksums.compare(snapshot, content, ())


@pytest.mark.parametrize('text', ['', '{', '[]', '3', '"x"', 'null', '\x00\xff', '[' * 10**5, '{"a": ' * 10**4])
def test_objects_of_another_kind_are_one_line(tmp_path, text):
    path = tmp_path / 'a.json'
    path.write_text(text, 'latin-1')
    with pytest.raises(UserError, match=r'a.json is not a JSON object \(.*Restore it') as error:
        read_object(path)
    assert '\n' not in str(error.value)


def test_huge_files_and_folders_are_not_read(tmp_path):
    path = tmp_path / 'a.json'
    path.write_text('{}')
    os.truncate(path, 2**40)
    with pytest.raises(UserError, match='more than'):
        read_object(path)
    with pytest.raises(UserError, match='Is a directory'):
        read_object(tmp_path)


def test_half_characters_are_escaped(tmp_path):
    write_whole(tmp_path / 'report.html', 'a \ud800 b')
    assert (tmp_path / 'report.html').read_text() == 'a \\ud800 b'


@pytest.mark.parametrize('code', ['int("x")', '{}["a"]', '[][0]', 'None.a', '1 / 0', '1e308 * 10 ** 400', '"a" + 1'])
def test_wrong_types_are_one_line(code):
    with pytest.raises(UserError, match=r'^f cannot be read \(\w+: .*\)\. Fix it\.$'), reading('f', 'Fix it.'):
        eval(code)
    with pytest.raises(UserError, match='^mine$'), reading('f', 'Fix it.'):
        raise UserError('mine')
    with pytest.raises(OSError), reading('f', 'Fix it.'):
        raise OSError(2, 'No such file')
