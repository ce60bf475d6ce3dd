"""Conversations as single sequences with loss on the assistant's turns only.

A conversation is a record {'roles': [...], 'texts': [...]}: optionally 'system' and 'tools', then 'user' and
'assistant' in turn; an assistant's turn may be a tool 'call', which an 'observation' answers instead of the user.

It becomes exchanges: a prompt, which ends with the assistant's marker, and the reply. Each is tokenized by itself and
ends with end of sequence (shown as |), like the inputs and targets of any other task:

    System: Be brief.             no loss          inputs
    User: Which colour?                            (the prefix of a prefix LM)
    Assistant:|
    Red.|                         loss             targets
    User: And which number?       no loss
    Assistant:|
    Seven.|                       loss

So a single-turn prompt is the same text that `infer` takes, and a reply ends like any answer. A call is a reply that
begins with the marker of calls, which carries loss because the assistant has to write it. Users cannot write end of
sequence.

An encoder-decoder reads the first prompt in its encoder; all the rest are its targets, with loss weight 0 on the user's
turns. A decoder-only model has the whole conversation in its row.

T5's vocabulary has no newline, '{', '}', '<', '`', '^', '~' or backslash: a newline becomes a space, the others become
the unknown id and are lost, such as the braces in JSON of tool calls. Each example counts its 'unknown_tokens', and its
variant ends in 'unknown pieces' if there are any: 2.4 % of the tokens of 300 tool-call chats (Glaive's), 0.4 % of a
thousand rows of Alpaca. A vocabulary with byte fallback, or 'bytes', has none.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5flan.data.instruction_config import InstructionConfig
from t5flan.data.preprocessing.examples import Context, Example, ExampleFn, Result
from t5flan.data.preprocessing.features import LOSS_WEIGHTS
from t5flan.errors import UserError

SPEAKERS = {'system': 'system', 'human': 'user', 'user': 'user', 'prompter': 'user'}
SPEAKERS |= {'gpt': 'assistant', 'chatgpt': 'assistant', 'assistant': 'assistant'}
SPEAKERS |= {'function_call': 'call', 'observation': 'observation', 'tool': 'observation'}
"""Role names in files -> our roles."""
_REPLIES = ('assistant', 'call')
_NEXT_ROLES = {'': ('system', 'tools', 'user'), 'system': ('tools', 'user'), 'tools': ('user',), 'user': _REPLIES}
_NEXT_ROLES |= {'observation': _REPLIES, 'assistant': ('user',), 'call': ('observation',)}
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
    while turns and turns[-1][0] not in _REPLIES:
        turns = turns[:-1]
    if not turns:
        raise UserError(f'{where}: no turn of the assistant to learn from. Fix the file.')
    roles, texts = zip(*turns)
    return {'roles': list(roles), 'texts': [text.strip() for text in texts]}


# -- Records to examples -----------------------------------------------------------------------------------------------


def exchanges(record: Mapping[str, Sequence[str]], instructions: InstructionConfig) -> list[tuple[str, str]]:
    """The conversation as (prompt, reply) texts."""
    markers = instructions.chat_markers
    turns = list(zip(record['roles'], record['texts'], strict=True))
    if instructions.identity and turns[0][0] != 'system':
        turns.insert(0, ('system', instructions.identity))
    made: list[tuple[str, str]] = []
    prompt: list[str] = []
    for role, text in turns:
        if role in _REPLIES:
            reply = f'{markers["call"]} {text}' if role == 'call' else text
            made.append(('\n'.join([*prompt, markers['assistant']]), reply))
            prompt = []
        else:
            prompt.append(f'{markers[role]} {text}')
    return made


class Converse(ExampleFn):
    """Preprocessor that tokenizes a conversation: 'inputs', 'targets', loss weights of the targets, and counts.

    A conversation that is too long loses whole exchanges at its end; 'turns_left_out' counts their turns. If the first
    exchange alone is too long, the pipeline trims it like any example.
    """

    def __init__(self) -> None:
        super().__init__(self.apply)
        self.__name__ = 'converse'

    def apply(self, example: Example, context: Context) -> Result:
        """Tokenizes one conversation."""
        vocabulary = context.vocabulary
        pairs = exchanges(example, context.instructions)
        encoded = vocabulary.encode_batch([text for pair in pairs for text in pair])
        halves = [np.array([*ids, vocabulary.eos_id], np.int32) for ids in encoded]
        kept = self._fitting(halves, context)
        parts = halves[1 : 2 * kept]
        weights = [np.full(len(part), 1.0 if i % 2 == 0 else 0.0, np.float32) for i, part in enumerate(parts)]
        targets = np.concatenate(parts)
        unknown = int(sum((part == vocabulary.unk_id).sum() for part in halves[: 2 * kept]))
        replies = [i for i, role in enumerate(example['roles']) if role in _REPLIES]
        texts = [text for pair in pairs[:kept] for text in pair]
        return {
            'inputs': halves[0],
            'targets': targets,
            LOSS_WEIGHTS: np.concatenate(weights),
            'inputs_pretokenized': texts[0],
            'targets_pretokenized': '\n'.join(texts[1:]),
            'turns_left_out': len(example['roles']) - replies[kept - 1] - 1,
            'unknown_tokens': unknown,
            'variant': self._variant(example, kept, len(pairs), unknown),
        }

    @staticmethod
    def _fitting(halves: Sequence[np.ndarray], context: Context) -> int:
        """Number of exchanges that fit, at least one."""
        lengths = context.feature_lengths
        if not lengths:
            return len(halves) // 2
        is_row = context.format != 'encoder_decoder'
        room = sum(lengths.values()) if is_row else lengths['targets']
        ends = np.cumsum([len(half) for half in halves])[1::2] - (0 if is_row else len(halves[0]))
        return max(1, int((ends <= room).sum()))

    @staticmethod
    def _variant(example: Example, kept: int, exchanges: int, unknown: int) -> str:
        words = ['one reply' if kept == 1 else 'several replies']
        words += ['tool calls'] * ('call' in example['roles']) + ['turns left out'] * (kept < exchanges)
        return ', '.join(words + ['unknown pieces'] * bool(unknown))


converse = Converse()
