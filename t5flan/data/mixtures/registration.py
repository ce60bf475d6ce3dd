"""Registers the mixtures that gin defines (`Mixture` in mixture_config.py) with SeqIO."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from t5flan.data.mixture_config import Mixture
from t5flan.data.mixtures import definitions
from t5flan.data.mixtures.mixing import ByExamples, tasks_of
from t5flan.data.skipped import skipped_tasks
from t5flan.errors import UserError, nearest

_registered: set[str] = set()


def register(mixtures: Sequence[Mixture]) -> None:
    """Registers mixtures, after the mixtures they contain; a name registered here before is replaced.

    Raises:
        UserError: a name is taken, given twice or unknown, or a mixture contains itself.
    """
    if not mixtures:
        return
    names = [mixture.name for mixture in mixtures]
    for name in names:
        if names.count(name) > 1:
            problem = f'{names.count(name)} mixtures have Mixture.name={name!r}'
            raise UserError(f'{problem}. Set another Mixture.name for each.')
        if name in _registered:
            definitions.remove_mixture(name)
            _registered.remove(name)
        if name in definitions.task_names() | definitions.mixture_names():
            raise UserError(f'Mixture.name={name!r} is the name of another task or mixture. Set another Mixture.name.')
    for mixture in _parts_first({mixture.name: mixture for mixture in mixtures}):
        try:
            definitions.add_mixture(mixture.name, _tasks_and_rates(mixture))
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            why = str(error).strip().splitlines()[0]
            fix = 'Set Mixture.name, Mixture.rates or Mixture.by_examples.'
            raise UserError(f'Mixture {mixture.name!r} cannot be registered: {why} {fix}') from error
        _registered.add(mixture.name)


def names_inside(names: Iterable[str], mixtures: Sequence[Mixture]) -> set[str]:
    """The names, and those of the mixtures and tasks that they are built on at any depth.

    Args:
        names: tasks and mixtures.
        mixtures: gin's definitions; of other mixtures, the registered ones tell the parts.
    """
    defined, found = {mixture.name: mixture for mixture in mixtures}, set[str]()
    left: list[Any] = list(names)
    while left:
        name = left.pop()
        if name in found:
            continue
        found.add(name)
        if name in defined:
            left += [*defined[name].rates, *defined[name].by_examples]
        elif name in definitions.mixture_names():
            left += definitions.find(name).rate_per_task_name
    return found


def _parts_first(mixtures: Mapping[str, Mixture]) -> list[Mixture]:
    """The mixtures, each after those it contains."""
    done: dict[str, Mixture] = {}

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            path = ' -> '.join((*above, name))
            raise UserError(f'Mixture {name!r} contains itself: {path}. Set Mixture.rates or Mixture.by_examples.')
        if name in mixtures and name not in done:
            for part in (*mixtures[name].rates, *mixtures[name].by_examples):
                visit(part, (*above, name))
            done[name] = mixtures[name]

    for name in mixtures:
        visit(name, ())
    return list(done.values())


def _tasks_and_rates(mixture: Mixture) -> list[tuple[Any, Any]]:
    """The (task or mixture, rate) pairs of a mixture."""
    setting = 'Mixture.rates' if mixture.rates else 'Mixture.by_examples'
    parts = {name: _find(name, mixture, setting) for name in mixture.rates or mixture.by_examples}
    kept = _not_excluded(mixture, [task for found in parts.values() for one in found for task in tasks_of(one)])
    _check_caps(mixture, parts)
    pairs: list[tuple[Any, Any]] = []
    for name, found in parts.items():
        cap = mixture.caps.get(name, mixture.cap)
        if mixture.rates or mixture.keep_rates:
            rate = mixture.rates[name] if mixture.rates else ByExamples(cap, mixture.temperature)
            pairs += [(part, rate) for one in found if (part := _only(one, kept)) is not None]
        else:
            tasks = [task for one in found for task in tasks_of(one) if task.name in kept]
            pairs += [(task, ByExamples(mixture.caps.get(task.name, cap), mixture.temperature)) for task in tasks]
    if not pairs:
        found_tasks = 'only tasks that Mixture.exclude names' if mixture.exclude else 'no task'
        raise UserError(f'Mixture {mixture.name!r} contains {found_tasks}. Set {setting}.')
    if mixture.rates or mixture.keep_rates:
        return pairs
    return list({task.name: (task, rate) for task, rate in pairs}.values())  # several parts may share a task


def _is_pattern(name: str) -> bool:
    return any(sign in name for sign in '*?[')


def _find(name: str, mixture: Mixture, setting: str) -> list[Any]:
    """The task or mixture of a name, or the tasks of a pattern; nothing for a skipped task."""
    if (one := definitions.find(name)) is not None:
        return [one]
    if name in skipped_tasks():
        return []
    if _is_pattern(name) and not mixture.rates:
        found = [definitions.find(task) for task in sorted(fnmatch.filter(definitions.task_names(), name))]
        if found:
            return found
    raise _unknown(name, mixture, setting, [*definitions.task_names(), *definitions.mixture_names()])


def _unknown(name: str, mixture: Mixture, setting: str, known: Iterable[str]) -> UserError:
    if not _is_pattern(name):
        near = nearest(name, known)
        why = f'there is no task or mixture {name!r}{f"; the nearest is {near}" if near else ""}'
    elif setting == 'Mixture.rates':
        why = f'{name!r} is a pattern, which takes no rate; make a mixture of it with Mixture.by_examples'
    else:
        why = f'{name!r} matches no task'
    return UserError(f'Mixture {mixture.name!r}: {why}. Set {setting}.')


def _not_excluded(mixture: Mixture, tasks: Sequence[Any]) -> set[str]:
    """Names of the tasks that are not excluded.

    Raises:
        UserError: an excluded name matches no task: the run would train on what was to be held out.
    """
    names = {task.name for task in tasks}
    kept = set(names)
    for pattern in mixture.exclude:
        excluded = set(fnmatch.filter(names, pattern))
        if not excluded and pattern not in skipped_tasks():
            raise _unknown(pattern, mixture, 'Mixture.exclude', names)
        kept -= excluded
    return kept


def _only(one: Any, kept: set[str]) -> Any | None:
    """A task or mixture with the kept tasks only, at their rates; None if no task is left."""
    if all(task.name in kept for task in tasks_of(one)):
        return one
    if not hasattr(one, 'rate_per_task_name'):
        return None
    parts = [(_only(one._task_map[name], kept), rate) for name, rate in one.rate_per_task_name.items()]
    parts = [(part, rate) for part, rate in parts if part is not None]
    return definitions.make_mixture(one.name, parts) if parts else None


def _check_caps(mixture: Mixture, parts: Mapping[str, Sequence[Any]]) -> None:
    known = {*parts, *(task.name for found in parts.values() for one in found for task in tasks_of(one))}
    for name in mixture.caps:
        if name not in known and name not in skipped_tasks():
            raise _unknown(name, mixture, 'Mixture.caps', known)
