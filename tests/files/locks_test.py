"""One process at a time holds a lock; the lock of a killed process is taken over, wherever it ran."""

import contextlib
import functools
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest
from etils import epath

from t5flan.errors import UserError
from t5flan.files import locks, to_path


@epath.register_path_cls('standin2://')
class Bucket(pathlib.PurePosixPath):
    """A bucket in memory, without exclusive creation."""

    objects: dict[str, str] = {}

    def __fspath__(self):
        return str(self).replace(':/', '://', 1)

    def mkdir(self, parents=False, exist_ok=False):
        pass

    def exists(self):
        return os.fspath(self) in self.objects

    def read_text(self, encoding=None):
        if not self.exists():
            raise FileNotFoundError(os.fspath(self))
        return self.objects[os.fspath(self)]

    def write_text(self, text, encoding=None):
        self.objects[os.fspath(self)] = text

    def unlink(self):
        del self.objects[os.fspath(self)]


@pytest.fixture
def exits():
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture(params=['local', 'no links', 'bucket', 'gcs'])
def path(request, tmp_path, monkeypatch):
    """A lock on a local disk, on a file system without hard links, in another bucket, and in one of Google's."""
    Bucket.objects.clear()
    monkeypatch.setattr(locks, 'SETTLE', 0.05)
    if request.param == 'no links':

        def refuse(*_):
            raise PermissionError(1, 'Operation not permitted')

        monkeypatch.setattr(os, 'link', refuse)
    if request.param == 'gcs':
        pytest.importorskip('google.cloud.storage', reason="pip install 't5flan[gcs]'")
        from tests.files.gcs_server import GcsServer, use

        server = request.getfixturevalue('exits').enter_context(GcsServer())
        use(server, monkeypatch)
        return to_path('gs://bucket/run/.t5flan.lock')
    return to_path('standin2://b/run/.t5flan.lock' if request.param == 'bucket' else tmp_path / 'run' / '.t5flan.lock')


def rewrite(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_second_is_refused_and_told_who_holds_it(path, tmp_path):
    with locks.hold(path, 'runs/mine', '--workdir') as lock:
        with pytest.raises(UserError) as error, locks.hold(path, 'runs/mine', '--workdir'):
            pass
        for words in (f'runs/mine is being written by process {os.getpid()} on ', ' since 20', 'another --workdir'):
            assert words in str(error.value)
        lock.require()
    assert not path.exists()
    with locks.hold(path, 'runs/mine', '--workdir'):
        assert path.exists()
    assert not list(tmp_path.rglob('*.tmp'))


def test_the_lock_of_a_killed_process_is_taken_over_at_once(path):
    locks.acquire(path, 'runs/mine', '--workdir')._ended.set()
    for changes in ({'pid': 2**22 + 1}, {'started': '1'}):  # it is gone, or its number belongs to another process
        rewrite(path, **changes)
        with locks.hold(path, 'runs/mine', '--workdir'):
            pass
        locks.acquire(path, 'runs/mine', '--workdir')._ended.set()


def beat(ended, renew):
    for count in range(100):
        if ended.wait(0.05):
            return
        renew(renewed=count)


def test_the_lock_of_another_machine_is_watched(path, monkeypatch, capsys):
    monkeypatch.setattr(locks, 'PATIENCE', 0.4)
    for content in ('elsewhere', ''):  # '': it is being written
        locks.acquire(path, 'runs/mine', '--workdir')._ended.set()
        path.write_text('') if not content else rewrite(path, machine=content, host='far')
        beating = threading.Event()

        renew = functools.partial(rewrite, path) if content else lambda renewed: path.write_text(' ' * renewed)
        thread = threading.Thread(target=beat, args=(beating, renew))
        thread.start()
        with pytest.raises(UserError, match='is being written by'):
            locks.acquire(path, 'runs/mine', '--workdir')
        beating.set()
        thread.join()
        assert 'watching for 0 s if it runs' in capsys.readouterr().err
        with locks.hold(path, 'runs/mine', '--workdir'):  # not renewed any more
            pass


def test_a_lock_forgotten_for_an_hour_is_stale_at_once(tmp_path):
    path = tmp_path / '.lock'
    locks.acquire(path, 'x', '--workdir')._ended.set()
    rewrite(path, machine='elsewhere')
    os.utime(path, (time.time() - 7200, time.time() - 7200))
    started = time.monotonic()
    with locks.hold(path, 'x', '--workdir'):
        assert time.monotonic() - started < 1


def test_a_holder_whose_lock_was_taken_writes_no_more(path):
    lock = locks.acquire(path, 'runs/mine', '--workdir')
    rewrite(path, token='another', pid=1)
    with pytest.raises(UserError, match='runs/mine is no longer held by this process: process 1 on .* has it now'):
        lock.require()
    lock.release()
    assert path.exists(), 'it is the lock of another'


def test_a_lock_is_renewed(path, monkeypatch):
    monkeypatch.setattr(locks, 'BEAT', 0.02)
    with locks.hold(path, 'x', '--workdir'):
        before = locks._read(path)
        time.sleep(0.3)
        assert locks._read(path) != before


def test_of_many_that_start_at_once_over_a_stale_lock_one_gets_it(tmp_path):
    path = tmp_path / '.lock'
    locks.acquire(path, 'x', '--workdir')._ended.set()
    rewrite(path, pid=2**22 + 1)
    code = (
        'import sys, time; from t5flan.files import locks; from t5flan.errors import UserError\n'
        'sys.stdin.read()\n'
        'try:\n    locks.acquire(sys.argv[1], "x", "--workdir"); print("got it", flush=True); time.sleep(3)\n'
        'except UserError as error: print(error)'
    )
    run = [sys.executable, '-c', code, str(path)]
    started = [subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    for one in started:
        one.stdin.close()
    said = [one.stdout.read() for one in started]
    for one in started:
        one.stdout.close()
        one.wait()
    assert sorted(text.startswith('got it') for text in said) == [False] * 5 + [True], said


def test_an_unwritable_folder_is_named(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match='file'):
        locks.acquire(tmp_path / 'file' / '.lock', 'x', '--workdir')
