"""Mixtures made in gin (Blend in config.py) as SeqIO mixtures: names and patterns become tasks, shares and caps their rates."""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from t5flan.data.config import Blend
from t5flan.data.mixtures.mixing import ByExamples
from t5flan.data.skipped import left_out
from t5flan.errors import UserError, nearest

_registered: set[str] = set()


def register(blends: Sequence[Blend]) -> None:
    """Registers blends; those that others hold first. A name registered here before is made anew.

    Raises:
        UserError: a name is taken, given twice, unknown, or a blend holds itself.
    """
    if not blends:
        return
    import seqio

    names = [blend.name for blend in blends]
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f'Blend.name={name!r} is given to {names.count(name)} blends. Set another Blend.name for each.'
            )
        if name in _registered:
            seqio.MixtureRegistry.remove(name)
            _registered.remove(name)
        if name in {*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()}:
            raise UserError(f'Blend.name={name!r} is the name of another task or mixture. Set another Blend.name.')
    for blend in _in_order({blend.name: blend for blend in blends}):
        try:
            seqio.MixtureRegistry.add(blend.name, _rates(blend))
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            why = str(error).strip().splitlines()[0]
            raise UserError(
                f'Blend {blend.name!r} cannot be made: {why} Set Blend.name, Blend.shares or Blend.by_examples.'
            ) from error
        _registered.add(blend.name)


def _in_order(blends: Mapping[str, Blend]) -> list[Blend]:
    """Each after those it holds."""
    done: dict[str, Blend] = {}

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            raise UserError(
                f'Blend {name!r} holds itself: {" -> ".join((*above, name))}. Mend Blend.shares or Blend.by_examples.'
            )
        if name in blends and name not in done:
            for part in (*blends[name].shares, *blends[name].by_examples):
                visit(part, (*above, name))
            done[name] = blends[name]

    for name in blends:
        visit(name, ())
    return list(done.values())


def _rates(blend: Blend) -> list[tuple[Any, Any]]:
    """What SeqIO's Mixture takes: (task or mixture, rate)."""
    setting = 'Blend.shares' if blend.shares else 'Blend.by_examples'
    parts = {name: _find(name, blend, setting) for name in blend.shares or blend.by_examples}
    kept = _without(blend, [task for found in parts.values() for one in found for task in _tasks(one)])
    if blend.shares:
        filtered = [(_kept(one, kept), share) for name, share in blend.shares.items() for one in parts[name]]
        made = [(one, share) for one, share in filtered if one is not None]
    elif blend.keep_rates:
        _check_caps(blend, parts)
        filtered = [(_kept(one, kept), name) for name in blend.by_examples for one in parts[name]]
        made = [
            (one, ByExamples(blend.caps.get(name, blend.cap), blend.temperature))
            for one, name in filtered
            if one is not None
        ]
    else:
        _check_caps(blend, parts)
        made = list(
            {
                task.name: (
                    task,
                    ByExamples(blend.caps.get(task.name, blend.caps.get(name, blend.cap)), blend.temperature),
                )
                for name, found in parts.items()
                for one in found
                for task in _tasks(one)
                if task.name in kept
            }.values()
        )
    if not made:
        raise UserError(
            f'Blend {blend.name!r} holds no task{" that Blend.without leaves" if blend.without else ""}. Set {setting}.'
        )
    return made


def _tasks(one: Any) -> list[Any]:
    return getattr(one, 'tasks', None) or [one]


def _is_pattern(name: str) -> bool:
    return any(sign in name for sign in '*?[')


def _find(name: str, blend: Blend, setting: str) -> list[Any]:
    """The task or mixture of a name, or the tasks of a pattern; nothing for a task that was left out."""
    import seqio

    if name in seqio.MixtureRegistry.names():
        return [seqio.MixtureRegistry.get(name)]
    if name in seqio.TaskRegistry.names():
        return [seqio.TaskRegistry.get(name)]
    if name in left_out():
        return []
    if _is_pattern(name) and not blend.shares:
        found = [seqio.TaskRegistry.get(task) for task in sorted(fnmatch.filter(seqio.TaskRegistry.names(), name))]
        if found:
            return found
    raise UserError(_unknown(name, blend, setting, [*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()]))


def _unknown(name: str, blend: Blend, setting: str, known: Iterable[str]) -> str:
    if _is_pattern(name):
        why = (
            'a pattern has no share of its own: make a blend of it'
            if blend.shares and setting == 'Blend.shares'
            else 'no task has such a name'
        )
        return f'Blend {blend.name!r}: {name!r}: {why}. Set {setting}.'
    near = nearest(name, known)
    return f'Blend {blend.name!r}: there is no task or mixture {name!r}{f"; the nearest is {near}" if near else ""}. Set {setting}.'


def _without(blend: Blend, tasks: Sequence[Any]) -> set[str]:
    """Names of the tasks that Blend.without leaves.

    Raises:
        UserError: a name there is none of the tasks: what was to be held out would be trained on.
    """
    names = {task.name for task in tasks}
    kept = set(names)
    for pattern in blend.without:
        gone = set(fnmatch.filter(names, pattern))
        if not gone and pattern not in left_out():
            raise UserError(_unknown(pattern, blend, 'Blend.without', names))
        kept -= gone
    return kept


def _kept(one: Any, kept: set[str]) -> Any | None:
    """A task or mixture with the kept tasks alone, at their rates; None where none is left."""
    import seqio

    if all(task.name in kept for task in _tasks(one)):
        return one
    if not hasattr(one, 'rate_per_task_name'):
        return None
    parts = [(_kept(one._task_map[name], kept), rate) for name, rate in one.rate_per_task_name.items()]
    parts = [(part, rate) for part, rate in parts if part is not None]
    return seqio.Mixture(one.name, parts) if parts else None


def _check_caps(blend: Blend, parts: Mapping[str, Sequence[Any]]) -> None:
    known = {*parts, *(task.name for found in parts.values() for one in found for task in _tasks(one))}
    for name in blend.caps:
        if name not in known and name not in left_out():
            raise UserError(_unknown(name, blend, 'Blend.caps', known))
