"""All processes of a job meet before they connect: whoever is missing is named, where JAX would end all with a trace.

The first process listens at the coordinator's address, the others tell it who they are ('t5flan 1 2 node2', process 1
of 2 on node2) and wait for its answer: 't5flan go', or what is wrong. Then the port is free for JAX; the connections
stay open, for the processes to watch each other (watch.py).
"""

import contextlib
import socket
import time
from typing import NamedTuple

from t5flan.errors import UserError

_POLL = 0.3
_GREETING = b't5flan '
STRANGE = 30.0
"""Seconds for which another program may answer at the coordinator's port, such as a run that is just ending."""


class Peer(NamedTuple):
    """Another process of the job: the connection to it, and its host."""

    connection: socket.socket
    host: str


def meet(coordinator: str, count: int, index: int, timeout: float) -> dict[int, Peer]:
    """Returns when all `count` processes are there.

    Returns:
        In the first process, all others by their index; in each other one, the first one.

    Raises:
        UserError: one is missing after `timeout` seconds, two are the same, they do not agree on their number, or the
            job runs already, without this process.
    """
    host, _, port = coordinator.rpartition(':')
    until = time.monotonic() + timeout
    if index == 0:
        return _receive(int(port), coordinator, count, timeout, until)
    host = host.strip('[]')
    return {0: Peer(_join((host, int(port)), coordinator, count, index, timeout, until), host)}


def _receive(port: int, coordinator: str, count: int, timeout: float, until: float) -> dict[int, Peer]:
    """The first process: waits for all others."""
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        listener = socket.create_server(('', port), family=family, dualstack_ipv6=both, backlog=1024)
    except (OSError, OverflowError) as error:
        why = getattr(error, 'strerror', None) or str(error)
        raise UserError(
            f'--coordinator={coordinator}: port {port} cannot be opened here ({why}). Set another'
        ) from None
    with contextlib.ExitStack() as open_:
        others: dict[int, Peer] = {}
        with listener:
            listener.settimeout(_POLL)
            problem = ''
            while len(others) < count - 1 and not problem:
                if time.monotonic() > until:
                    missing = [str(one) for one in range(1, count) if one not in others]
                    shown = ', '.join(missing[:8]) + (', ...' if len(missing) > 8 else '')
                    where = f'{coordinator} within {timeout:g} s'
                    problem = f'process {shown} of {count} did not connect to {where}. Start it'
                    continue
                with contextlib.suppress(OSError):
                    other, _ = listener.accept()
                    open_.enter_context(other)
                    problem = _welcome(other, others, count)
        for peer in others.values():
            with contextlib.suppress(OSError):
                peer.connection.sendall(f't5flan {problem or "go"}\n'.encode())
        if problem:
            raise UserError(problem)
        open_.pop_all()
        return others


def _welcome(other: socket.socket, others: dict[int, Peer], count: int) -> str:
    """Adds a process that has connected to `others`, unless it is no process of a job; returns what is wrong, or ''."""
    other.settimeout(5.0)
    words = other.recv(300).decode(errors='replace').split()
    if len(words) != 4 or words[0] != 't5flan' or not (words[1].isdecimal() and words[2].isdecimal()):
        return ''
    found, of = int(words[1]), int(words[2])
    problem = ''
    if of != count:
        problem = f'process {found} has --process_count={of}, process 0 has {count}. Set the same for all'
    elif found in others:
        problem = f'two processes have --process_id={found}. Number them from 0 to {count - 1}'
    others[found] = Peer(other, words[3])
    return problem


def _join(
    address: tuple[str, int], coordinator: str, count: int, index: int, timeout: float, until: float
) -> socket.socket:
    """Another process: tells the first one that it is there, and waits for the others with it."""
    why = ''
    strange_since: float | None = None
    while (left := until - time.monotonic()) > 0:
        with contextlib.ExitStack() as open_:
            answer = None
            try:
                first = open_.enter_context(socket.create_connection(address, timeout=min(5.0, left)))
                first.sendall(f't5flan {index} {count} {own_host()}\n'.encode())
                first.settimeout(left + 30)  # the first process may have started later, and gives up later
                answer = _answer(first)
            except (OSError, OverflowError) as error:
                why = getattr(error, 'strerror', None) or str(error)
            if answer == 'go':
                open_.pop_all()
                return first
            if answer:
                raise UserError(answer)
        if answer is None:
            strange_since = None
        else:
            why = 'another program answers there'
            strange_since = strange_since or time.monotonic()
            if time.monotonic() - strange_since > STRANGE:
                fix = 'Stop all processes and start them together, or set another --coordinator'
                problem = f'process {index} of {count} is late: at {coordinator} another program answers'
                raise UserError(f'{problem}, perhaps the run itself, which started without it. {fix}')
        time.sleep(min(_POLL, left))
    fix = 'Start the process with --process_id=0 there, and open the port'
    raise UserError(f'the coordinator {coordinator} cannot be reached within {timeout:g} s ({why}). {fix}')


def _answer(first: socket.socket) -> str:
    """The answer of the first process: 'go' or what is wrong; '' of another program.

    Raises:
        ConnectionError: the first process has ended.
    """
    line = b''
    while not line.endswith(b'\n') and len(line) < 2000:
        one = first.recv(1)
        if not one and not line:
            raise ConnectionError('the first process ended')
        if not one:
            return ''
        line += one
        if not (_GREETING.startswith(line) or line.startswith(_GREETING)):
            return ''
    return line.removeprefix(_GREETING).decode(errors='replace').strip()


def own_host() -> str:
    """The name of this host, one word."""
    return '-'.join(socket.gethostname().split()) or 'unknown'
