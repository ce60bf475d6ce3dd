"""All processes of a job meet before they connect: whoever is missing is named, where JAX would end all with a trace.

The first process listens at the coordinator's address, the others tell it who they are ('t5flan 1 2', process 1 of 2)
and wait for its answer: 'go', or what is wrong. Then the port is free for JAX.
"""

import contextlib
import socket
import time

from t5flan.errors import UserError

_POLL = 0.3


def meet(coordinator: str, count: int, index: int, timeout: float) -> None:
    """Returns when all `count` processes are there.

    Raises:
        UserError: one is missing after `timeout` seconds, two are the same, or they do not agree on their number.
    """
    host, _, port = coordinator.rpartition(':')
    until = time.monotonic() + timeout
    if index == 0:
        _receive(int(port), coordinator, count, timeout, until)
    else:
        _join((host.strip('[]'), int(port)), coordinator, count, index, timeout, until)


def _receive(port: int, coordinator: str, count: int, timeout: float, until: float) -> None:
    """The first process: waits for all others."""
    try:
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        listener = socket.create_server(('', port), family=family, dualstack_ipv6=both)
    except (OSError, OverflowError) as error:
        why = getattr(error, 'strerror', None) or str(error)
        raise UserError(
            f'--coordinator={coordinator}: port {port} cannot be opened here ({why}). Set another'
        ) from None
    with listener, contextlib.ExitStack() as open_:
        listener.settimeout(_POLL)
        others: dict[int, socket.socket] = {}
        problem = ''
        while len(others) < count - 1 and not problem:
            if time.monotonic() > until:
                missing = [str(one) for one in range(1, count) if one not in others]
                shown = ', '.join(missing[:8]) + (', ...' if len(missing) > 8 else '')
                problem = f'process {shown} of {count} did not connect to {coordinator} within {timeout:g} s. Start it'
                continue
            with contextlib.suppress(OSError):
                other, _ = listener.accept()
                open_.enter_context(other)
                other.settimeout(5.0)
                words = other.recv(100).split()
                if len(words) != 3 or words[0] != b't5flan' or not (words[1] + words[2]).isdigit():
                    continue
                found, of = int(words[1]), int(words[2])
                if of != count:
                    problem = f'process {found} has --process_count={of}, process 0 has {count}. Set the same for all'
                elif found in others:
                    problem = f'two processes have --process_id={found}. Number them from 0 to {count - 1}'
                others[found] = other
        for other in others.values():
            with contextlib.suppress(OSError):
                other.sendall((problem or 'go').encode())
    if problem:
        raise UserError(problem)


def _join(address: tuple[str, int], coordinator: str, count: int, index: int, timeout: float, until: float) -> None:
    """Another process: tells the first one that it is there, and waits for the others with it."""
    why = ''
    while (left := until - time.monotonic()) > 0:
        try:
            with socket.create_connection(address, timeout=min(5.0, left)) as first:
                first.sendall(f't5flan {index} {count}'.encode())
                first.settimeout(left + 30)  # the first process may have started later, and gives up later
                answer = first.recv(1000).decode(errors='replace')
        except (OSError, OverflowError) as error:
            why = getattr(error, 'strerror', None) or str(error)
            time.sleep(min(_POLL, left))
            continue
        if answer == 'go':
            return
        if answer:
            raise UserError(answer)
        why = 'the first process ended'
        time.sleep(min(_POLL, left))
    fix = 'Start the process with --process_id=0 there, and open the port'
    raise UserError(f'the coordinator {coordinator} cannot be reached within {timeout:g} s ({why}). {fix}')
