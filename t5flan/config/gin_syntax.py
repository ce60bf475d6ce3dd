"""The syntax of gin files: text to statements and back, with our own marks for `%MACRO` and `@Reference()`.

gin-config's parser does the parsing; settings.py gives names their meaning. No other file imports gin.
"""

import dataclasses
import io
import re
import tokenize
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from gin.config_parser import BindingStatement as Binding
from gin.config_parser import ConfigParser, ImportStatement, IncludeStatement, ParserDelegate

from t5flan.config import annotations
from t5flan.errors import UsageError

Include, Import = IncludeStatement, ImportStatement


@dataclasses.dataclass(frozen=True)
class Macro:
    """`%NAME` in a value."""

    name: str


@dataclasses.dataclass(frozen=True)
class Reference:
    """`@scope/FileTask()` in a value."""

    scope: str
    name: str
    called: bool


@dataclasses.dataclass(frozen=True)
class Bare:
    """A value from the command line, unparsed: the type of the field decides how to read it."""

    text: str


class _Delegate(ParserDelegate):
    """Turns gin's `@reference` and `%macro` into our marks."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Reference:
        scope, _, name = scoped_configurable_name.rpartition('/')
        return Reference(scope, name, evaluate)

    def macro(self, macro_name: str) -> Macro:
        return Macro(macro_name)


def statements(text: str, path: str) -> Iterator[Any]:
    """Parses a gin file into `Binding`, `Include` and `Import` statements, with our marks in their values.

    A syntax error raises a `UsageError`: one line with `path` and line number.
    """
    source = io.StringIO(text)
    source.name = path  # gin's parser copies it into the locations
    try:
        yield from ConfigParser(source, _Delegate())
    except (SyntaxError, tokenize.TokenError) as error:
        message, line_number, line = _explain(error)
        last = len(text.splitlines())
        where = f' in `{line}`' if line else ''
        raise UsageError(f'{path}:{min(line_number, last)}: not gin: {message}{where}') from None
    except (RecursionError, MemoryError, TypeError, ValueError) as error:  # brackets in brackets, a list as a key
        raise UsageError(f'{path}: not gin: {type(error).__name__}: {str(error)[:200]}') from None


def _explain(error: SyntaxError | tokenize.TokenError) -> tuple[str, int, str]:
    """The message, line number and line of a syntax error."""
    if isinstance(error, tokenize.TokenError):
        return str(error.args[0])[:200], error.args[1][0], ''
    message = ' '.join(str(error.msg).split())
    if word := re.search(r"Failed to parse token '(.*)'", message):
        expected = "a number, 'quoted string', list, dict, True, False, None, %MACRO or @reference()"
        message = f'{word.group(1)} is not a value, expected {expected}'
    return message.rstrip('.')[:200], error.lineno or 1, (error.text or '').strip()[:200]


def from_bare(text: str, annotation: Any) -> Any:
    """Reads a value from the command line: as `annotation` requires, else as a gin literal, else as plain text."""
    literal = parse_value(text)
    options = annotations.options(annotation)
    if str not in options:
        return text if literal is None else literal[0]
    if literal is not None:
        quoted = isinstance(literal[0], str) and text[-1:] in '\'"'
        nothing = literal[0] is None and type(None) in options
        listed = isinstance(literal[0], (list, tuple)) and any(map(annotations.is_sequence, options))
        if quoted or nothing or listed or isinstance(literal[0], (Macro, Reference)):
            return literal[0]
    return text


def parse_value(text: str) -> tuple[Any] | None:
    """Returns (value,) if all of `text` is one gin value, else None."""
    if not text.strip() or '\n' in text:
        return None
    source = f'x = {text}\n'
    try:
        found = list(ConfigParser(source, _Delegate()))
        tokens = tokenize.generate_tokens(io.StringIO(source).readline)
        has_comment = any(token.type == tokenize.COMMENT for token in tokens)
    except (SyntaxError, tokenize.TokenError, RecursionError, MemoryError, TypeError, ValueError):
        return None
    return (found[0].value,) if len(found) == 1 and not has_comment else None


def marks(value: Any) -> Iterator[Macro | Reference]:
    """Yields the macros and references anywhere in a value."""
    if isinstance(value, (Macro, Reference)):
        yield value
    elif isinstance(value, Bare):
        yield from marks(parse_value(value.text))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from marks(item)
    elif isinstance(value, dict):
        yield from marks(tuple(value.items()))


def map_references(value: Any, change: Callable[[Reference], Reference]) -> Any:
    """Returns a value with `change` applied to every reference in it."""
    if isinstance(value, Reference):
        return change(value)
    if isinstance(value, Bare) and any(isinstance(mark, Reference) for mark in marks(value)):
        literal = parse_value(value.text)
        return map_references(literal[0], change) if literal else value
    if isinstance(value, (list, tuple)):
        return type(value)(map_references(item, change) for item in value)
    if isinstance(value, dict):
        return {key: map_references(item, change) for key, item in value.items()}
    return value


def macros_in(value: Any) -> list[str]:
    """The distinct names of the macros anywhere in a value."""
    return list(dict.fromkeys(mark.name for mark in marks(value) if isinstance(mark, Macro)))


def scoped_name(statement: Binding) -> str:
    """The name a binding defines, with its scope: 'NAME' or 'scope/NAME'."""
    return f'{statement.scope}/{statement.selector}' if statement.scope else statement.selector


def to_gin(value: Any) -> str:
    """Writes a value as gin that `statements` can read back."""
    if isinstance(value, Macro):
        return f'%{value.name}'
    if isinstance(value, Reference):
        return f'@{value.scope}/{value.name}()' if value.scope else f'@{value.name}()'
    if isinstance(value, Bare):
        return repr(value.text)
    if isinstance(value, (list, tuple)):
        return '[' + ', '.join(map(to_gin, value)) + ']'
    if isinstance(value, Mapping):
        return '{' + ', '.join(f'{to_gin(k)}: {to_gin(v)}' for k, v in value.items()) + '}'
    return repr(value)
