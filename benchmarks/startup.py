"""Seconds until the first step of a tiny model, with nothing compiled before and with everything compiled before.

    python -m benchmarks.startup                     medians of three starts each, and of `import t5flan`
    python -m benchmarks.startup --seqio             the same for a run that needs SeqIO, and so imports TensorFlow
    python -m benchmarks.startup --importtime        the packages whose import takes the most time

A start is `t5flan train --gin_file=examples/tiny_stdlib_pretrain` in a process of its own, measured from its beginning
to the line about its first step: seconds of the clock, and of the processor, in all threads. The first start of each
pair has an empty compilation cache.
"""

import argparse
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

COMMAND = [sys.executable, '-m', 't5flan', 'train', '--gin_file=examples/tiny_stdlib_pretrain', '--gin.STEPS=1']
COMMAND += ['--gin.EvaluationConfig.every=0']
SEQIO = "--gin.DataConfig.modules=['json']"
"""A module may register SeqIO tasks, so a run with one imports SeqIO."""


def start(environment: Mapping[str, str], flags: Sequence[str] = ()) -> tuple[float, float]:
    """Seconds of the clock and of the processor until the first step.

    Raises:
        SystemExit: there was none.
    """
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as workdir:
        command = [*COMMAND, *flags, f'--workdir={workdir}/run']
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


def import_seconds() -> tuple[float, float]:
    """Seconds of the clock and of the processor of a process that imports t5flan."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, '-c', 'import t5flan'], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - begun, used


def slowest_imports(with_seqio: bool, count: int = 25) -> list[str]:
    """Lines of `python -X importtime` for what training imports: those with the largest totals."""
    code = 'from t5flan.commands import startup; startup.set_environment(); startup.register_tasks(None); '
    code += 'startup.import_tensorflow(); import seqio; ' if with_seqio else ''
    code += 'import t5flan.training.trainer'
    command = [sys.executable, '-X', 'importtime', '-c', code]
    lines = re.findall(r'import time:.*\d.*', subprocess.run(command, capture_output=True, text=True).stderr)
    return sorted(lines, key=lambda line: -int(line.split('|')[1]))[:count]


def main() -> None:
    """Prints the medians."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--starts', type=int, default=3, help='of each kind (default: %(default)s)')
    parser.add_argument('--seqio', action='store_true', help='measure a run that needs SeqIO')
    parser.add_argument('--importtime', action='store_true', help='print the slowest imports instead')
    args = parser.parse_args()
    if args.importtime:
        print('\n'.join(slowest_imports(args.seqio)))
        return
    times: dict[str, list[tuple[float, float]]] = {'cold': [], 'warm': []}
    for _ in range(args.starts):
        with tempfile.TemporaryDirectory() as cache:
            for found in times.values():
                found.append(start({'JAX_COMPILATION_CACHE_DIR': cache}, [SEQIO] if args.seqio else []))
    for kind, found in times.items():
        print(f'{kind}: first step after {_median(found)}')
    print(f'import t5flan: {_median([import_seconds() for _ in range(args.starts)])}')


def _median(found: Sequence[tuple[float, float]]) -> str:
    wall, processor = (statistics.median(values) for values in zip(*found, strict=True))
    return f'{wall:.2f} s, {processor:.2f} s of the processor'


if __name__ == '__main__':
    main()
