"""Rows of conversations in the formats people publish -> records of roles and texts.

ShareGPT ('conversations'), 'messages', OpenAssistant trees, Alpaca rows and Self-Instruct seed tasks; conversations.py
turns the records into tokens.
"""

from collections.abc import Mapping
from typing import Any

from t5flan.data.preprocessing.examples import Example
from t5flan.errors import UserError

SPEAKERS = {'system': 'system', 'human': 'user', 'user': 'user', 'prompter': 'user'}
SPEAKERS |= {'gpt': 'assistant', 'chatgpt': 'assistant', 'assistant': 'assistant'}
SPEAKERS |= {'function_call': 'call', 'observation': 'observation', 'tool': 'observation'}
"""Role names in files -> our roles."""
REPLIES = ('assistant', 'call')
"""The roles whose texts carry loss."""
_NEXT_ROLES = {'': ('system', 'tools', 'user'), 'system': ('tools', 'user'), 'tools': ('user',), 'user': REPLIES}
_NEXT_ROLES |= {'observation': REPLIES, 'assistant': ('user',), 'call': ('observation',)}
_FORMATS = (
    "'conversations' (ShareGPT), 'messages', 'prompt' with 'replies' (an OpenAssistant tree), 'instruction' and "
    "'output' (Alpaca) or 'instruction' and 'instances' (Self-Instruct)"
)


def parse_row(row: Any, where: str) -> list[Example]:
    """The conversations of a row: one, or several of an OpenAssistant tree or of a seed task's instances.

    Raises:
        UserError: a field is missing or wrong, or the turns do not alternate; names `where` and the field or turn.
    """
    if not isinstance(row, Mapping):
        kind = type(row).__name__
        raise UserError(f'{where}: is {kind}, not an object with {_FORMATS}. Fix the file or DataConfig.chat.')
    if 'conversations' in row:
        conversations = [_turns(row, 'conversations', 'from', 'value', where)]
    elif 'messages' in row:
        conversations = [_turns(row, 'messages', 'role', 'content', where)]
    elif 'prompt' in row and isinstance(row['prompt'], Mapping):
        conversations = _tree(row['prompt'], where)
    elif 'instances' in row:
        conversations = _seed_task(row, where)
    elif 'instruction' in row:
        conversations = [_instruction(row, row, where)]
    else:
        names = ', '.join(map(str, row)) or 'none'
        raise UserError(f'{where}: has the fields {names}, expected {_FORMATS}. Fix the file or DataConfig.chat.')
    return [_checked(turns, where) for turns in conversations]


Turns = list[tuple[str, str]]


def _field(row: Any, name: str, where: str, kind: type = str, default: Any = None) -> Any:
    value = row.get(name, default) if isinstance(row, Mapping) else None
    if not isinstance(value, kind):
        names = ', '.join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        found = 'has no' if value is None else f'has {type(value).__name__} as'
        expected = 'text' if kind is str else 'a list'
        raise UserError(f"{where}: {found} field '{name}' (the fields are {names}), expected {expected}. Fix the file.")
    return value


def _turns(row: Mapping[str, Any], field: str, role: str, text: str, where: str) -> Turns:
    turns: Turns = []
    if row.get('system'):
        turns.append(('system', _field(row, 'system', where)))
    listed = []
    for number, turn in enumerate(_field(row, field, where, list), 1):
        place = f'{where} turn {number}'
        speaker = _field(turn, role, place)
        if speaker not in SPEAKERS:
            raise UserError(f"{place}: '{role}' is {speaker!r}, expected one of {', '.join(SPEAKERS)}. Fix the file.")
        listed.append((SPEAKERS[speaker], _field(turn, text, place)))
    if listed and listed[0][0] == 'system':
        turns = [listed.pop(0)]
    if (tools := row.get('tools')) and _field(row, 'tools', where).strip() not in ('', '[]'):
        turns.append(('tools', tools))
    return turns + listed


def _tree(message: Mapping[str, Any], where: str) -> list[Turns]:
    """The paths of a message tree, with the best-ranked reply at each turn of the assistant.

    Where users continued in several ways there is one path for each, with the shared turns in all of them.
    """
    role = _field(message, 'role', where)
    if role not in ('prompter', 'assistant'):
        raise UserError(f"{where}: 'role' is {role!r} in a tree, expected prompter or assistant. Fix the file.")
    own = [(SPEAKERS[role], _field(message, 'text', where))]
    replies = [reply for reply in _field(message, 'replies', where, list, []) if not _is_rejected(reply)]
    if role == 'prompter' and replies:
        replies = [min(replies, key=lambda reply: reply['rank'] if isinstance(reply.get('rank'), int) else 2**31)]
    return [own + path for reply in replies for path in _tree(reply, where)] or [own]


def _is_rejected(reply: Any) -> bool:
    return isinstance(reply, Mapping) and (bool(reply.get('deleted')) or reply.get('review_result') is False)


def _instruction(row: Mapping[str, Any], task: Mapping[str, Any], where: str) -> Turns:
    given = _field(row, 'input', where, default='').strip()
    asked = _field(task, 'instruction', where).strip()
    turns = [('system', _field(row, 'system', where))] if row.get('system') else []
    return [*turns, ('user', f'{asked}\n\n{given}' if given else asked), ('assistant', _field(row, 'output', where))]


def _seed_task(row: Mapping[str, Any], where: str) -> list[Turns]:
    instances = _field(row, 'instances', where, list)
    if not instances:
        raise UserError(f"{where}: 'instances' is empty, expected one at least. Fix the file.")
    return [_instruction(instance, row, f'{where} instance {i}') for i, instance in enumerate(instances, 1)]


def _checked(turns: Turns, where: str) -> Example:
    """The record of the turns, which must alternate; last turns without a reply are dropped."""
    previous = ''
    for number, (role, text) in enumerate(turns, 1):
        if not text.strip():
            raise UserError(f'{where} turn {number}: the text of {role} is empty. Fix the file.')
        expected = _NEXT_ROLES[previous]
        if role not in expected:
            found = f'{role} after {previous}' if previous else role
            found = f'two turns of {role} in a row' if role == previous else found
            raise UserError(f'{where} turn {number}: {found}, expected {" or ".join(expected)}. Fix the file.')
        previous = role
    while turns and turns[-1][0] not in REPLIES:
        turns = turns[:-1]
    if not turns:
        raise UserError(f'{where}: no turn of the assistant to learn from. Fix the file.')
    roles, texts = zip(*turns)
    return {'roles': list(roles), 'texts': [text.strip() for text in texts]}
