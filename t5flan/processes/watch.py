"""The processes of a job watch each other: when one ends, all others stop, with one line that names it.

JAX finds a missing process after 100 s, and then ends the others with a trace. Here each process keeps the connection
to the first one on which they met. Over it go lines:

    .               a sign of life, every few seconds
    signal 15       this process was told to stop by a signal; the others stop as if they had it too
    stop LINE       a process has failed; the line says which and why
    gone LINE       a process was killed; the line says which
    done            this process has finished its share
    all             all have

A connection that breaks before 'done' is that of a process that was killed; one that is silent for `SILENCE` seconds
that of a host that is gone. The first process passes on what it hears, and ends last: with it ends JAX's service.
"""

import contextlib
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping

from t5flan import signals
from t5flan.processes.meeting import Peer, own_host

BEAT = 5.0
"""Seconds between two signs of life."""
SILENCE = 45.0
"""Seconds without a sign of life after which a process counts as gone."""
GRACE = 10.0
"""Seconds that a process has to end by itself after another one has failed: it may fail for the same reason."""
NEWS = 2.0
"""Seconds that a process which fails waits for news of another one, which may be the cause."""
_LAST = 5.0
"""Seconds that the first process waits for the others to end before it."""
_POLL = 0.5
_RESUME = 'Run the same command again to resume'


def _show(line: str) -> None:
    start = '\n' if os.isatty(2) else ''  # after a line of progress
    os.write(2, f'{start}t5flan: {line}\n'.encode(errors='replace'))


class Watch:
    """A thread that watches the other processes of a job, and ends this one if one of them ends before it is done.

    It does not wait for the main thread, which may be waiting for the other process for ever.

    Args:
        peers: from `meet`: in the first process, all others by their index; in each other one, the first one.
        index: of this process.
        count: of all processes.
        show: prints the last line of the process; replaced in tests, as `end`.
        end: ends the process with an exit code.
    """

    def __init__(
        self,
        peers: Mapping[int, Peer],
        index: int,
        count: int,
        show: Callable[[str], None] = _show,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self._peers, self._index, self._count = peers, index, count
        self._show, self._exit = show, end
        self._buffers = dict.fromkeys(peers, b'')
        self._heard = dict.fromkeys(peers, time.monotonic())
        self._open = set(peers)
        self._done: set[int] = set()
        self._sending, self._ending = threading.Lock(), threading.Lock()
        self._told_signal = False
        self._problem: str | None = None  # what another process has failed with
        self._deadline: float | None = None
        self._is_reported = False  # this process has said why it ends
        self._finished, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name='watch of processes', daemon=True)
        self._thread.start()

    # -- What this process says --------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Says that this process has finished its share, and returns when all have."""
        self._say('done')
        self._is_done(self._index)
        while not self._finished.wait(_POLL):  # a signal may interrupt it
            pass

    def fail(self, why: str) -> None:
        """Tells the others that this process fails; call it before its line is printed.

        If the end of another process is the cause, this one ends here, with the line about the other.
        """
        until = time.monotonic() + NEWS
        while self._problem is None and time.monotonic() < until:
            time.sleep(0.05)
        if self._problem is not None and why not in self._problem:
            self._end(self._problem)
        self._is_reported = True
        self._say(f'stop {self._name(self._index)} stopped, and so do all others: {why}')

    def leave(self, code: int) -> None:
        """Ends this process after an error or a signal, without JAX, which would wait for the others."""
        self._pass_signal_on()
        if signals.received() is None and not self._is_reported:
            self._say(f'stop {self._name(self._index)} stopped, and so do all others')
        self._is_reported = True
        if signals.received() is not None:
            with signals.saving():  # the others may still save; a second signal ends this process
                self.finish()
        self._end(None, code)

    def close(self) -> None:
        """Ends the thread and the connections, without a word."""
        self._closed.set()
        self._thread.join()
        for peer in self._peers.values():
            peer.connection.close()

    def _say(self, line: str) -> None:
        data = ' '.join(line.split())[:2000].encode(errors='replace') + b'\n'
        with self._sending:
            for peer in self._peers.values():
                with contextlib.suppress(OSError):  # it has ended, which `_read` finds out
                    peer.connection.sendall(data)

    def _end(self, line: str | None, code: int = 1) -> None:
        """Ends this process, the first one after the others; only the first call has an effect."""
        self._is_reported = True
        if not self._ending.acquire(blocking=False):
            if threading.current_thread() is not self._thread:
                self._closed.wait()  # the other thread ends the process
            return
        if line is not None:
            self._show(line)
        if self._index:
            for peer in self._peers.values():
                with contextlib.suppress(OSError):
                    peer.connection.shutdown(socket.SHUT_WR)  # all that was said arrives
            time.sleep(0.2)
        until = time.monotonic() + (GRACE + _LAST if line is None else _LAST)
        for one in list(self._open) if self._index == 0 else ():
            self._peers[one].connection.settimeout(0.05)
        while self._index == 0 and self._open and time.monotonic() < until:
            if threading.current_thread() is self._thread:
                for one in list(self._open):
                    self._read(one)
            time.sleep(0.05)
        self._exit(code)
        self._closed.set()

    # -- What the others say -----------------------------------------------------------------------------------------

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector:
            for one, peer in self._peers.items():
                peer.connection.settimeout(1.0)
                selector.register(peer.connection, selectors.EVENT_READ, one)
            next_beat, before = 0.0, time.monotonic()
            while not self._closed.is_set() and (self._open or not self._finished.is_set()):
                for key, _ in selector.select(_POLL):
                    if not self._read(key.data):
                        selector.unregister(key.fileobj)
                now = time.monotonic()
                if now - before > BEAT:  # this process was suspended: the others may have been heard long ago
                    self._heard = dict.fromkeys(self._heard, now)
                before = now
                if now >= next_beat and not self._finished.is_set():
                    self._say('.')
                    next_beat = now + BEAT
                for one in self._open - self._done:
                    if now - self._heard[one] > SILENCE:
                        self._lost(one, f'has not answered for {SILENCE:.0f} s')
                self._pass_signal_on()
                if self._deadline is not None and now > self._deadline and not self._is_reported:
                    self._end(self._problem)

    def _read(self, one: int) -> bool:
        """Reads what a process says; returns whether it may say more."""
        try:
            data = self._peers[one].connection.recv(4096)
        except TimeoutError:
            return True
        except OSError:
            data = b''
        if not data:
            self._open.discard(one)
            if one not in self._done and not self._finished.is_set() and not self._closed.is_set():
                self._lost(one, 'was killed, or its host or network failed')
            return False
        self._heard[one] = time.monotonic()
        *lines, self._buffers[one] = (self._buffers[one] + data).split(b'\n')
        for line in lines:
            self._hear(one, line.decode(errors='replace'))
        return True

    def _hear(self, one: int, line: str) -> None:
        word, _, rest = line.partition(' ')
        if self._index == 0 and word in ('stop', 'gone'):
            self._say(line)
        if word == 'done':
            self._is_done(one)
        elif word == 'all':
            self._finished.set()
        elif word == 'signal' and rest.isdecimal():
            if not self._told_signal:
                self._told_signal = True
                if self._index == 0:
                    self._say(line)
                if signals.received() is None:
                    os.kill(os.getpid(), int(rest))
        elif word == 'stop':
            self._done.add(one)  # if it is not the first process, its end is no news
            if self._problem is None:
                self._problem, self._deadline = rest, time.monotonic() + GRACE
        elif word == 'gone':
            self._give_up(rest)

    def _lost(self, one: int, how: str) -> None:
        """A process has ended without a word."""
        line = f'{self._name(one)} {how}, so all others stop. {_RESUME}'
        if self._index == 0 and not self._is_reported:
            self._say(f'gone {line}')
        self._give_up(line)
        self._is_done(one)
        if one == 0:
            self._finished.set()

    def _give_up(self, line: str) -> None:
        """Ends this process, unless it has said already why it ends."""
        if self._problem is None:
            self._problem = line
        if not self._is_reported:
            self._end(self._problem)

    def _name(self, one: int) -> str:
        host = own_host() if one == self._index else self._peers[one].host
        return f'process {one} of {self._count} on {host}'

    def _pass_signal_on(self) -> None:
        name = signals.received()
        if name is not None and not self._told_signal:
            self._told_signal = True
            self._say(f'signal {int(signal.Signals[name])}')

    def _is_done(self, one: int) -> None:
        self._done.add(one)
        if self._index == 0 and len(self._done) == self._count:
            self._say('all')
            self._finished.set()
