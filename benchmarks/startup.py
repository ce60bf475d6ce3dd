"""Seconds until the first step of a tiny model, with nothing compiled before and with everything compiled before.

    python -m benchmarks.startup                     medians of three starts each
    python -m benchmarks.startup --importtime        the packages whose import takes the most time

A start is `t5flan train --gin_file=examples/tiny_stdlib_pretrain` in a process of its own, measured from its beginning
to the line about its first step: seconds of the clock, and of the processor, in all threads. The first start of each
pair has an empty compilation cache.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping

COMMAND = [sys.executable, '-m', 't5flan', 'train', '--gin_file=examples/tiny_stdlib_pretrain', '--gin.STEPS=1']
COMMAND += ['--gin.EvaluationConfig.every=0']


def start(environment: Mapping[str, str]) -> tuple[float, float]:
    """Seconds of the clock and of the processor until the first step.

    Raises:
        SystemExit: there was none.
    """
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as workdir:
        command = [*COMMAND, f'--workdir={workdir}/run']
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}) as process:
            assert process.stderr is not None
            lines = []
            for line in process.stderr:
                lines.append(line)
                if line.startswith('first step '):
                    found = time.perf_counter() - begun, processor_seconds(process.pid)
                    process.communicate()
                    return found
    raise SystemExit(f'the run took no step: {"".join(lines)}')


def processor_seconds(pid: int) -> float:
    """Seconds of the processor that a process has used, in all its threads."""
    with open(f'/proc/{pid}/stat') as file:
        user, system = file.read().rpartition(')')[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf('SC_CLK_TCK')


def slowest_imports(count: int = 25) -> list[str]:
    """Lines of `python -X importtime` for what training imports: those with the largest totals."""
    code = (
        'from t5flan.commands.startup import *; set_environment(); import_tensorflow(); import t5flan.training.trainer'
    )
    command = [sys.executable, '-X', 'importtime', '-c', code]
    lines = re.findall(r'import time:.*\d.*', subprocess.run(command, capture_output=True, text=True).stderr)
    return sorted(lines, key=lambda line: -int(line.split('|')[1]))[:count]


def main() -> None:
    """Prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--starts', type=int, default=3, help='of each kind (default: %(default)s)')
    parser.add_argument('--importtime', action='store_true', help='print the slowest imports instead')
    args = parser.parse_args()
    if args.importtime:
        print('\n'.join(slowest_imports()))
        return
    times: dict[str, list[tuple[float, float]]] = {'cold': [], 'warm': []}
    for _ in range(args.starts):
        with tempfile.TemporaryDirectory() as cache:
            environment = {'JAX_COMPILATION_CACHE_DIR': cache}
            for found in times.values():
                found.append(start(environment))
    for kind, found in times.items():
        wall, processor = (statistics.median(values) for values in zip(*found, strict=True))
        print(f'{kind}: first step after {wall:.1f} s, {processor:.1f} s of the processor')


if __name__ == '__main__':
    main()
