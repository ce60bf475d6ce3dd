"""The public benchmarks that the Flan papers evaluate on, read from folders with the files of their releases."""

from collections.abc import Callable

from t5flan.errors import UserError, did_you_mean
from t5flan.scoring.benchmark import Benchmark
from t5flan.tasks.benchmarks.bbh import BigBenchHard
from t5flan.tasks.benchmarks.code import BasicProgramming, HumanEval
from t5flan.tasks.benchmarks.grade_school_math import GradeSchoolMath, MultilingualMath
from t5flan.tasks.benchmarks.held_out_instructions import HeldOutInstructions
from t5flan.tasks.benchmarks.mmlu import MultitaskUnderstanding
from t5flan.tasks.benchmarks.translation import Translation
from t5flan.tasks.benchmarks.tydiqa import TypologicallyDiverse

BENCHMARKS: dict[str, Callable[[], Benchmark]] = {
    'bbh_direct': lambda: BigBenchHard('direct'),
    'bbh_cot': lambda: BigBenchHard('cot'),
    'mmlu_direct': lambda: MultitaskUnderstanding('direct'),
    'mmlu_cot': lambda: MultitaskUnderstanding('cot'),
    'mmlu_likelihood': lambda: MultitaskUnderstanding('likelihood'),
    'tydiqa': TypologicallyDiverse,
    'mgsm': MultilingualMath,
    'gsm8k': GradeSchoolMath,
    'human_eval': HumanEval,
    'mbpp': BasicProgramming,
    'translation': Translation,
    'natural_instructions': HeldOutInstructions,
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
