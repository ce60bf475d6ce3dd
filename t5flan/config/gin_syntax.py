"""The language of gin files: text to statements and back, with our own marks for `%MACRO` and `@Reference()`.

gin-config's parser reads it; what the names mean is config.py's. No other file imports gin.
"""

import dataclasses
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from typing import Any

from gin import config_parser
from t5flan.config import annotations
from t5flan.errors import UsageError

Binding = config_parser.BindingStatement
Include = config_parser.IncludeStatement
Import = config_parser.ImportStatement


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
    """Text from the command line whose meaning the field's type decides."""

    text: str


class _Delegate(config_parser.ParserDelegate):
    """Makes our own marks of gin's `@reference` and `%macro`."""

    def configurable_reference(self, scoped_configurable_name: str, evaluate: bool) -> Reference:
        scope, _, name = scoped_configurable_name.rpartition('/')
        return Reference(scope, name, evaluate)

    def macro(self, macro_name: str) -> Macro:
        return Macro(macro_name)


def statements(text: str, path: str) -> Iterator[Any]:
    """The statements of a gin file: `Binding`, `Include` or `Import`, with our marks in their values.

    Raises:
        UsageError: it is not gin; one line with `path` and line.
    """
    source = io.StringIO(text)
    source.name = path  # gin's parser puts it into its locations
    try:
        yield from config_parser.ConfigParser(source, _Delegate())
    except (SyntaxError, tokenize.TokenError) as error:
        message, line_number, line = _syntax(error)
        last = len(text.splitlines())
        raise UsageError(
            f'{path}:{min(line_number, last)}: not gin: {message}{f" in `{line}`" if line else ""}'
        ) from None


def _syntax(error: SyntaxError | tokenize.TokenError) -> tuple[str, int, str]:
    """What is wrong, in which line, and that line."""
    if isinstance(error, tokenize.TokenError):
        message, (line_number, _) = error.args
        return message, line_number, ''
    message = ' '.join(str(error.msg).split())
    word = re.search(r"Failed to parse token '(.*)'", message)
    if word:
        message = (
            f"{word.group(1)} is no number, 'quoted string', list, dict, True, False, None, %MACRO or @reference()"
        )
    return message.rstrip('.'), error.lineno or 1, (error.text or '').strip()


def from_bare(text: str, annotation: Any) -> Any:
    """Text of the command line as a value: what `annotation` wants, else a gin literal, else the text itself."""
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
    """(value,) if the whole of `text` is one gin value, else None."""
    if not text.strip() or '\n' in text:
        return None
    source = f'x = {text}\n'
    try:
        found = list(config_parser.ConfigParser(source, _Delegate()))
        comment = any(
            token.type == tokenize.COMMENT for token in tokenize.generate_tokens(io.StringIO(source).readline)
        )
    except (SyntaxError, tokenize.TokenError):
        return None
    return (found[0].value,) if len(found) == 1 and not comment else None


def parts(value: Any, kind: type) -> Iterator[Any]:
    """All marks of `kind` anywhere in a value."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, Bare):
        literal = parse_value(value.text)
        yield from parts(literal[0], kind) if literal and not isinstance(literal[0], Bare) else ()
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from parts(item, kind)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from parts(key, kind)
            yield from parts(item, kind)


def macros_in(value: Any) -> list[str]:
    """The names of the macros anywhere in a value, each once."""
    return list(dict.fromkeys(macro.name for macro in parts(value, Macro)))


def mentions(value: Any) -> bool:
    """Whether a value holds a macro or a reference."""
    return any(parts(value, (Macro, Reference)))


def scoped_name(statement: Binding) -> str:
    """The name that a binding gives, with its scope: 'NAME' or 'scope/NAME'."""
    return f'{statement.scope}/{statement.selector}' if statement.scope else statement.selector


def written(value: Any) -> str:
    """A value as gin, which `statements` reads back."""
    if isinstance(value, Macro):
        return f'%{value.name}'
    if isinstance(value, Reference):
        return f'@{value.scope}/{value.name}()' if value.scope else f'@{value.name}()'
    if isinstance(value, Bare):
        return repr(value.text)
    if isinstance(value, (list, tuple)):
        return '[' + ', '.join(map(written, value)) + ']'
    if isinstance(value, Mapping):
        return '{' + ', '.join(f'{written(k)}: {written(v)}' for k, v in value.items()) + '}'
    return repr(value)
