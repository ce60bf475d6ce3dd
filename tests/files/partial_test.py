"""t5flan/files/partial.py: what a killed process wrote by half is removed, and nothing else."""

import os
import re
import subprocess
import sys
import time

import pytest

from t5flan.files import locks, partial, write_whole
from t5flan.files.partial import partial_folder, partial_path, remove_partial

DEAD = 2**22 + 1  # above the largest process number


def named(target, **changes):
    """A half-written name as another process makes it."""
    path = partial_path(target)
    owner = {'pid': DEAD, 'started': '1', 'machine': partial._machine_digits(), **changes}
    found = '{pid}-{started}-{machine}'.format(**owner)
    return path.with_name(re.sub(r'\.\d+-\d*-[0-9a-f]{8}\.', f'.{found}.', path.name))


def names(folder):
    return {path.name for path in folder.iterdir()}


@pytest.fixture(autouse=True)
def looked():
    """As in a new process, which has looked into no folder."""
    partial._looked.clear()
    yield
    partial._looked.clear()


def leave(folder):
    """Half-written files and folders of dead processes, and others that are none of them."""
    left = [named(folder / name) for name in ('a.json', 'out.report.json', 'a.json.provenance.json', '.a.json.lock')]
    folders = [named(folder / 'model')]
    kept = [partial_path(folder / 'a.json')]  # of this process
    kept += [named(folder / 'b', machine='00000000')]  # of another machine
    kept += [folder / name for name in ('.notes.20240101.tmp', 'a.tmp', '.a.json.mine.tmp', '.1-2-3.tmp')]
    for path in (*left, *kept):
        path.write_text('x')
    for path in folders:
        path.mkdir()
        (path / 'inside').write_text('x')
    partial._looked.clear()
    return {path.name for path in kept}


@pytest.mark.parametrize('how', ['a file', 'a lock', 'a folder', 'by name'])
def test_the_next_process_that_writes_removes_what_a_killed_one_left(tmp_path, how):
    kept = leave(tmp_path)
    if how == 'a file':
        write_whole(tmp_path / 'new', 'x')
    elif how == 'a folder':
        with partial_folder(tmp_path / 'new') as folder:
            os.rename(folder, tmp_path / 'new')
    elif how == 'a lock':
        with locks.hold_file(tmp_path / 'new', '--output'):
            pass
    else:
        remove_partial(tmp_path / 'new')
    assert names(tmp_path) - {'new'} == kept


def test_what_another_machine_wrote_is_removed_by_the_next_holder_of_its_lock_or_after_a_day(tmp_path):
    for name, age in (('held', 0), ('other', 0), ('old', 2 * 86400)):
        path = named(tmp_path / name, machine='00000000')
        path.write_text('x')
        os.utime(path, (time.time() - age, time.time() - age))
    partial._looked.clear()
    write_whole(tmp_path / 'new', 'x')
    assert {name.split('.')[1] for name in names(tmp_path) - {'new'}} == {'held', 'other'}
    remove_partial(tmp_path / 'held')
    assert {name.split('.')[1] for name in names(tmp_path) - {'new'}} == {'other'}


def test_a_link_is_not_followed(tmp_path):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'file').write_text('x')
    named(tmp_path / 'a').symlink_to(tmp_path / 'mine')
    remove_partial(tmp_path / 'a')
    assert (tmp_path / 'mine' / 'file').exists()


def test_the_longest_name_can_be_written(tmp_path):
    for name in ('x' * 255, 'ü' * 127, '\U0001f600' * 63):
        write_whole(tmp_path / name, 'x')
    assert len(names(tmp_path)) == 3


def test_a_running_process_keeps_its_files(tmp_path):
    code = (
        'import sys; from t5flan.files import open_whole\n'
        'with open_whole(sys.argv[1]) as file:\n    print("open", flush=True); sys.stdin.read(); file.write("x")'
    )
    run = [sys.executable, '-c', code, str(tmp_path / 'theirs')]
    with subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == 'open\n'
        with locks.hold_file(tmp_path / 'theirs', '--output'):
            write_whole(tmp_path / 'ours', 'x')
        process.stdin.close()
    assert names(tmp_path) == {'theirs', 'ours'}


def test_the_folder_of_an_error_is_removed(tmp_path):
    with pytest.raises(RuntimeError), partial_folder(tmp_path / 'new' / 'a') as folder:
        (folder / 'inside').write_text('x')
        raise RuntimeError
    assert names(tmp_path / 'new') == set()
