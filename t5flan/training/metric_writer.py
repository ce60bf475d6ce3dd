"""Writes a run's metrics to metrics.jsonl and TensorBoard, and its progress to the terminal.

metrics.jsonl has one object per line: {"step": 10, "loss": 3.2, ...}; metrics of the evaluation are named eval/loss and
so on. A run that resumes from step N first drops the rows after N that a killed run wrote, so every step appears once.
"""

import json
import os
import sys
import tempfile
import time
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from t5flan.files import PathLike, open_append, write_json, write_whole
from t5flan.files.buckets import epath

if TYPE_CHECKING:
    from rich.progress import Progress

METRICS = 'metrics.jsonl'
SAMPLES = 'samples.jsonl'
DATA = 'data.json'
_LONGEST_LINE = 2**24  # bytes


def read_metrics(workdir: PathLike) -> list[dict[str, float]]:
    """All complete lines of metrics.jsonl with a step and numbers; a last line cut off by a kill is skipped."""
    path = epath.Path(workdir) / METRICS
    if not path.exists():
        return []
    rows = []
    with path.open('rb') as file:
        for line in iter(lambda: file.readline(_LONGEST_LINE), b''):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(row, dict) and all(map(_is_number, row.values())) and isinstance(row.get('step'), int):
                rows.append(row)
    return rows


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not abs(value) > 1e300


class MetricWriter:
    """Writes metrics, log lines and the progress of a run; does nothing on hosts other than the first.

    Args:
        workdir: the folder of metrics.jsonl and tensorboard/.
        start_step: the step the run starts from; rows after it are dropped.
        total_steps: the last step of the run.
        active: False for all hosts but the first.
        stream: where log and progress lines go; None is standard error.
    """

    def __init__(
        self, workdir: PathLike, *, start_step: int, total_steps: int, active: bool = True, stream: TextIO | None = None
    ):
        self._total_steps, self._active, self._stream = total_steps, active, stream or sys.stderr
        self._bar: Progress | None = None
        self._losses: list[tuple[int, float]] = []  # (step, eval/loss)
        if not active:
            return
        folder = self._folder = epath.Path(workdir)
        kept = [row for row in read_metrics(folder) if row['step'] <= start_step]
        self._losses = [(int(row['step']), row['eval/loss']) for row in kept if 'eval/loss' in row]
        write_whole(folder / METRICS, ''.join(json.dumps(row) + '\n' for row in kept))
        self._file = open_append(folder / METRICS)
        self._tensorboard = _TensorBoard(folder / 'tensorboard', start_step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds one row; the line is on disk when this returns, in a bucket after `flush`."""
        if not self._active:
            return
        line = json.dumps({'step': step} | {name: float(value) for name, value in metrics.items()}) + '\n'
        self._file.write(line.encode())
        self._tensorboard.write(step, metrics)

    def flush(self) -> None:
        """Returns once all rows are in the file: no checkpoint is without the rows before it."""
        if self._active:
            self._file.flush()
            self._tensorboard.flush()

    def write_evaluation(
        self, step: int, measured: Mapping[str, float], samples: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Adds a row, and logs it: the loss beside the best and the first one, then the loss of each task.

        Args:
            samples: answers to show in the report, which replace those of the evaluation before.
        """
        self.write(step, measured)
        if samples and self._active:
            rows = [{'step': step, **row} for row in samples]
            write_whole(self._folder / SAMPLES, ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows))
        loss = measured['eval/loss']
        self._losses.append((step, loss))
        (first_step, first), (best_step, best) = self._losses[0], min(self._losses, key=lambda one: (one[1], one[0]))
        compared = '' if step == first_step else f' (at step {first_step} {first:.4f}, best {best:.4f} at {best_step})'
        by_task = {name: value for name, value in measured.items() if name.count('/') > 1}
        others = [
            f'{name} {value:.4f}' for name, value in measured.items() if name != 'eval/loss' and name not in by_task
        ]
        self.log('  '.join([f'step {step}  eval/loss {loss:.4f}{compared}', *others]))
        losses = [
            f'{name.removeprefix("eval/loss/")} {value:.4f}'
            for name, value in by_task.items()
            if name.startswith('eval/loss/')
        ]
        if losses:
            self.log(f'  loss by task: {", ".join(losses)}')

    def write_data(self, report: Mapping[str, Any]) -> None:
        """Writes data.json, what the run was trained on since its last start: `TrainPipeline.report()`."""
        if self._active:
            write_json(self._folder / DATA, report)

    def progress(self, step: int, metrics: Mapping[str, float], seconds_left: float | None) -> None:
        """Shows step, loss, speed and peak memory: as a bar on a terminal, as plain lines elsewhere."""
        if not self._active:
            return
        words = [f'step {step}/{self._total_steps}', f'loss {metrics["loss"]:.4f}']
        if 'tokens_per_second' in metrics:
            words.append(f'{metrics["tokens_per_second"]:,.0f} tokens/s')
        if 'tflops_per_second_per_device' in metrics:
            words.append(f'{metrics["tflops_per_second_per_device"]:.3g} TFLOP/s')
        if 'model_flops_utilisation' in metrics:
            words.append(f'{100 * metrics["model_flops_utilisation"]:.1f} % MFU')
        if 'peak_memory_gib' in metrics:
            words.append(f'{metrics["peak_memory_gib"]:.1f} GiB')
        if seconds_left is not None:
            words.append(f'{_duration(seconds_left)} left')
        line = '  '.join(words)
        if not self._stream.isatty():
            self.log(line)
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            columns = BarColumn(bar_width=24), TextColumn('{task.description}')
            self._bar = Progress(*columns, console=Console(file=self._stream))
            self._bar.start()
            self._task = self._bar.add_task(line, total=self._total_steps)
        self._bar.update(self._task, completed=step, description=line)

    def log(self, text: str) -> None:
        """Prints a line, above the bar on a terminal."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        elif self._active:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Closes the files and removes the bar."""
        if not self._active:
            return
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        self._file.close()
        self._tensorboard.close()


class _TensorBoard:
    """Writes scalars as TensorBoard event files with the tensorboard package (TensorFlow is not needed)."""

    def __init__(self, folder: epath.Path, start_step: int):
        _use_no_tensorflow()
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        _wait_for_a_new_second(folder)
        self._bucket, here = None, os.fspath(folder)
        if '://' in here:  # the package writes to buckets with TensorFlow
            self._bucket, self._local = folder, tempfile.TemporaryDirectory()
            here = self._local.name
        self._writer = EventFileWriter(here)
        # Makes TensorBoard drop what an earlier, killed run wrote after this step.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._writer.add_event(self._event(session_log=start, step=start_step + 1, wall_time=time.time()))

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=name, simple_value=float(value)) for name, value in metrics.items()]
        self._writer.add_event(self._event(summary=self._summary(value=values), step=step, wall_time=time.time()))

    def flush(self) -> None:
        if self._bucket is not None:
            self._writer.flush()
            for file in os.scandir(self._local.name):
                epath.Path(file.path).copy(self._bucket / file.name, overwrite=True)

    def close(self) -> None:
        self.flush()
        self._writer.close()


def _use_no_tensorflow() -> None:
    """Lets the tensorboard package write files itself, unless TensorFlow is imported anyway.

    Otherwise it imports TensorFlow, where that is installed, to make a folder. The module of this name is the package's
    own switch (tensorboard/compat/__init__.py).
    """
    if 'tensorflow' not in sys.modules:
        name = 'tensorboard.compat.notf'
        sys.modules.setdefault(name, types.ModuleType(name))


def _wait_for_a_new_second(folder: epath.Path) -> None:
    """Returns when no event file of `folder` is named after the current second.

    TensorBoard reads event files in the order of their names: seconds, host, process. Two files of one second, after a
    quick restart, can be read in the wrong order, and the numbers of the killed run replace those of the new one.
    """
    while any(folder.glob(f'events.out.tfevents.{int(time.time())}.*')):
        time.sleep(0.05)


def _duration(seconds: float) -> str:
    """3725 -> '1:02:05', 65 -> '1:05'."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours}:{minutes:02}:{seconds:02}' if hours else f'{minutes}:{seconds:02}'
