"""What a run writes down as it goes: metrics.jsonl, TensorBoard files, and a progress line.

metrics.jsonl has one object a line: {"step": 10, "loss": 3.2, ...}; numbers of the evaluation are named eval/loss and so
on. A run that goes on from step N first drops what a killed run had written beyond N, so that every step stands once.
"""

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import TextIO

from etils import epath

from t5flan.files import write_whole

METRICS = 'metrics.jsonl'


def read_metrics(workdir: str | os.PathLike[str]) -> list[dict[str, float]]:
    """All whole lines of metrics.jsonl; a last line cut by a kill is left out."""
    path = epath.Path(workdir) / METRICS
    if not path.exists():
        return []
    rows = []
    for line in path.read_text().split('\n'):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


class Journal:
    """Writes metrics to metrics.jsonl and TensorBoard, and a line to the terminal. Only the first host writes."""

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        *,
        first_step: int,
        total_steps: int,
        active: bool = True,
        stream: TextIO | None = None,
    ):
        self._total_steps = total_steps
        self._stream = stream or sys.stderr
        self._active = active
        self._status = None
        if not active:
            return
        workdir = epath.Path(workdir)
        kept = [row for row in read_metrics(workdir) if row['step'] <= first_step]
        path = workdir / METRICS
        write_whole(path, ''.join(json.dumps(row) + '\n' for row in kept))
        self._file = path.open('a')
        self._tensorboard = _TensorBoard(workdir / 'tensorboard', first_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one row; the line is on disk when this returns."""
        if not self._active:
            return
        self._file.write(json.dumps({'step': step} | {name: float(value) for name, value in metrics.items()}) + '\n')
        self._file.flush()
        self._tensorboard.write(step, metrics)

    def progress(self, step: int, metrics: Mapping[str, float], seconds_left: float | None) -> None:
        """Shows where the run is: in place on a terminal, as plain lines elsewhere."""
        if not self._active:
            return
        words = [f'step {step}/{self._total_steps}', f'loss {metrics["loss"]:.4f}']
        if 'tokens_per_second' in metrics:
            words.append(f'{metrics["tokens_per_second"]:,.0f} tokens/s')
        if metrics.get('model_flops_utilisation') is not None:
            words.append(f'{100 * metrics["model_flops_utilisation"]:.1f} % MFU')
        if seconds_left is not None:
            words.append(f'{_duration(seconds_left)} left')
        self._show(step, '  '.join(words))

    def say(self, text: str) -> None:
        """A line of its own, kept on the terminal."""
        if not self._active:
            return
        if self._status is not None:
            self._status.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=self._stream, flush=True)

    def _show(self, step: int, line: str) -> None:
        if not self._stream.isatty():
            print(line, file=self._stream, flush=True)
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        if self._status is None:
            self._status = Progress(
                BarColumn(bar_width=24), TextColumn('{task.description}'), console=Console(file=self._stream)
            )
            self._status.start()
            self._bar = self._status.add_task(line, total=self._total_steps)
        self._status.update(self._bar, completed=step, description=line)

    def close(self) -> None:
        """Closes the files and leaves the terminal as it was."""
        if not self._active:
            return
        if self._status is not None:
            self._status.stop()
            self._status = None
        self._file.close()
        self._tensorboard.close()


class _TensorBoard:
    """Scalars in TensorBoard's own format, through the tensorboard package (no TensorFlow graph involved)."""

    def __init__(self, folder: epath.Path, first_step: int):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2, summary_pb2
        self._writer = EventFileWriter(str(folder))
        # TensorBoard drops what an earlier, killed run had written from this step on.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.add_event(event_pb2.Event(session_log=start, step=first_step + 1, wall_time=time.time()))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        values = [self._summary.Summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()]
        self._writer.add_event(
            self._event.Event(summary=self._summary.Summary(value=values), step=step, wall_time=time.time())
        )

    def close(self) -> None:
        self._writer.close()


def _duration(seconds: float) -> str:
    """3725 -> '1:02:05', 65 -> '1:05'."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
