"""What a run mixes and when: the tasks of all its stages, opened and checked, and each stage's rates.

The stage is a function of the batch number, so a run resumes in the right one wherever it stopped.
"""

import bisect
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from t5flan.data.config import DataConfig
from t5flan.data.mixtures import definitions
from t5flan.data.mixtures.mixing import find_mixture, tasks_and_rates, tasks_of
from t5flan.data.mixtures.readers import Reader
from t5flan.data.preprocessing import features
from t5flan.data.skipped import skipped_tasks
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError


@dataclasses.dataclass(frozen=True)
class Plan:
    """The tasks of a run and their rates in each stage."""

    tasks: tuple[Any, ...]
    """The tasks of all stages, sorted by name."""
    start_steps: tuple[int, ...]
    """Batches before each stage; 0 for the first."""
    rates: np.ndarray
    """[stages, tasks] float64; each stage sums to 1."""
    skipped: Mapping[str, str]
    """Task -> why it is not among them (DataConfig.skip_broken)."""

    def stage_of(self, batch: int) -> int:
        """The stage of batch number `batch`, counted from 0."""
        return bisect.bisect_right(self.start_steps, batch) - 1

    def named_rates(self, stage: int = 0) -> dict[str, float]:
        """Task -> rate in a stage."""
        return {task.name: float(rate) for task, rate in zip(self.tasks, self.rates[stage], strict=True)}


def make_plan(config: DataConfig, vocabulary: Vocabulary, opened: bool = True) -> Plan:
    """Finds the run's tasks that have the split, opens and checks their sources, and computes their rates.

    Args:
        opened: False opens and checks no task: for the rates only.

    Raises:
        UserError: a name is unknown, or a task does not fit the settings or cannot be read (with skip_broken: all).
    """
    mixtures, mixed_in = _mixtures(config)
    broken: dict[str, str] = {}
    sources = _open_tasks([*mixtures, *mixed_in], config, vocabulary, broken) if opened else {}
    rates = [_rates(mixture, config, broken) for mixture in mixtures]
    always = list(zip([_rates(mixture, config, broken) for mixture in mixed_in], config.mixed_in.values(), strict=True))
    for number, stage in enumerate(config.stages, 1):
        rates[number] = _blend([(rates[number - 1], stage.previous), (rates[number], 1 - stage.previous)])
    rest = 1 - sum(config.mixed_in.values())
    rates = [_blend([(one, rest), *always]) for one in rates]
    tasks = sorted({task for one in rates for task in one}, key=lambda task: task.name)
    table = np.array([[one.get(task, 0.0) for task in tasks] for one in rates])
    if opened:
        tasks = [sources[task.name] for task in tasks]
        if config.cache:
            from t5flan.data.mixtures.cache import check_any_cached

            check_any_cached(tasks, config)
    return Plan(tuple(tasks), (0, *(stage.start_step for stage in config.stages)), table, skipped_tasks() | broken)


def tasks_of_split(config: DataConfig, vocabulary: Vocabulary) -> list[Any]:
    """The tasks of all stages that have the split, opened and checked, sorted by name.

    Raises:
        UserError: as `make_plan`, or no task has the split.
    """
    mixtures, mixed_in = _mixtures(config)
    broken: dict[str, str] = {}
    found = _open_tasks([*mixtures, *mixed_in], config, vocabulary, broken)
    if not found:
        tasks_and_rates(mixtures[0], config.split)  # raises an error that lists the splits
        raise _all_broken(config.mixture, broken)
    return list(found.values())


def _mixtures(config: DataConfig) -> tuple[list[Any], list[Any]]:
    """The tasks or mixtures of the stages, and those of `mixed_in`."""
    stages = [find_mixture(config.mixture), *(find_mixture(stage.mixture, 'Stage.mixture') for stage in config.stages)]
    return stages, [find_mixture(name, 'DataConfig.mixed_in') for name in config.mixed_in]


def _open_tasks(
    mixtures: Iterable[Any], config: DataConfig, vocabulary: Vocabulary, broken: dict[str, str]
) -> dict[str, Any]:
    """Opens and checks each task that has the split once; with skip_broken, the ones that fail go into `broken`.

    Returns:
        Name -> the task as it is read (from DataConfig.cache if it is there), sorted by name.
    """
    definitions.choose_vocabulary(vocabulary)
    tasks = {task.name: task for mixture in mixtures for task in tasks_of(mixture) if config.split in task.splits}
    opened = {}
    for name, task in tasks.items():
        try:
            opened[name] = _open(task, config, vocabulary)
        except Exception as error:  # whatever a source or a user's preprocessor raises
            if not config.skip_broken:
                raise
            broken[name] = ' '.join(str(error).split())
    return {name: opened[name] for name in sorted(opened)}


def _open(task: Any, config: DataConfig, vocabulary: Vocabulary) -> Any:
    """Opens a task's source and checks it against the settings, before anything else starts.

    With skip_broken it also makes the first example: the data may be missing, or a template may require a field that
    the task lacks.
    """
    from t5flan.data.records.sources import IndexedSource

    if config.cache:
        from t5flan.data.mixtures.cache import cached_task

        task = cached_task(task, config, vocabulary)
    features.check_features(config.format, config.feature_lengths, list(task.output_features), task.name)
    if not isinstance(task, definitions.Task):  # those have the run's vocabulary
        from t5flan.data.vocabulary.seqio_vocabulary import check_vocabulary

        check_vocabulary(task, vocabulary)
    if isinstance(task.source, IndexedSource):
        task.source.records(config.split)
    if config.skip_broken:
        Reader(task, config, vocabulary, epochs=1, ahead=1).peek()
    return task


def _rates(mixture: Any, config: DataConfig, broken: dict[str, str]) -> dict[Any, float]:
    if broken and all(task.name in broken for task in tasks_of(mixture)):
        raise _all_broken(mixture.name, broken)
    return dict(tasks_and_rates(mixture, config.split, broken if config.skip_broken else None))


def _all_broken(mixture: str, broken: Mapping[str, str]) -> UserError:
    name, why = next(iter(broken.items()))
    return UserError(f'{mixture}: none of its tasks can be used (skip_broken); {name}: {why}')


def _blend(parts: list[tuple[Mapping[Any, float], float]]) -> dict[Any, float]:
    """Task -> rate, from the rates of several mixtures with a share of each."""
    made: dict[Any, float] = {}
    for rates, share in parts:
        for task, rate in rates.items():
            if rate * share > 0:
                made[task] = made.get(task, 0.0) + rate * share
    return made
