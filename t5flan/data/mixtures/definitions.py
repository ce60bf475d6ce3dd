"""Tasks and mixtures by name: SeqIO's registries, or plain definitions until something imports SeqIO.

SeqIO imports TensorFlow, which takes longer than anything else before a run's first step. A run whose records are read
by number (files, conversations, the documentation of this Python, the practice tasks) needs neither: until SeqIO is
imported, its tasks are kept here, as `Task` and `Mixture`, which have what the pipeline and the evaluation read of
SeqIO's. `publish()` imports SeqIO and registers them with it; after that, everything here is SeqIO's own.
"""

import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Iterable, KeysView, Mapping, Sequence
from typing import Any

from t5flan.data.records.sources import IndexedSource
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError

FEATURES = ('inputs', 'targets')


class CachePlace:
    """Stands for seqio.CacheDatasetPlaceholder among preprocessors: `t5flan cache` stores what is before it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A task of records by number, with the attributes of a seqio.Task that are used here."""

    name: str
    source: IndexedSource
    preprocessors: tuple[Any, ...]
    features: tuple[str, ...] = FEATURES
    postprocessor: Callable[..., Any] | None = None
    metric_fns: tuple[Callable[..., Any], ...] = ()

    @property
    def output_features(self) -> Mapping[str, None]:
        """The features by name; the run's vocabulary encodes all of them."""
        return dict.fromkeys(self.features)

    @property
    def splits(self) -> Sequence[str]:
        """The splits of its source."""
        return self.source.splits

    def num_input_examples(self, split: str) -> int | None:
        """The number of records of a split; None if it is not known."""
        return self.source.num_input_examples(split)

    def postprocess_fn(self, text: Any, **context: Any) -> Any:
        """A model's output or a target in the form that the metrics compare."""
        return self.postprocessor(text, **context) if self.postprocessor else text

    @property
    def predict_metric_fns(self) -> list[Callable[..., Any]]:
        """The metrics of (targets, predictions)."""
        return self._metrics_of('predictions')

    @property
    def predict_with_aux_metric_fns(self) -> list[Callable[..., Any]]:
        """The metrics of (targets, predictions, aux_values)."""
        return self._metrics_of('predictions', 'aux_values')

    @property
    def score_metric_fns(self) -> list[Callable[..., Any]]:
        """The metrics of (targets, scores)."""
        return self._metrics_of('scores')

    def _metrics_of(self, *arguments: str) -> list[Callable[..., Any]]:
        return [metric for metric in self.metric_fns if _required_arguments(metric) == ('targets', *arguments)]


def _required_arguments(function: Callable[..., Any]) -> tuple[str, ...]:
    parameters = inspect.signature(function).parameters.values()
    return tuple(p.name for p in parameters if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD)


class Mixture:
    """Tasks and mixtures with rates, with the attributes of a seqio.Mixture that are used here.

    Args:
        parts: (task, mixture or the name of one, rate) pairs; a rate is a number or a function of the part.

    Raises:
        ValueError: it has no task, a name is unknown, or the features of its tasks differ.
    """

    def __init__(self, name: str, parts: Sequence[tuple[Any, Any]]) -> None:
        self.name = name
        found = [(_find(part) if isinstance(part, str) else part, rate) for part, rate in parts]
        self._task_map: dict[str, Any] = {part.name: part for part, _ in found}
        self.rate_per_task_name: dict[str, Any] = {part.name: rate for part, rate in found}
        if not self.tasks:
            raise ValueError(f'Mixture, {name}, does not contain any Tasks.')
        if len({task.features for task in self.tasks}) > 1:
            raise ValueError(f"Mixture, '{name}' contains Tasks with different output features.")

    @property
    def tasks(self) -> list[Task]:
        """The tasks of all parts, sorted by name."""
        found = {task.name: task for part in self._task_map.values() for task in getattr(part, 'tasks', [part])}
        return [found[name] for name in sorted(found)]


_tasks: dict[str, Task] = {}
_mixtures: dict[str, Mixture] = {}
_reserved: dict[str, None] = {}
_vocabulary: list[Vocabulary] = []


def is_published() -> bool:
    """Whether SeqIO is there, so that tasks are registered with it."""
    return 'seqio' in sys.modules


def publish() -> Any:
    """Imports SeqIO, registers with it what is defined here, and returns it.

    Raises:
        UserError: SeqIO has another task or mixture of that name.
    """
    import seqio

    if not (_tasks or _mixtures or _vocabulary):
        return seqio
    from t5flan.data.vocabulary.seqio_vocabulary import choose_vocabulary

    tasks, mixtures, chosen = list(_tasks.values()), list(_mixtures.values()), list(_vocabulary)
    for pending in (_tasks, _mixtures, _reserved, _vocabulary):
        pending.clear()
    for vocabulary in chosen:
        choose_vocabulary(vocabulary)
    try:
        for task in tasks:
            _add_to_seqio(task)
        for mixture in mixtures:
            seqio.MixtureRegistry.add(mixture.name, _seqio_parts(mixture))
    except ValueError as error:
        raise UserError(f'a task or mixture cannot be registered with SeqIO: {error}. Rename it.') from error
    return seqio


def _add_to_seqio(task: Task) -> None:
    import seqio

    from t5flan.data.vocabulary.seqio_vocabulary import text_features

    functions = [seqio.CacheDatasetPlaceholder() if isinstance(one, CachePlace) else one for one in task.preprocessors]
    seqio.TaskRegistry.add(
        task.name,
        source=task.source,
        preprocessors=functions,
        output_features=text_features(inputs='inputs' in task.features),
        postprocess_fn=task.postprocessor,
        metric_fns=list(task.metric_fns),
    )


def _seqio_parts(mixture: Mixture) -> list[tuple[Any, Any]]:
    """The parts as SeqIO's own objects; the tasks and the mixtures before this one are registered."""
    import seqio

    def own(part: Any) -> Any:
        if isinstance(part, Task):
            return seqio.TaskRegistry.get(part.name)
        if isinstance(part, Mixture):  # it may be a part of the registered one of its name
            return seqio.Mixture(part.name, _seqio_parts(part))
        return part

    return [(own(part), mixture.rate_per_task_name[name]) for name, part in mixture._task_map.items()]


def choose_vocabulary(vocabulary: Vocabulary) -> None:
    """Sets the vocabulary of all tasks that were not registered with one of their own."""
    if not is_published():
        _vocabulary[:] = [vocabulary]
        return
    publish()
    from t5flan.data.vocabulary import seqio_vocabulary

    seqio_vocabulary.choose_vocabulary(vocabulary)


def task_names() -> KeysView[str]:
    """The names of all tasks, and those that are reserved."""
    return publish().TaskRegistry.names() if is_published() else (_tasks | _reserved).keys()


def mixture_names() -> KeysView[str]:
    """The names of all mixtures."""
    return publish().MixtureRegistry.names() if is_published() else _mixtures.keys()


def find(name: str) -> Any:
    """The mixture or task of a name; None if there is none."""
    if not is_published():
        return _mixtures.get(name) or _tasks.get(name)
    seqio = publish()
    for registry in (seqio.MixtureRegistry, seqio.TaskRegistry):
        if name in registry.names():
            return registry.get(name)
    return None


def _find(name: str) -> Any:
    """As `find`, of what is defined here; raises a ValueError as SeqIO's."""
    found = _tasks.get(name) or _mixtures.get(name)
    if found is None:
        raise ValueError(f'Provider name not registered: {name}')
    return found


def reserve(names: Iterable[str]) -> None:
    """Keeps names for tasks that are defined once SeqIO is imported: no other task may have them."""
    _reserved.update(dict.fromkeys(names))


def add_task(
    name: str,
    source: Any,
    preprocessors: Sequence[Any],
    features: tuple[str, ...] = FEATURES,
    postprocess_fn: Callable[..., Any] | None = None,
    metric_fns: Sequence[Callable[..., Any]] = (),
) -> None:
    """Registers a task whose features the run's vocabulary encodes.

    Args:
        source: an IndexedSource; any seqio.DataSource once SeqIO is imported.
        preprocessors: single-example preprocessors, perhaps with a `CachePlace` among them; any that SeqIO takes once
            it is imported.

    Raises:
        ValueError: the name is taken or not valid, as from seqio.TaskRegistry.add.
    """
    task = Task(name, source, tuple(preprocessors), features, postprocess_fn, tuple(metric_fns))
    if is_published():
        publish()
        _add_to_seqio(task)
        return
    if name in _tasks or name in _reserved:
        raise ValueError(f'Attempting to register duplicate provider: {name}')
    if not re.fullmatch(r'[\w.:#]+', name):
        raise ValueError(f"Task name '{name}' contains invalid characters.")
    _tasks[name] = task


def make_mixture(name: str, parts: Sequence[tuple[Any, Any]]) -> Any:
    """A mixture that is not registered; `parts` as in `Mixture`."""
    return publish().Mixture(name, parts) if is_published() else Mixture(name, parts)


def add_mixture(name: str, parts: Sequence[tuple[Any, Any]]) -> None:
    """Registers a mixture; raises a ValueError as `Mixture`, or if the name is taken."""
    if is_published():
        publish().MixtureRegistry.add(name, parts)
        return
    if name in _mixtures:
        raise ValueError(f'Attempting to register duplicate provider: {name}')
    _mixtures[name] = Mixture(name, parts)


def remove_task(name: str) -> None:
    """Removes a task, if it is there."""
    publish().TaskRegistry.remove(name) if is_published() else _tasks.pop(name, None)


def remove_mixture(name: str) -> None:
    """Removes a mixture, if it is there."""
    publish().MixtureRegistry.remove(name) if is_published() else _mixtures.pop(name, None)
