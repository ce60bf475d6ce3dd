"""The command line: `t5flan COMMAND [--flag=VALUE]… [--gin_file=FILE]… [--gin.NAME=VALUE]…`, or `python -m t5flan …`.

Exit codes: 0 done, 1 failed with one clear line, 2 wrong usage.
"""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from t5flan.commands import COMMANDS
from t5flan.commands.arguments import Answered, parse_arguments
from t5flan.commands.startup import prepare_surroundings
from t5flan.errors import UsageError, UserError


def console() -> NoReturn:
    """What the installed `t5flan` runs."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors='replace')  # a terminal that cannot show a letter is no reason to fail
    sys.exit(main(sys.argv[1:]))


def main(argv: Sequence[str]) -> int:
    """Runs one command and returns the exit code."""
    try:
        command, arguments = parse_arguments(argv, COMMANDS)
        prepare_surroundings()
        command.run(arguments)
        sys.stdout.flush()
        return 0
    except Answered as answered:
        return answered.code
    except UserError as error:
        print(f't5flan: {_one_line(error)}', file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except BrokenPipeError:  # the reader of our output (head, less) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.strerror is None:  # not the operating system's own word: a fault of ours
            raise
        where = f': {error.filename}' if error.filename is not None else ''
        print(f't5flan: {error.strerror}{where}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print('\nt5flan: stopped', file=sys.stderr)
        return 1


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())


if __name__ == '__main__':
    console()
