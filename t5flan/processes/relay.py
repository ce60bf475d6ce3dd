"""A relay between JAX's client in a process and JAX's service in the first one, which hides that the service has ended.

When that connection breaks, JAX's client ends its process at once with a trace, before watch.py can say which process
has ended. Over the relay it notices nothing for 100 s, and watch.py ends the process long before.
"""

import contextlib
import socket
import threading

_BLOCK = 65536


class Relay:
    """Passes on what JAX's client and service say, in threads that end with the process.

    Attributes:
        address: HOST:PORT, to which the client connects.
    """

    def __init__(self, coordinator: str) -> None:
        host, _, port = coordinator.rpartition(':')
        self._service = host.strip('[]'), int(port)
        self._was_there = False
        self._listener = socket.create_server(('127.0.0.1', 0))
        self._held: list[socket.socket] = []  # open, though the service has ended
        self.address = f'127.0.0.1:{self._listener.getsockname()[1]}'
        threading.Thread(target=self._accept, name='relay', daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._pass_on, args=(client,), name='relay', daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        """Both directions of one connection."""
        try:
            service = socket.create_connection(self._service, timeout=30)
        except OSError:
            self._end(client)
            return
        for one in (client, service):
            one.settimeout(None)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_copy_and_close, args=(client, service), name='relay', daemon=True).start()
        self._was_there |= _copy(service, client)
        self._end(client)

    def _end(self, client: socket.socket) -> None:
        """The service has ended, or is not there yet: then the client tries again."""
        if self._was_there:
            self._held.append(client)
        else:
            client.close()


def _copy(source: socket.socket, target: socket.socket) -> bool:
    """Copies until one of them ends; returns whether there was anything."""
    found = False
    with contextlib.suppress(OSError):
        while data := source.recv(_BLOCK):
            found = True
            target.sendall(data)
    return found


def _copy_and_close(source: socket.socket, target: socket.socket) -> None:
    """Copies, and then says that there is no more."""
    _copy(source, target)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
