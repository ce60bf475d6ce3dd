"""Dataclass annotations at run time: whether a value fits one, and how an error message describes it.

Covers what settings use of `typing`: plain types, unions, Literal, tuple[T, ...], Sequence, Mapping, other dataclasses.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any


class Mismatch(Exception):
    """A value that does not fit an annotation."""


def fit(value: Any, annotation: Any) -> Any:
    """Returns `value` converted to `annotation`: an int to a float, a list to a tuple.

    Raises:
        Mismatch: `value` does not fit `annotation`.
    """
    members = options(annotation)
    if len(members) > 1:
        for member in sorted(members, key=lambda member: member is not type(value)):  # its own type first
            try:
                return fit(value, member)
            except Mismatch:
                continue
        raise Mismatch
    arguments = typing.get_args(annotation)
    if annotation is Any:
        return value
    if typing.get_origin(annotation) is typing.Literal:
        return _if(value in arguments, value)
    if annotation is float:
        return float(_if(isinstance(value, (int, float)) and not isinstance(value, bool), value))
    if annotation is int:
        return _if(isinstance(value, int) and not isinstance(value, bool), value)
    if is_sequence(annotation):
        _if(isinstance(value, (list, tuple)), value)
        kinds = arguments if _is_record(annotation) else (item_type(annotation),) * len(value)
        _if(len(kinds) == len(value), value)
        return tuple(fit(item, kind) for item, kind in zip(value, kinds, strict=True))
    if _is_mapping_type(annotation):
        _if(isinstance(value, Mapping), value)
        key_kind, item_kind = arguments or (Any, Any)
        return {fit(key, key_kind): fit(item, item_kind) for key, item in value.items()}
    return _if(isinstance(value, annotation), value)


def _if(fits: bool, value: Any) -> Any:
    if not fits:
        raise Mismatch
    return value


def is_sequence(annotation: Any) -> bool:
    """Whether the annotation is a list or tuple type."""
    return (typing.get_origin(annotation) or annotation) in (tuple, list, Sequence)


def _is_record(annotation: Any) -> bool:
    """Whether the annotation is a tuple of fixed length, such as tuple[str, int]."""
    return typing.get_origin(annotation) is tuple and Ellipsis not in typing.get_args(annotation)


def _is_mapping_type(annotation: Any) -> bool:
    return (typing.get_origin(annotation) or annotation) in (dict, Mapping)


def options(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; any other annotation is its only member."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def item_type(annotation: Any) -> Any:
    """The item type of a list or the value type of a dict; Any where the annotation does not say."""
    for option in options(annotation):
        arguments = typing.get_args(option)
        if is_sequence(option) and arguments and not _is_record(option):
            return arguments[0]
        if _is_mapping_type(option) and arguments:
            return arguments[1]
    return Any


def describe(annotation: Any) -> str:
    """An annotation in words: 'int or None', 'list of str', 'dict of str to int'.

    A base class of settings may say in `IN_WORDS` what is expected of it.
    """
    members = options(annotation)
    if len(members) > 1:
        return ' or '.join(describe(member) for member in members)
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return 'one of ' + ', '.join(map(repr, arguments))
    if is_sequence(annotation):
        if _is_record(annotation):
            return f'({", ".join(map(describe, arguments))})'
        return f'list of {describe(arguments[0])}' if arguments else 'list'
    if _is_mapping_type(annotation):
        return f'dict of {describe(arguments[0])} to {describe(arguments[1])}' if arguments else 'dict'
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return str(vars(annotation).get('IN_WORDS', f'@{annotation.__name__}()'))
    return {type(None): 'None', Any: 'anything', bool: 'True or False'}.get(annotation) or annotation.__name__


def placeholder(annotation: Any) -> str:
    """The placeholder for a value in the hint of an error, such as N in `--gin.STEPS=N`."""
    kind = options(annotation)[0]
    if _is_mapping_type(kind):
        return '{…}'
    return {str: 'NAME', int: 'N', float: 'X', bool: 'True'}.get(kind, 'VALUE')


def with_type(value: Any) -> str:
    """A value and its type for an error: `'many' (str)`."""
    text = repr(value)
    return f'{text if len(text) <= 80 else text[:77] + "…"} ({type(value).__name__})' if value is not None else 'None'


@functools.cache
def fields(cls: type) -> tuple[tuple[dataclasses.Field, Any], ...]:
    """The fields that `cls(...)` takes, each with its evaluated annotation."""
    hints = typing.get_type_hints(cls)
    return tuple((field, hints[field.name]) for field in dataclasses.fields(cls) if field.init)


@functools.cache
def limited(cls: type) -> Mapping[str, Any]:
    """Field -> annotation with its `Annotated`, of the fields that have one."""
    return {
        name: annotation
        for name, annotation in typing.get_type_hints(cls, include_extras=True).items()
        if any(_is_annotated(option) for option in options(annotation))
    }


def _is_annotated(annotation: Any) -> bool:
    return hasattr(annotation, '__metadata__') or any(map(_is_annotated, typing.get_args(annotation)))


def is_required(field: dataclasses.Field) -> bool:
    """Whether a field has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def default(field: dataclasses.Field) -> Any:
    """The default of a field that has one."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
