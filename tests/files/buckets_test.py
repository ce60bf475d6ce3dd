"""files/buckets.py: gs:// paths through Google's client, against a server on loopback."""

import os
import sys
import threading
import time

import pytest

pytest.importorskip('google.cloud.storage', reason="pip install 't5flan[gcs]'")

from t5flan.errors import BucketError, UserError
from t5flan.files import buckets, checksums, gcs, open_whole, read_object, to_path, write_json, write_whole
from t5flan.files.buckets import epath
from tests.files.gcs_server import KINDS, Faults, GcsServer, use


@pytest.fixture
def server(monkeypatch):
    with GcsServer() as server:
        use(server, monkeypatch)
        yield server


def test_objects_are_files(server):
    path = to_path('gs://bucket/a/ü b.txt')
    assert not path.exists() and not path.is_file() and not path.parent.is_dir()
    with pytest.raises(FileNotFoundError):
        path.read_text()
    write_whole(path, 'ü\n')
    assert path.read_text() == 'ü\n' and path.is_file() and path.exists() and path.stat().length == 3
    assert server.names() == ['a/', 'a/ü b.txt']
    write_json('gs://bucket/a/b.json', {'x': 1})
    assert read_object('gs://bucket/a/b.json') == {'x': 1}
    with pytest.raises(RuntimeError), open_whole(path) as file:
        file.write('half')
        raise RuntimeError
    with pytest.raises(RuntimeError), path.open('w') as file:
        file.write('half')
        raise RuntimeError
    assert path.read_text() == 'ü\n'
    with path.open('a') as file:
        file.write('more\n')
    assert path.read_bytes().decode() == 'ü\nmore\n' and list(path.open()) == ['ü\n', 'more\n']
    path.unlink()
    with pytest.raises(FileNotFoundError):
        path.unlink()
    path.unlink(missing_ok=True)
    assert not os.path.lexists('gs:'), 'no local folder'


def test_large_objects_are_sent_and_read_in_pieces(server, monkeypatch):
    monkeypatch.setattr(gcs, 'PIECE', 2**18)
    content = os.urandom(10**6)
    write_whole('gs://bucket/large', content)
    assert server.read('large') == content and to_path('gs://bucket/large').read_bytes() == content
    with to_path('gs://bucket/large').open('rb') as file:
        file.seek(-7, 2)
        assert file.read() == content[-7:] and file.seek(3) == 3 and file.read(2) == content[3:5]


def test_folders_are_common_starts(server):
    root = epath.Path('gs://bucket/run')
    root.mkdir(parents=True, exist_ok=True)
    assert root.is_dir() and list(root.iterdir()) == []
    with pytest.raises(FileExistsError):
        root.mkdir()
    for name in ('1/a/x', '1/b', '20/c', 'd.json'):
        (root / name).write_text(name)
    assert sorted(path.name for path in root.iterdir()) == ['1', '20', 'd.json']
    assert [os.fspath(path) for path in root.glob('*/[ab]')] == ['gs://bucket/run/1/a', 'gs://bucket/run/1/b']
    assert sorted(str(path) for path in root.glob('*.json')) == ['gs://bucket/run/d.json']
    assert [(path.name, folders, files) for path, folders, files in root.walk()][1] == ('1', ['a'], ['b'])
    assert buckets.sizes('gs://bucket/run') == {'1/a/x': 5, '1/b': 3, '20/c': 4, 'd.json': 6}
    assert checksums.scan('gs://bucket/run', ('1', 'd.json')) == {'1/a/x': (5, ''), '1/b': (3, ''), 'd.json': (6, '')}
    (root / '1').rename(root / '2')
    assert not (root / '1').exists() and (root / '2/a/x').read_text() == '1/a/x'
    with pytest.raises(FileExistsError):
        (root / '2').rename(root / '20')
    (root / '2').rmtree()
    assert not (root / '2').exists()
    with pytest.raises(FileNotFoundError):
        (root / '2').rmtree()
    with pytest.raises(FileNotFoundError):
        list((root / '2').iterdir())


def test_files_are_copied_in_and_out(server, tmp_path):
    (tmp_path / 'here').write_bytes(b'\x00\n')
    epath.Path(tmp_path / 'here').copy('gs://bucket/there')
    with pytest.raises(FileExistsError):
        epath.Path(tmp_path / 'here').copy('gs://bucket/there')
    epath.Path('gs://bucket/there').copy('gs://bucket/other')
    epath.Path('gs://bucket/other').copy(tmp_path / 'back')
    assert (tmp_path / 'back').read_bytes() == b'\x00\n' == server.read('other')


def test_of_two_processes_one_creates_a_lock(server):
    assert gcs.create('gs://bucket/l', 'one') and not gcs.create('gs://bucket/l', 'two')
    text, generation = gcs.read_generation('gs://bucket/l')
    assert text == 'one'
    new = gcs.replace('gs://bucket/l', 'three', generation)
    assert new and gcs.replace('gs://bucket/l', 'four', generation) is None
    gcs.remove('gs://bucket/l', generation)
    assert gcs.read_generation('gs://bucket/l') == ('three', new)
    gcs.remove('gs://bucket/l', new)
    assert gcs.read_generation('gs://bucket/l') is None


def test_an_object_that_is_replaced_while_it_is_read_is_not_missing(server, monkeypatch):
    server.put('bucket', 'l', b'one', {})
    real, replaced = gcs.find, iter([b'two', b'three'])

    def find(path):
        found = real(path)
        for content in replaced:
            server.put('bucket', 'l', content, {})
            break
        return found

    monkeypatch.setattr(gcs, 'find', find)
    assert gcs.read_generation('gs://bucket/l')[0] == 'three'


@pytest.mark.parametrize('kind', KINDS)
def test_every_request_is_tried_again_and_told(kind, monkeypatch, capsys):
    with GcsServer(Faults(rate=0.4, seed=1, kinds=(kind,), pause=0.01)) as server:
        use(server, monkeypatch)
        path = epath.Path('gs://bucket/run/a')
        for number in range(2):
            text = f'{number}' * 100
            path.write_text(text)
            assert path.read_text() == text and [one.name for one in path.parent.iterdir()] == ['a']
            assert gcs.create('gs://bucket/lock', text) and not gcs.create('gs://bucket/lock', 'other')
            to_path('gs://bucket/lock').unlink()
            path.rename(path.with_name('b'))
            path.parent.rmtree()
        assert server.faults.counts[kind] > 5
    if kind != 'slow':
        assert 'trying again, for up to' in capsys.readouterr().err


@pytest.mark.parametrize(
    'path, words', [('gs://denied/x', 'no rights (403'), ('gs://other/x', 'gs://other does not exist.')]
)
def test_no_rights_and_no_bucket_are_one_line(server, path, words):
    for attempt in (to_path(path).exists, to_path(path).read_text, to_path(path).mkdir, lambda: write_whole(path, 'x')):
        with pytest.raises(BucketError) as error:
            attempt()
        assert words in str(error.value) and '\n' not in str(error.value)


def test_no_network_ends_soon_at_first_and_a_run_is_patient(monkeypatch, capsys):
    with GcsServer() as server:
        use(server, monkeypatch)
    monkeypatch.setattr(gcs, 'FIRST_CONTACT', 0.2)
    with pytest.raises(BucketError, match=r'gs://bucket/x cannot be reached \(ConnectionError.*Check the network'):
        to_path('gs://bucket/x').exists()
    told = capsys.readouterr().err
    assert told.count('\n') == 1 and 'trying again, for up to 0 s' in told


def test_a_login_and_a_server_that_hang_do_not_hold_a_command(monkeypatch):
    from google.cloud import storage

    hang = threading.Event()
    for name in ('LOGIN', 'FIRST_CONTACT', '_GRACE'):
        monkeypatch.setattr(gcs, name, 0.1)
    monkeypatch.delenv('STORAGE_EMULATOR_HOST', raising=False)
    monkeypatch.setattr(storage, 'Client', lambda project, credentials=None: credentials or hang.wait(30))
    monkeypatch.setattr(gcs._Server, 'pid', 0)
    started = time.monotonic()
    assert type(gcs.client()).__name__ == 'AnonymousCredentials'
    with pytest.raises(BucketError, match=r'gs://bucket/x cannot be reached \(no answer in 0 s\). Check the network'):
        gcs.request('gs://bucket/x', lambda **_: hang.wait(30))
    assert time.monotonic() - started < 10
    hang.set()


def test_a_folder_that_was_sent_in_part_is_sent_again(server, tmp_path):
    def send(text, fails=False):
        with buckets.sent('gs://bucket/hf', ('config.json',)) as here:
            write_whole(f'{here}/config.json', text)
            write_whole(f'{here}/a/b', text)
            if fails:
                monkeypatched.setattr(buckets.shutil, 'copyfileobj', None)

    with pytest.MonkeyPatch.context() as monkeypatched, pytest.raises(TypeError):
        send('one', fails=True)
    assert any(name.startswith('hf/.') for name in server.names())
    server.put('bucket', 'hf/old', b'', {})
    send('two')
    found = {name: server.read(name) for name in server.names() if not name.endswith('/')}
    assert found == {'hf/config.json': b'two', 'hf/a/b': b'two'}
    with pytest.raises(UserError, match='gs://bucket/hf exists already'):
        send('three')


def test_without_the_client_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(gcs._Server, 'pid', 0)
    monkeypatch.setitem(sys.modules, 'google.cloud', None)
    with pytest.raises(ValueError, match=r"pip install 't5flan\[gcs\]'"):
        to_path('gs://bucket/x').exists()
