"""What a run mixes, when: the tasks of all its stages, opened and checked, and each stage's shares.

A stage is a function of the batch's number, so that a run goes on in the right one wherever it stopped.
"""

import bisect
import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from t5flan.data.config import DataConfig
from t5flan.data.mixtures.mixing import find_mixture, tasks_and_rates
from t5flan.data.preprocessing import features
from t5flan.data.skipped import left_out
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError


@dataclasses.dataclass(frozen=True)
class Plan:
    """The tasks of a run and their shares in each stage."""

    tasks: tuple[Any, ...]
    """Of all stages, by name."""
    begins: tuple[int, ...]
    """Batches before each stage; the first is 0."""
    rates: np.ndarray
    """[stages, tasks] float64; a stage's sum to 1."""
    left_out: Mapping[str, str]
    """Task -> why it is not among them (DataConfig.skip_broken)."""

    def stage_of(self, batch: int) -> int:
        """The stage of batch number `batch`, counted from 0."""
        return bisect.bisect_right(self.begins, batch) - 1

    def named_rates(self, stage: int = 0) -> dict[str, float]:
        """Task -> share in a stage."""
        return {task.name: float(rate) for task, rate in zip(self.tasks, self.rates[stage], strict=True)}


def make_plan(config: DataConfig, vocabulary: Vocabulary, opened: bool = True) -> Plan:
    """The run's tasks that have the split, their sources opened and checked against the settings, with their shares.

    Args:
        opened: False opens and checks none of them: the shares alone, as far as they need no reading.

    Raises:
        UserError: a name is unknown, a task does not fit the settings or cannot be read (with skip_broken: no task can).
    """
    mixtures, mixed_in = _mixtures(config)
    broken: dict[str, str] = {}
    if opened:
        _open_tasks([*mixtures, *mixed_in], config, vocabulary, broken)
    shares = [_shares(mixture, config, broken) for mixture in mixtures]
    always = [
        (_shares(mixture, config, broken), share)
        for mixture, share in zip(mixed_in, config.mixed_in.values(), strict=True)
    ]
    for stage, (before, now) in enumerate(zip(shares, shares[1:]), 1):
        shares[stage] = now = _blended(
            [(before, config.stages[stage - 1].former), (now, 1 - config.stages[stage - 1].former)]
        )
    rest = 1 - sum(config.mixed_in.values())
    shares = [_blended([(one, rest), *always]) for one in shares]
    tasks = sorted({task for one in shares for task in one}, key=lambda task: task.name)
    rates = np.array([[one.get(task, 0.0) for task in tasks] for one in shares])
    if opened and config.cache:
        from t5flan.data.mixtures.cache import check_any_cached

        tasks = [_from_cache(task, config, vocabulary) for task in tasks]
        check_any_cached(tasks, config)
    return Plan(tuple(tasks), (0, *(stage.begins for stage in config.stages)), rates, left_out() | broken)


def tasks_of_split(config: DataConfig, vocabulary: Vocabulary) -> list[Any]:
    """The tasks of all stages that have the split, opened and checked, by name; their shares are not asked for.

    Raises:
        UserError: as make_plan; none has the split.
    """
    mixtures, mixed_in = _mixtures(config)
    broken: dict[str, str] = {}
    found = _open_tasks([*mixtures, *mixed_in], config, vocabulary, broken)
    if not found:
        tasks_and_rates(mixtures[0], config.split)  # says which splits there are
        name, why = next(iter(broken.items()))
        raise UserError(f'{config.mixture}: none of its tasks can be used (skip_broken); {name}: {why}')
    return found


def _mixtures(config: DataConfig) -> tuple[list[Any], list[Any]]:
    """The tasks or mixtures of the stages, and those of `mixed_in`."""
    stages = [find_mixture(config.mixture), *(find_mixture(stage.mixture, 'Stage.mixture') for stage in config.stages)]
    return stages, [find_mixture(name, 'DataConfig.mixed_in') for name in config.mixed_in]


def _open_tasks(
    mixtures: Iterable[Any], config: DataConfig, vocabulary: Vocabulary, broken: dict[str, str]
) -> list[Any]:
    """The tasks that have the split, opened and checked; those that are broken go into `broken`."""
    from t5flan.data.vocabulary.seqio_vocabulary import choose_vocabulary

    choose_vocabulary(vocabulary)
    tasks = {task.name: task for mixture in mixtures for task in _tasks_of(mixture) if config.split in task.splits}
    for task in tasks.values():
        _check(task, config, vocabulary, broken)
    return [_from_cache(tasks[name], config, vocabulary) for name in sorted(tasks) if name not in broken]


def _from_cache(task: Any, config: DataConfig, vocabulary: Vocabulary) -> Any:
    if not config.cache:
        return task
    from t5flan.data.mixtures.cache import cached_task

    return cached_task(task, config, vocabulary)


def _tasks_of(mixture: Any) -> list[Any]:
    return getattr(mixture, 'tasks', None) or [mixture]


def _shares(mixture: Any, config: DataConfig, broken: dict[str, str]) -> dict[Any, float]:
    if broken and all(task.name in broken for task in _tasks_of(mixture)):
        name, why = next(iter(broken.items()))
        raise UserError(f'{mixture.name}: none of its tasks can be used (skip_broken); {name}: {why}')
    return dict(tasks_and_rates(mixture, config.split, broken if config.skip_broken else None))


def _blended(parts: list[tuple[Mapping[Any, float], float]]) -> dict[Any, float]:
    """Shares by task of several mixtures, each with its own share of the whole."""
    made: dict[Any, float] = {}
    for shares, share in parts:
        for task, rate in shares.items():
            if rate * share > 0:
                made[task] = made.get(task, 0.0) + rate * share
    return made


def _check(task: Any, config: DataConfig, vocabulary: Vocabulary, broken: dict[str, str]) -> None:
    """Opens a task's source and checks it against the settings, before anything else starts.

    With skip_broken a task that cannot be used goes into `broken`; each makes its first example then, for the data may not
    be there, or a wording may want a field that the task has not.
    """
    from t5flan.data.mixtures.readers import open_reader
    from t5flan.data.records.sources import IndexedSource
    from t5flan.data.vocabulary.seqio_vocabulary import check_vocabulary

    try:
        task = _from_cache(task, config, vocabulary)
        features.check_features(config.format, config.feature_lengths, list(task.output_features), task.name)
        check_vocabulary(task, vocabulary)
        if isinstance(task.source, IndexedSource):
            task.source.records(config.split)
        if config.skip_broken:
            open_reader(task, config, vocabulary, 0, 1, epochs=1, ahead=1).peek()
    except Exception as error:  # whatever a source or a user's preprocessor raises
        if not config.skip_broken:
            raise
        broken[task.name] = ' '.join(str(error).split())
