"""t5flan/processes/relay.py: it passes on everything, and hides that the service has ended, but not that it is late."""

import socket
import threading

import pytest

from t5flan.processes.relay import Relay


@pytest.fixture
def service():
    """A listener in the place of JAX's service."""
    with socket.create_server(('localhost', 0)) as listener:
        listener.settimeout(10)
        yield listener


def connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(':')
    one = socket.create_connection((host, int(port)), timeout=10)
    return one


def test_both_directions_are_passed_on_whole(service):
    relay = Relay(f'localhost:{service.getsockname()[1]}')
    data = bytes(range(256)) * 4096
    with connect(relay.address) as client, service.accept()[0] as other:
        for source, target in ((client, other), (other, client)):
            sender = threading.Thread(target=source.sendall, args=(data,))
            sender.start()
            received = b''
            while len(received) < len(data):
                received += target.recv(2**20)
            sender.join()
            assert received == data
        client.close()
        assert other.recv(10) == b''  # the service knows that the client has ended


def test_the_end_of_the_service_is_hidden(service):
    relay = Relay(f'localhost:{service.getsockname()[1]}')
    with connect(relay.address) as client:
        other, _ = service.accept()
        other.sendall(b'settings')
        assert client.recv(10) == b'settings'
        other.close()
        service.close()
        client.settimeout(0.5)
        with pytest.raises(TimeoutError):  # neither an end nor an error
            client.recv(10)
        with connect(relay.address) as again:
            again.settimeout(0.5)
            with pytest.raises(TimeoutError):
                again.recv(10)


def test_a_service_that_is_not_there_yet_refuses(service):
    where = f'localhost:{service.getsockname()[1]}'
    service.close()
    with connect(Relay(where).address) as client:
        assert client.recv(10) == b''  # JAX's client tries again
