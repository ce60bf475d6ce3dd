"""Shared by the experiments: t5flan commands that are printed before they run, and Markdown tables."""

import contextlib
import json
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5flan.__main__ import main
from t5flan.errors import UserError
from t5flan.files import write_json

SECONDS_TO_SAVE = 120.0


def run(*argv: str) -> None:
    """Prints and runs a t5flan command in this process; exits if it fails."""
    print(f'$ t5flan {shlex.join(argv)}', flush=True)
    if code := main(argv):
        raise SystemExit(code)


class Children:
    """t5flan commands that run as processes of their own, from several threads.

    An error, Ctrl-C or SIGTERM inside a `with` block ends those that run, and waits until a training run has saved.
    """

    def __init__(self) -> None:
        self._running: set[subprocess.Popen] = set()
        self._lock = threading.Lock()
        self._stopped = False

    def __enter__(self) -> 'Children':
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.stop()
            with self._lock:
                running = list(self._running)
            for child in running:  # it holds the lock of its workdir until it has saved
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(SECONDS_TO_SAVE)

    def run(self, log: Path, *argv: str) -> int:
        """Prints and runs a command, whose output is added to `log`; returns its exit status, 1 after `stop`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open('a', encoding='utf-8') as output:
            with self._lock:
                if self._stopped:
                    return 1
                print(f'$ t5flan {shlex.join(argv)} >> {shlex.quote(str(log))}', flush=True)
                command = [sys.executable, '-m', 't5flan', *argv]
                child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
                self._running.add(child)
            code = child.wait()
        with self._lock:
            self._running.discard(child)
        return code

    def stop(self) -> None:
        """Ends the running commands, and starts no others."""
        with self._lock:
            self._stopped = True
            for child in self._running:
                child.terminate()


def require_same_settings(root: Path, settings: Mapping[str, Any]) -> None:
    """Writes the settings of a new experiment, and refuses to continue one with others.

    Raises:
        UserError: `root` was started with others.
    """
    path = root / 'settings.json'
    if not path.exists():
        write_json(path, settings)
    before = json.loads(path.read_text('utf-8'))
    if changed := [name for name in settings if before.get(name) != settings[name]]:
        was = ', '.join(f'--{name}={before.get(name)}' for name in changed)
        raise UserError(f'{root} was started with {was}. Set the same, or another --workdir.')


def is_trained(workdir: Path, steps: int) -> bool:
    """Whether a training run saved the checkpoint of its last step."""
    return (workdir / 'checkpoints' / str(steps)).is_dir()


def markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f'| {" | ".join(titles)} |', '|---' * len(titles) + '|']
    return '\n'.join([*lines, *(f'| {" | ".join(row)} |' for row in rows)])
