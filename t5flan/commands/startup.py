"""What happens before a command runs: the allocator, variables of JAX and TensorFlow, and a quiet TensorFlow import."""

import argparse
import contextlib
import functools
import glob
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from t5flan.commands.arguments import Command
from t5flan.config.memory import keep_freed_memory
from t5flan.errors import disk_problem
from t5flan.files import cache_folder, check_folder, check_output, remove_partial

if TYPE_CHECKING:
    from t5flan.data.config import DataConfig

ACCELERATORS = ('/dev/accel*', '/dev/vfio/[0-9]*', '/dev/nvidia[0-9]*', '/dev/kfd')
"""Devices that JAX may compute on: TPUs, older and newer, and GPUs of NVIDIA and AMD."""


def set_allocator(argv: Sequence[str], commands: Mapping[str, Command]) -> None:
    """Keeps freed memory if the command runs a model on the CPU. Call it before threads start.

    Only the program that owns the process does this: its allocator keeps the setting until the process ends.
    """
    command = commands.get(argv[0]) if argv else None
    if command is not None and command.runs_model and computes_on_cpu():
        keep_freed_memory()


def computes_on_cpu() -> bool:
    """Whether JAX is going to compute on the CPU, without importing it: by JAX_PLATFORMS, or as no device is there."""
    platforms = os.environ.get('JAX_PLATFORMS') or os.environ.get('JAX_PLATFORM_NAME')
    if platforms:
        return platforms.split(',')[0].strip() == 'cpu'
    return not any(map(glob.glob, ACCELERATORS))


def set_environment() -> None:
    """Sets environment variables that JAX and TensorFlow read on import; existing values stay."""
    defaults = {
        'JAX_COMPILATION_CACHE_DIR': str(cache_folder() / 'jax'),  # the second start of a run compiles nothing
        'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
        'TF_CPP_MIN_LOG_LEVEL': '3',  # TensorFlow only reads data, so its start-up messages do not matter
        'TF_ENABLE_ONEDNN_OPTS': '0',
        'GRPC_VERBOSITY': 'ERROR',
        # TensorStore waits for a silent bucket for ever.
        'TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS': '10',
        'TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS': '30',
        'TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES': '1',
    }
    if 'STORAGE_EMULATOR_HOST' in os.environ:  # of Google's client; TensorStore has another name for it
        defaults['TENSORSTORE_GCS_HTTP_URL'] = os.environ['STORAGE_EMULATOR_HOST']
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    import absl.logging

    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax warns about things that are as intended
    _report_full_disks_once()


def _report_full_disks_once() -> None:
    """Drops the tracebacks that threads and logs of libraries print about a full disk, which is reported once."""
    import absl.logging

    def is_new(error: BaseException | None) -> bool:
        late = isinstance(error, RuntimeError) and str(error) == 'Event loop is closed'  # a write of a save that failed
        return error is None or not (late or disk_problem(error))

    def of_thread(given: Any, print_: Callable[[Any], Any]) -> None:
        if is_new(given.exc_value):
            print_(given)

    def of_callback(kind: Any, error: BaseException, where: Any) -> None:
        if is_new(error):
            sys.__excepthook__(kind, error, where)

    absl.logging.get_absl_logger().addFilter(
        lambda record: is_new(record.exc_info[1] if isinstance(record.exc_info, tuple) else None)
    )
    sys.excepthook = of_callback
    threading.excepthook = functools.partial(of_thread, print_=threading.__excepthook__)
    sys.unraisablehook = functools.partial(of_thread, print_=sys.__unraisablehook__)


@contextlib.contextmanager
def hold_outputs(command: Command, arguments: argparse.Namespace) -> Iterator[None]:
    """Checks the files and folders that a command writes before it does any work, and locks them while it runs.

    Raises:
        UserError: a path cannot be written, or another process writes it.
    """
    with contextlib.ExitStack() as held:
        for flag in command.flags:
            given = getattr(arguments, flag.name.lstrip('-'), None) if flag.writes else None
            if given is None:
                continue
            if flag.writes == 'folder':
                check_folder(given, flag.name)
            elif flag.writes != 'new folder':
                check_output(given, flag.name)
            if flag.writes == 'shared' or (flag.writes == 'new folder' and not _may_be_new(given)):
                continue
            from t5flan.files import locks

            if flag.writes == 'folder':
                held.enter_context(_removed_if_empty(given))
                held.enter_context(locks.hold(os.path.join(given, locks.NAME), given, flag.name))
                remove_partial(given)
            else:
                held.enter_context(hold_file(given, flag.name))
        yield


def _may_be_new(folder: str) -> bool:
    """Whether a folder can be written, locally or in a bucket; an existing one is compared with, or refused."""
    return folder.startswith('gs://') or ('://' not in folder and not os.path.lexists(folder))


@contextlib.contextmanager
def hold_file(path: str | None, flag: str) -> Iterator[None]:
    """Locks a file, or a new folder, that a command writes, if it has one, and removes what a killed one left of it.

    Raises:
        UserError: another process writes it.
    """
    if path is None:
        yield
        return
    from t5flan.files import locks

    with locks.hold_file(path, flag):
        yield


@contextlib.contextmanager
def _removed_if_empty(folder: str) -> Iterator[None]:
    """Removes a folder that the block creates if it fails before it writes anything."""
    is_new = '://' not in folder and not os.path.lexists(folder)
    try:
        yield
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):  # it has files
                os.rmdir(folder)
        raise


def import_tensorflow() -> None:
    """Imports TensorFlow without its start-up messages, and hides the GPUs from it.

    TensorFlow only reads data; GPU memory belongs to JAX. The messages come before TensorFlow reads its log level, so
    stderr is redirected while it is imported, and shown only if the import fails.
    """
    sys.stderr.flush()
    screen = os.dup(2)
    with tempfile.TemporaryFile() as messages:
        os.dup2(messages.fileno(), 2)
        try:
            import tensorflow as tf
            import tensorflow_text  # noqa: F401  (SeqIO needs it; it logs as much)

            tf.config.set_visible_devices([], 'GPU')
        except BaseException:
            messages.seek(0)
            os.write(screen, messages.read())
            raise
        finally:
            os.dup2(screen, 2)
            os.close(screen)


def register_tasks(data: 'DataConfig | None', others: Iterable[str] = ()) -> bool:
    """Registers the tasks of a command; imports TensorFlow only if one of them needs it.

    Args:
        data: None registers the packaged tasks.
        others: tasks and mixtures that the command uses besides those of `data`.

    Returns:
        Whether they are registered with SeqIO.

    Raises:
        UserError: as `tasks.register_all`.
    """
    from t5flan import tasks

    if tasks.register_natively(data, others):
        return False
    import_tensorflow()
    tasks.register_all(data)
    return True
