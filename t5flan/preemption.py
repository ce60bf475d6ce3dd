"""Preemption: SIGTERM and SIGINT make the train loop save its state and stop after the current step."""

import signal
from types import FrameType
from typing import Self

import jax


class Preemption:
    """A context that catches SIGTERM and SIGINT; a second signal ends the process at once.

    With several hosts, all must stop at the same step: JAX's preemption service receives the SIGTERM that Cloud sends
    and agrees on one.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self._received: int | None = None

    @property
    def signal_name(self) -> str:
        """'SIGTERM' or 'SIGINT'."""
        return signal.Signals(self._received or signal.SIGTERM).name

    def __enter__(self) -> Self:
        caught = self.SIGNALS if jax.process_count() == 1 else (signal.SIGINT,)
        self._previous = {number: signal.signal(number, self._catch) for number in caught}
        return self

    def __exit__(self, *_: object) -> None:
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        self._restore_handlers()

    def should_stop(self, step: int) -> bool:
        """Whether the run should save and stop after this step."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(step)
        return self._received is not None
