"""Fields of a row: text at a key, one level down as 'question.text', and lists of options."""

from collections.abc import Mapping, Sequence
from typing import Any

from t5flan.errors import UserError, did_you_mean


def find_field(row: Mapping[str, Any], field: str, where: str, setting: str) -> Any:
    """The value of a field; 'a.b' is the key 'b' of the object 'a', unless the row has the key 'a.b' itself.

    Raises:
        UserError: there is no such field; the message names the existing ones.
    """
    if field in row:
        return row[field]
    outer, _, inner = field.partition('.')
    inside = row.get(outer)
    if inner and isinstance(inside, Mapping) and inner in inside:
        return inside[inner]
    names = [str(name) for name in row]
    if inner and isinstance(inside, Mapping):
        names += [f'{outer}.{name}' for name in inside]
    near = did_you_mean(field, names) or '.'
    raise UserError(f"{where}: no field '{field}'; the fields are {', '.join(names) or 'none'}{near} Set {setting}.")


def replace_field(row: dict[str, Any], field: str, value: Any) -> None:
    """Sets the value of a field that `find_field` finds."""
    if field in row:
        row[field] = value
    else:
        outer, _, inner = field.partition('.')
        row[outer] = {**row[outer], inner: value}


def require_field(row: Mapping[str, Any], field: str, where: str, setting: str) -> str:
    """The text of a field; raises a UserError if it is missing or not text."""
    return require_text(find_field(row, field, where, setting), field, where, setting)


def require_text(value: Any, field: str, where: str, setting: str) -> str:
    """The value of a field that must be text; raises a UserError if it is not."""
    if not isinstance(value, str):
        found = f'{type(value).__name__} ({str(value)[:40]})'
        raise UserError(f"{where}: field '{field}' is {found}, it must be text. Fix the file or set {setting}.")
    try:
        value.encode('utf-8')
    except UnicodeEncodeError:
        raise UserError(f"{where}: field '{field}' has half a character (a lone surrogate). Fix the file.") from None
    return value


def require_texts(value: Any, field: str, where: str, setting: str) -> list[str]:
    """The value of a field that must be a list of texts, not empty; raises a UserError if it is not."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        found = f'{type(value).__name__} ({str(value)[:40]})'
        raise UserError(f"{where}: field '{field}' is {found}, it must be a list of texts. Set {setting}.")
    return [require_text(text, field, where, setting) for text in value]


def list_options(options: Sequence[str]) -> str:
    r"""Options as FLAN appends them to an input (arXiv:2109.01652).

    >>> list_options(['yes', 'no'])
    'OPTIONS:\n- yes\n- no'
    """
    return 'OPTIONS:\n- ' + '\n- '.join(options)
