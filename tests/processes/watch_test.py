"""t5flan/processes/watch.py: who ends is named by all others, and those that are done together are not disturbed."""

import os
import socket
import threading
import time

import pytest

from t5flan import signals
from t5flan.processes import watch
from t5flan.processes.meeting import Peer


class Job:
    """Processes of a job, as watches in threads; those in `strangers` are bare connections."""

    def __init__(self, count, strangers=()):
        self.lines, self.codes = {}, {}
        self.watches, self.strangers = {}, {}
        peers = {index: {} for index in range(count)}
        for index in range(1, count):
            one, other = socket.socketpair()
            peers[0][index], peers[index][0] = Peer(one, f'host{index}'), Peer(other, 'host0')
        for index in range(count):
            if index in strangers:
                self.strangers[index] = [peer.connection for peer in peers[index].values()]
            else:
                show = lambda line, index=index: self.lines.setdefault(index, []).append(line)
                end = lambda code, index=index: self.codes.__setitem__(index, code)
                self.watches[index] = watch.Watch(peers[index], index, count, show, end)

    def wait(self, *indices):
        """Waits until these have ended."""
        until = time.monotonic() + 10
        while not {*indices} <= self.codes.keys():
            assert time.monotonic() < until, (self.codes, self.lines)
            time.sleep(0.02)

    def close(self):
        for one in self.watches.values():
            one.close()
        for connection in [one for own in self.strangers.values() for one in own]:
            connection.close()


@pytest.fixture
def job(monkeypatch):
    for name, value in {'BEAT': 0.1, 'GRACE': 0.3, 'NEWS': 0.3, '_LAST': 0.5, '_POLL': 0.05}.items():
        monkeypatch.setattr(watch, name, value)
    made = []

    def make(*given, **options):
        made.append(Job(*given, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def together(*calls):
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_all_that_are_done_end_together(job):
    found = job(4)
    order = []
    first = threading.Thread(target=lambda: (found.watches[2].finish(), order.append('done')))
    first.start()
    time.sleep(0.3)
    assert not order and first.is_alive()  # the others are not done
    together(*(found.watches[index].finish for index in (0, 1, 3)))
    first.join(10)
    assert order == ['done'] and not found.codes and not found.lines


@pytest.mark.parametrize('gone', [2, 0])
def test_one_that_is_killed_is_named_by_all_others(job, gone):
    found = job(3, strangers=[gone])
    for connection in found.strangers[gone]:
        connection.close()
    others = sorted({0, 1, 2} - {gone})
    found.wait(*others)
    for index in others:
        [line] = found.lines[index]
        assert line.startswith(f'process {gone} of 3 on host{gone} was killed, or its host') and '\n' not in line
        assert line.endswith('Run the same command again to resume') and found.codes[index] == 1


def test_one_that_is_silent_is_named(job, monkeypatch):
    monkeypatch.setattr(watch, 'SILENCE', 0.4)
    found = job(3, strangers=[1])
    found.wait(0, 2)
    for index in (0, 2):
        assert found.lines[index][0].startswith('process 1 of 3 on host1 has not answered for 0 s')


def test_one_that_fails_is_quoted_by_the_others(job):
    found = job(3)
    found.watches[1].fail('x=5, expected 4. Set x in your .gin.')
    assert 1 not in found.lines  # it prints its own line
    found.watches[1].leave(1)
    found.wait(0, 1, 2)
    for index in (0, 2):
        [line] = found.lines[index]
        assert line.startswith('process 1 of 3 on ') and line.endswith(': x=5, expected 4. Set x in your .gin.')
    assert found.codes == {0: 1, 1: 1, 2: 1}


def test_all_that_fail_for_the_same_reason_print_it_themselves(job):
    found = job(3)
    together(*(lambda one=one: one.fail('the file is missing') for one in found.watches.values()))
    assert not found.codes and not found.lines
    together(*(lambda one=one: one.leave(2) for one in found.watches.values()))
    assert found.codes == {0: 2, 1: 2, 2: 2} and not found.lines


def test_an_error_that_the_end_of_another_causes_is_not_printed(job):
    found = job(2, strangers=[0])
    failing = threading.Thread(target=lambda: found.watches[1].fail('Gloo: connection closed by peer'))
    failing.start()
    found.strangers[0][0].close()
    failing.join(10)
    [line] = found.lines[1]
    assert line.startswith('process 0 of 2 on host0 was killed') and found.codes == {1: 1}


def test_a_signal_reaches_all(job, monkeypatch):
    sent = []
    monkeypatch.setattr(os, 'kill', lambda pid, number: sent.append(number))
    found = job(3, strangers=[1])
    found.strangers[1][0].sendall(b'signal 15\n')
    until = time.monotonic() + 10
    while len(sent) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    assert sent == [15, 15] and not found.lines  # of processes 0 and 2
    together(found.watches[0].finish, found.watches[2].finish, lambda: found.strangers[1][0].sendall(b'done\n'))


def test_one_that_has_a_signal_tells_the_others_and_waits_for_their_saves(job, monkeypatch):
    found = job(2, strangers=[1])
    monkeypatch.setattr(signals, 'received', lambda: 'SIGTERM')
    leaving = threading.Thread(target=lambda: found.watches[0].leave(1))
    leaving.start()
    time.sleep(0.3)
    assert not found.codes
    heard = found.strangers[1][0].recv(1000)
    assert b'signal 15\n' in heard
    found.strangers[1][0].sendall(b'done\n')
    found.strangers[1][0].shutdown(socket.SHUT_WR)
    leaving.join(10)
    assert found.codes == {0: 1} and not found.lines
