"""Rows of conversations in the formats people publish -> records of roles and texts.

ShareGPT ('conversations'), OpenAI's 'messages', OpenAssistant trees, Alpaca rows, prompts with completions, preference
rows (the chosen reply) and Self-Instruct seed tasks; conversations.py turns the records into tokens.
"""

import contextlib
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from t5flan.data.preprocessing.examples import Example
from t5flan.errors import UserError

SPEAKERS = {'system': 'system', 'human': 'user', 'user': 'user', 'prompter': 'user'}
SPEAKERS |= {'gpt': 'assistant', 'chatgpt': 'assistant', 'assistant': 'assistant'}
SPEAKERS |= {'function_call': 'call', 'observation': 'observation', 'tool': 'observation'}
SPEAKERS |= {'function': 'observation', 'developer': 'system'}
"""Role names in files -> our roles."""
REPLIES = ('assistant', 'call')
"""The roles whose texts carry loss. An assistant's turn may be a text and then calls."""
FIRST_TURNS = "the assistant's turns before the first of the user"
EMPTY_TURN = 'the turns from an empty one on'
BAD_TREE = 'trees whose prompt was deleted or failed review'
NO_REPLY = 'prompts without an accepted reply'
BAD_LABEL = "completions whose 'label' is false"

_NEXT_ROLES = {'': ('system', 'tools', 'user'), 'user': REPLIES, 'assistant': ('user', 'call')}
_NEXT_ROLES |= {'call': ('observation', 'call'), 'observation': (*REPLIES, 'observation')}
_FORMATS = (
    "'conversations' (ShareGPT), 'messages', 'prompt' with 'replies' (an OpenAssistant tree), 'instruction' and "
    "'output' (Alpaca), 'prompt' and 'completion', 'chosen', or 'instruction' and 'instances' (Self-Instruct)"
)
_REPLY_TO = {'instruction': 'output', 'prompt': 'completion', 'question': 'answer'}
"""Fields that ask -> the field that usually answers."""
_ANSWERS = ('output', 'completion', 'response', 'answer')
_INPUTS = ('input', 'context')
_SYSTEMS = ('system', 'system_prompt')
_FAILED_TREES = ('aborted_low_grade', 'halted_by_moderator')
_TEXT_PARTS = ('text', 'input_text', 'output_text')

OnError = Callable[[str, UserError], None]
"""Called with the place and the error of a conversation that cannot be used."""
OnLeftOut = Callable[[str, str], None]
"""Called with the place of a row and what of it is left out: FIRST_TURNS, EMPTY_TURN, ..."""


class Turn(NamedTuple):
    """One turn, and the place of it for messages."""

    role: str
    text: str
    place: str


def parse_row(
    row: Any, where: str, on_error: OnError | None = None, on_left_out: OnLeftOut | None = None
) -> list[Example]:
    """The conversations of a row: one, or several of an OpenAssistant tree or of a seed task's instances.

    Args:
        row: the row.
        where: its place, for messages.
        on_error: called for each conversation that cannot be used, which is then left out. None raises its error.
        on_left_out: called for parts of the row that are not meant to be learned.

    Raises:
        UserError: a field is missing or wrong, or the turns do not alternate; names `where` and the field or turn.
    """
    report, leave_out = on_error or _raise, on_left_out or _ignore
    try:
        conversations = _conversations(row, where, report, leave_out)
        head = _head(row, where) if conversations else []
    except UserError as error:
        report(where, error)
        return []
    found = []
    for number, turns in enumerate(conversations, 1):
        place = where if len(conversations) == 1 else f'{where} conversation {number}'
        try:
            record, left_out = _record(head, turns, where)
        except UserError as error:
            report(place, error)
            continue
        for what in left_out:
            leave_out(place, what)
        found.append(record)
    return found


def _raise(where: str, error: UserError) -> None:
    raise error


def _ignore(where: str, what: str) -> None:
    pass


# -- Formats -----------------------------------------------------------------------------------------------------------


def _conversations(row: Any, where: str, report: OnError, leave_out: OnLeftOut) -> list[list[Turn]]:
    """The turns of each conversation, without the row's own system prompt and tools."""
    if not isinstance(row, Mapping):
        kind = type(row).__name__
        raise UserError(f'{where}: is {kind}, not an object with {_FORMATS}. Fix the file or DataConfig.chat.')
    for field in ('conversations', 'messages'):
        if field in row:
            return [_turns(row, field, where)]
    if isinstance(row.get('prompt'), Mapping):
        return _paths(row, where, report, leave_out)
    if 'message_id' in row and 'parent_id' in row:
        problem = "is one message of OpenAssistant's flat export, whose conversations lie across rows"
        raise UserError(f'{where}: {problem}. Set DataConfig.chat to the export of trees (..._trees.jsonl.gz).')
    if 'instances' in row:
        return _seed_task(row, where, report)
    if 'chosen' in row:
        return [_continued(row, 'chosen', where)]
    if any(field in row for field in _REPLY_TO):
        if row.get('label') is False:
            leave_out(where, BAD_LABEL)
            return []
        reply = _first(row, _ANSWERS, 'completion')
        asks_by_prompt = _first(row, _REPLY_TO) == 'prompt'
        if asks_by_prompt and (isinstance(row['prompt'], list) or isinstance(row.get(reply), list)):
            return [_continued(row, reply, where)]
        return [_instruction(row, row, where)]
    names = ', '.join(map(str, row)) or 'none'
    raise UserError(f'{where}: has the fields {names}, expected {_FORMATS}. Fix the file or DataConfig.chat.')


def _field(row: Any, name: str, where: str, kind: type = str, default: Any = None) -> Any:
    value = row.get(name, default) if isinstance(row, Mapping) else None
    if not isinstance(value, kind):
        names = ', '.join(map(str, row)) if isinstance(row, Mapping) else type(row).__name__
        found = 'has no' if value is None else f'has {type(value).__name__} as'
        expected = 'text' if kind is str else 'a list'
        raise UserError(f"{where}: {found} field '{name}' (the fields are {names}), expected {expected}. Fix the file.")
    if isinstance(value, str) and not _is_whole(value):
        raise UserError(f"{where}: field '{name}' has half a character (a lone surrogate). Fix the file.")
    return value


def _is_whole(text: str) -> bool:
    try:
        text.encode('utf-8')
    except UnicodeEncodeError:
        return False
    return True


def _first(row: Mapping[str, Any], names: Iterable[str], default: str = '') -> str:
    """The first of the fields that the row has."""
    return next((name for name in names if row.get(name) is not None), default)


def _head(row: Mapping[str, Any], where: str) -> list[Turn]:
    """The row's own system prompt and tools."""
    system = _first(row, _SYSTEMS)
    head = [Turn('system', _field(row, system, where), where)] if system and row[system] else []
    name = _first(row, ('tools', 'functions'))
    tools = row[name] if name else None
    text = json.dumps(tools, ensure_ascii=False) if isinstance(tools, (list, Mapping)) else tools
    if tools and (text if isinstance(text, str) else _field(row, name, where)).strip() not in ('', '[]', 'null'):
        head.append(Turn('tools', str(text), where))
    return head


def _turns(row: Mapping[str, Any], field: str, where: str) -> list[Turn]:
    """The turns of a list of messages, which may be its JSON as text (the cell of a table)."""
    listed = row[field]
    if isinstance(listed, str) and listed.lstrip().startswith('['):
        try:
            listed = json.loads(listed)
        except ValueError as error:
            raise UserError(f"{where}: field '{field}' is not JSON ({error}). Fix the file.") from None
    listed = _field({**row, field: listed}, field, where, list)
    keys = ('from', 'value') if field == 'conversations' else ('role', 'content')
    return [turn for number, one in enumerate(listed, 1) for turn in _turn(one, f'{where} turn {number}', *keys)]


def _turn(message: Any, place: str, role: str, text: str) -> list[Turn]:
    """The turns of a message: its text, and a call for each of its calls."""
    if isinstance(message, Mapping) and role not in message:
        role, text = next(
            (keys for keys in (('from', 'value'), ('role', 'content')) if keys[0] in message), (role, text)
        )
    speaker = _field(message, role, place)
    speaker = speaker.lower() if speaker.lower() in SPEAKERS else speaker
    if speaker not in SPEAKERS:
        raise UserError(f"{place}: '{role}' is {speaker!r}, expected one of {', '.join(SPEAKERS)}. Fix the file.")
    calls = [Turn('call', call, place) for call in _calls(message, place)]
    own = Turn(SPEAKERS[speaker], _content(message, text, place, bool(calls)), place)
    return calls if calls and not own.text.strip() else [own, *calls]


def _content(message: Mapping[str, Any], field: str, place: str, optional: bool) -> str:
    """The text of a message: null is empty, and parts of text are joined by line ends."""
    value = message.get(field)
    if value is None and (optional or field in message):
        return ''
    if not isinstance(value, list):
        return _field(message, field, place)
    texts = []
    for number, part in enumerate(value, 1):
        kind = part.get('type', 'text') if isinstance(part, Mapping) else type(part).__name__
        if isinstance(part, str):
            texts.append(part)
        elif kind in _TEXT_PARTS:
            texts.append(_field(part, 'text', f'{place} part {number}'))
        else:
            raise UserError(f"{place} part {number}: is of type {kind!r}, only 'text' can be learned. Fix the file.")
    return '\n'.join(texts)


def _calls(message: Mapping[str, Any], place: str) -> list[str]:
    """The calls of a message, each as JSON of its name and arguments, which OpenAI writes as JSON in a text."""
    field = _first(message, ('tool_calls', 'function_call'))
    if not field or not message[field]:
        return []
    made = []
    for call in [message[field]] if field == 'function_call' else _field(message, field, place, list):
        function = call.get('function') or call if isinstance(call, Mapping) else call
        name = _field(function, 'name', f'{place} {field}')
        arguments = function.get('arguments')
        if isinstance(arguments, str):
            with contextlib.suppress(ValueError):  # what a model wrote is kept as it is
                arguments = json.loads(arguments) if arguments.strip() else {}
        made.append(json.dumps({'name': name, 'arguments': {} if arguments is None else arguments}, ensure_ascii=False))
    return made


def _paths(row: Mapping[str, Any], where: str, report: OnError, leave_out: OnLeftOut) -> list[list[Turn]]:
    """The paths of an OpenAssistant tree, unless its prompt was deleted or failed review."""
    if _is_rejected(row['prompt']) or row.get('tree_state') in _FAILED_TREES:
        leave_out(where, BAD_TREE)
        return []
    paths = _tree(row['prompt'], where, 1, report)
    if paths and [turn.role for turn in paths[0]] == ['user']:
        leave_out(where, NO_REPLY)
        return []
    return paths


def _tree(message: Mapping[str, Any], where: str, depth: int, report: OnError) -> list[list[Turn]]:
    """The paths of a message tree, with the best-ranked reply at each turn of the assistant.

    Where users continued in several ways there is one path for each, with the shared turns in all of them. Deleted
    messages and those that failed review are left out, with what follows them.
    """
    place = f'{where} turn {depth}'
    role = _field(message, 'role', where)
    if role not in ('prompter', 'assistant'):
        raise UserError(f"{where}: 'role' is {role!r} in a tree, expected prompter or assistant. Fix the file.")
    own = [Turn(SPEAKERS[role], _field(message, 'text', place), place)]
    listed = [] if message.get('replies') is None else _field(message, 'replies', where, list)
    replies = [reply for reply in listed if not _is_rejected(reply)]
    if role == 'prompter' and replies:
        replies = [min(replies, key=_rank)]
    paths = []
    for reply in replies:
        try:
            paths += _tree(reply, where, depth + 1, report)
        except UserError as error:
            report(place, error)
    return [own + path for path in paths] or [own]


def _rank(reply: Any) -> int:
    rank = reply.get('rank') if isinstance(reply, Mapping) else None
    return rank if isinstance(rank, int) else 2**31


def _is_rejected(reply: Any) -> bool:
    return isinstance(reply, Mapping) and (bool(reply.get('deleted')) or reply.get('review_result') is False)


def _instruction(row: Mapping[str, Any], task: Mapping[str, Any], where: str) -> list[Turn]:
    """The earlier exchanges of a row ('history'), its question, and its answer."""
    asks = _first(task, _REPLY_TO, 'instruction')
    given, reply = _first(row, _INPUTS), _first(row, _ANSWERS, _REPLY_TO[asks])
    texts = [_field(task, asks, where).strip(), _field(row, given, where).strip() if given else '']
    turns = []
    for number, pair in enumerate([] if row.get('history') is None else _field(row, 'history', where, list), 1):
        place = f'{where} history {number}'
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise UserError(
                f'{place}: is {str(pair)[:40]!r}, expected a list of a question and its answer. Fix the file.'
            )
        turns += [Turn(role, text, place) for role, text in zip(('user', 'assistant'), pair, strict=True)]
    asked = Turn('user', '\n\n'.join(text for text in texts if text), where)
    return [*turns, asked, Turn('assistant', _field(row, reply, where), where)]


def _continued(row: Mapping[str, Any], field: str, where: str) -> list[Turn]:
    """A prompt and what follows it: each is text or a list of messages, and the latter may repeat the prompt."""
    prompt = row.get('prompt')
    begin = _turns(row, 'prompt', where) if isinstance(prompt, list) else []
    if not begin and (prompt is not None or not isinstance(row.get(field), list)):
        begin = [Turn('user', _field(row, 'prompt', where), where)]
    if not isinstance(row.get(field), list):
        return [*begin, Turn('assistant', _field(row, field, where), where)]
    follows = _turns(row, field, where)
    # Only what comes before the first reply can repeat the prompt: a later turn of the user continues it.
    opening = {turn.role for turn in itertools.takewhile(lambda turn: turn.role in ('system', 'user'), follows)}
    if opening & {turn.role for turn in begin}:
        begin = [turn for turn in begin if turn.role == 'system' and 'system' not in opening]
    return begin + follows


def _seed_task(row: Mapping[str, Any], where: str, report: OnError) -> list[list[Turn]]:
    instances = _field(row, 'instances', where, list)
    if not instances:
        raise UserError(f"{where}: 'instances' is empty, expected one at least. Fix the file.")
    made = []
    for number, instance in enumerate(instances, 1):
        place = f'{where} instance {number}'
        try:
            made.append(_instruction(instance if isinstance(instance, Mapping) else {}, row, place))
        except UserError as error:
            report(place, error)
    return made


# -- Checks ------------------------------------------------------------------------------------------------------------


def _record(head: list[Turn], turns: list[Turn], where: str) -> tuple[Example, list[str]]:
    """The record of the turns, which must alternate, and what is left out; last turns without a reply are dropped."""
    body = list(turns)
    systems = []
    while body and body[0].role == 'system':
        systems.append(body.pop(0).text.strip())
    own = '\n\n'.join(text for text in systems if text)
    start = [turn for turn in head if turn.role != 'system' or not own]
    start = [Turn('system', own, where), *start] if own else start
    left_out = []
    empty = next((i for i, turn in enumerate(body) if not turn.text.strip() and turn.role != 'observation'), None)
    ends = body[empty] if empty is not None else None
    if empty is not None:
        left_out.append(EMPTY_TURN)
        body = body[:empty]
    first = next((i for i, turn in enumerate(body) if turn.role == 'user'), 0)
    if first and body[0].role in REPLIES:
        left_out.append(FIRST_TURNS)
        body = body[first:]
    _check_order(body)
    while body and body[-1].role not in REPLIES:
        body.pop()
    if not body and ends is not None:
        raise UserError(f'{ends.place}: the text of {ends.role} is empty. Fix the file.')
    if not body:
        raise UserError(f'{where}: no turn of the assistant to learn from. Fix the file.')
    whole = [turn for turn in start if turn.text.strip()] + body
    return {'roles': [turn.role for turn in whole], 'texts': [turn.text.strip() for turn in whole]}, left_out


def _check_order(turns: list[Turn]) -> None:
    previous = ''
    for role, _, place in turns:
        expected = _NEXT_ROLES[previous]
        if role not in expected:
            found = f'{role} after {previous}' if previous else role
            found = f'two turns of {role} in a row' if role == previous else found
            raise UserError(f'{place}: {found}, expected {" or ".join(expected)}. Fix the file.')
        previous = role
