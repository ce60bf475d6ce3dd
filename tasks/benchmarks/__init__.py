"""The public benchmarks that the Flan papers evaluate on, read from folders with the files of their releases."""

from collections.abc import Callable

from t5flan.errors import UserError, did_you_mean
from t5flan.scoring.benchmark import Benchmark
from t5flan.tasks.benchmarks.bbh import BigBenchHard

BENCHMARKS: dict[str, Callable[[], Benchmark]] = {
    'bbh_direct': lambda: BigBenchHard('direct'),
    'bbh_cot': lambda: BigBenchHard('cot'),
}
"""Name -> makes the benchmark."""


def find(name: str) -> Benchmark:
    """Makes the benchmark of a name.

    Raises:
        UserError: there is no such benchmark.
    """
    if name not in BENCHMARKS:
        near = did_you_mean(name, BENCHMARKS) or f'; there are {", ".join(BENCHMARKS)}'
        raise UserError(f'no benchmark is called {name!r}{near}. Set --benchmark.')
    return BENCHMARKS[name]()
