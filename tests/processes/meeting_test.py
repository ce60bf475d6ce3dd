"""t5flan/processes/meeting.py: all processes meet, or all say who is missing."""

import socket
import threading

import pytest

from t5flan.errors import UserError
from t5flan.processes import meeting
from t5flan.processes.meeting import meet, own_host


def free_port() -> int:
    with socket.socket() as one:
        one.bind(('localhost', 0))
        return one.getsockname()[1]


def outcomes(processes: list[tuple[int, int]], timeout: float = 1.5) -> list[str]:
    """What `meet` of each (index, count) ends with: '' or its error."""
    where = f'localhost:{free_port()}'
    found = ['not ended'] * len(processes)

    def one(place: int, index: int, count: int) -> None:
        try:
            for peer in meet(where, count, index, timeout).values():
                peer.connection.close()
            found[place] = ''
        except UserError as error:
            found[place] = str(error).replace(where, 'WHERE')

    threads = [threading.Thread(target=one, args=(place, *given)) for place, given in enumerate(processes)]
    for thread in reversed(threads):  # the first process last
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


def test_all_meet():
    assert outcomes([(0, 3), (1, 3), (2, 3)]) == ['', '', '']


def test_all_say_who_is_missing():
    line = 'process 1, 3 of 4 did not connect to WHERE within 1.5 s. Start it'
    assert outcomes([(0, 4), (2, 4)]) == [line, line]


def test_two_of_the_same_number():
    found = outcomes([(0, 4), (1, 4), (1, 4)])
    assert found[0] == 'two processes have --process_id=1. Number them from 0 to 3' and found[0] in found[1:]


def test_processes_that_count_differently():
    assert set(outcomes([(0, 2), (1, 3)])) == {'process 1 has --process_count=3, process 0 has 2. Set the same for all'}


def test_strangers_are_ignored():
    port = free_port()
    ended = threading.Event()
    peers = {}
    first = threading.Thread(target=lambda: (peers.update(meet(f'localhost:{port}', 2, 0, 20)), ended.set()))
    first.start()
    for text in (b'GET / HTTP/1.1\r\n\r\n', b't5flan x 2', b''):
        for _ in range(50):
            try:
                with socket.create_connection(('localhost', port), timeout=5) as stranger:
                    stranger.sendall(text)
                break
            except ConnectionRefusedError:
                threading.Event().wait(0.1)
    assert not ended.is_set()
    [first_peer] = meet(f'localhost:{port}', 2, 1, 20).values()
    first.join(20)
    assert ended.is_set() and list(peers) == [1] and peers[1].host == own_host()
    for peer in (first_peer, peers[1]):
        peer.connection.close()


def test_the_connections_stay_open_for_the_watch():
    where, found = f'localhost:{free_port()}', {}
    first = threading.Thread(target=lambda: found.update(meet(where, 2, 0, 20)))
    first.start()
    [to_first] = meet(where, 2, 1, 20).values()
    first.join(20)
    found[1].connection.sendall(b'hello')
    assert to_first.connection.recv(10) == b'hello' and to_first.host == 'localhost'
    for peer in (to_first, found[1]):
        peer.connection.close()


@pytest.mark.parametrize('answer', [b'\x00\x00\x12\x04', b'HTTP/1.1 400 Bad Request\r\n\r\n', b't5f\n'])
def test_one_that_is_late_is_told_so(monkeypatch, answer):
    monkeypatch.setattr(meeting, 'STRANGE', 0.5)
    with socket.create_server(('', 0)) as running:  # as JAX's service of a job that runs
        port, ended = running.getsockname()[1], threading.Event()

        def serve():
            running.settimeout(0.1)
            while not ended.is_set():
                try:
                    with running.accept()[0] as one:
                        one.sendall(answer)
                        one.settimeout(2)
                        one.recv(100)
                except TimeoutError:
                    pass

        service = threading.Thread(target=serve)
        service.start()
        words = f'process 1 of 2 is late: at localhost:{port} another program answers'
        with pytest.raises(UserError, match=words) as raised:
            meet(f'localhost:{port}', 2, 1, 20)
        ended.set()
        service.join(10)
    assert '\n' not in str(raised.value)


def test_a_port_in_use_is_one_line():
    with socket.create_server(('', 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f'port {port} cannot be opened here'):
            meet(f'localhost:{port}', 2, 0, 1)
