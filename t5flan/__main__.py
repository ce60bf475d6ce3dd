"""The command line: `t5flan COMMAND [--flag=VALUE]… [--gin_file=FILE]… [--gin.NAME=VALUE]…`, or `python -m t5flan …`.

Exit codes: 0 done, 1 failed with one clear line, 2 wrong usage.
"""

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from io import TextIOWrapper
from typing import NoReturn

from t5flan import processes, signals
from t5flan.commands import COMMANDS
from t5flan.commands.arguments import Exit, parse_arguments
from t5flan.commands.startup import hold_outputs, set_allocator, set_environment
from t5flan.errors import UsageError, UserError, disk_problem


def console() -> NoReturn:
    """Entry point of the installed `t5flan` script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors='replace')  # a terminal that cannot show a character must not stop the command
    set_allocator(sys.argv[1:], COMMANDS)
    sys.exit(main(sys.argv[1:]))


def main(argv: Sequence[str]) -> int:
    """Runs one command and returns its exit code."""
    with signals.watched(), warnings.catch_warnings():
        # Of Orbax, when a signal or an error stops it: what happened is told in one line.
        warnings.filterwarnings('ignore', 'coroutine .* was never awaited', RuntimeWarning)
        code = _main(argv)
        processes.leave(code)
        signals.reported()
        return code


def _main(argv: Sequence[str]) -> int:
    try:
        command, arguments = parse_arguments(argv, COMMANDS)
        set_environment()
        with hold_outputs(command, arguments):
            command.run(arguments)
        sys.stdout.flush()
        processes.finish()
        return 0
    except Exit as done:
        return done.code
    except UserError as error:
        _print_error(str(error))
        return 2 if isinstance(error, UsageError) else 1
    except BrokenPipeError:  # the reader of our output, such as `head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt as error:
        by = f' by {error}; run the same command again to go on' if error.args else ''
        print(f'{"" if by and not sys.stderr.isatty() else chr(10)}t5flan: stopped{by}', file=sys.stderr)
        return 1
    except Exception as error:
        if stopped_by := signals.received():  # a library has made an error of its own of it
            print(f't5flan: stopped by {stopped_by}; run the same command again to go on', file=sys.stderr)
            return 1
        problem = _problem_of_system(error)
        if problem is not None:
            _forget_output()
            _print_error(problem)
            return 1
        if not processes.are_several():  # a bug, so show the traceback
            raise
        why = ' '.join(str(error).split())[:300]
        processes.fail(f'{type(error).__name__}: {why}')  # the end of another process may be the cause
        traceback.print_exc()
        return 1


def _print_error(problem: str) -> None:
    """Prints an error as one line, unless the end of another process of the job is the cause."""
    line = ' '.join(problem.split())
    processes.fail(line)
    print('t5flan:', line, file=sys.stderr)


def _problem_of_system(error: Exception) -> str | None:
    """One line, if the operating system is the cause: a full disk also where a library found it."""
    if isinstance(error, OSError) and error.strerror is not None:
        return error.strerror + (f': {error.filename}' if error.filename is not None else '')
    if isinstance(error, MemoryError) or 'RESOURCE_EXHAUSTED' in str(error)[:200]:
        why = ' '.join(str(error).split())[:300]
        return f'there is not enough memory. Set smaller sizes, such as a smaller batch{": " if why else "."}{why}'
    return disk_problem(error)


def _forget_output() -> None:
    """Drops printed text that cannot be written, so that Python does not try again at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == '__main__':
    console()
