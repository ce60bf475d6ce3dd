"""Leaving in good order: SIGTERM and SIGINT ask the train loop to save and stop after the step under way."""

import signal
from types import FrameType
from typing import Self

import jax


class Preemption:
    """Catches SIGTERM and SIGINT while it is entered; a second signal stops at once.

    On many hosts every host must leave at the same step: JAX's preemption service, which hears the SIGTERM that Cloud
    sends, agrees on one.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self._received: int | None = None

    @property
    def signal_name(self) -> str:
        """'SIGTERM' or 'SIGINT'."""
        return signal.Signals(self._received or signal.SIGTERM).name

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._catch) for number in self._caught()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _caught(self) -> tuple[signal.Signals, ...]:
        return self.SIGNALS if jax.process_count() == 1 else (signal.SIGINT,)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        for caught, handler in self._before.items():
            signal.signal(caught, handler)

    def asked(self, step: int) -> bool:
        """Whether the run should save and leave after this step."""
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            return multihost_utils.reached_preemption_sync_point(step)
        return self._received is not None
