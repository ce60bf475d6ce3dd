"""Conversations as single sequences with loss on the assistant's turns only.

A conversation is a record {'roles': [...], 'texts': [...]}: optionally 'system' and 'tools', then 'user' and
'assistant' in turn; an assistant's turn may be, or end with, tool 'call's, which 'observation's answer instead of the
user.

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

With InstructionConfig.chat_format = 'template' the chat template of the vocabulary's tokenizer words the conversation
instead (chat_template.py): the ids are those of transformers' `apply_chat_template`, and the loss is on what the
template writes for the assistant's turns. As there, a user who spells a token such as <|im_end|> writes that token.

An encoder-decoder reads the first prompt in its encoder; all the rest are its targets, with loss weight 0 on the user's
turns. A decoder-only model has the whole conversation in its row.

T5's vocabulary has no newline, '{', '}', '<', '`', '^', '~' or backslash: a newline becomes a space, the others become
the unknown id and are lost, such as the braces in JSON of tool calls. Each example counts its 'unknown_tokens', and its
variant ends in 'unknown pieces' if there are any: 2.4 % of the tokens of 300 tool-call chats (Glaive's), 0.4 % of a
thousand rows of Alpaca. A vocabulary with byte fallback, or 'bytes', has none.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from t5flan.data.instruction_config import InstructionConfig
from t5flan.data.preprocessing.examples import Context, Example, ExampleFn, Result
from t5flan.data.preprocessing.features import LOSS_WEIGHTS, STARTED
from t5flan.data.prompting.conversation_formats import REPLIES
from t5flan.data.vocabulary import chat_template
from t5flan.errors import UserError


def exchanges(record: Mapping[str, Sequence[str]], instructions: InstructionConfig) -> list[tuple[str, str]]:
    """The conversation as (prompt, reply) texts."""
    markers = instructions.chat_markers
    turns = list(zip(record['roles'], record['texts'], strict=True))
    if instructions.identity and turns[0][0] != 'system':
        turns.insert(0, ('system', instructions.identity))
    made: list[tuple[str, str]] = []
    prompt: list[str] = []
    for role, text in turns:
        if role in REPLIES:
            reply = f'{markers["call"]} {text}' if role == 'call' else text
            if made and not prompt:  # a call after a text, or another call: the same turn
                made[-1] = (made[-1][0], f'{made[-1][1]}\n{reply}')
                continue
            made.append(('\n'.join([*prompt, markers['assistant']]), reply))
            prompt = []
        else:
            prompt.append(f'{markers[role]} {text}')
    return made


_TEMPLATE_ROLES = {'call': 'assistant', 'observation': 'tool'}


def messages(
    record: Mapping[str, Sequence[str]], instructions: InstructionConfig, takes_calls: bool = False
) -> tuple[list[dict[str, Any]], list[Any] | None]:
    """The conversation as messages for a chat template, and its tools.

    Args:
        record: the conversation.
        instructions: its `identity` becomes the system prompt of a conversation without one.
        takes_calls: gives calls as 'tool_calls', not as the text of the message.

    Raises:
        UserError: the tools are not a JSON list.
    """
    turns: list[dict[str, Any]] = []
    tools, previous = None, ''
    for role, text in zip(record['roles'], record['texts'], strict=True):
        if role == 'tools':
            try:
                tools = json.loads(text)
            except ValueError:
                tools = text
            if not isinstance(tools, list):
                given = f'the tools of a conversation are {text[:60]!r}, expected a JSON list'
                raise UserError(f"{given}. Correct the file, or set InstructionConfig.chat_format='markers'.")
            continue
        turn: dict[str, Any] = {'role': _TEMPLATE_ROLES.get(role, role), 'content': text}
        if role == 'call' and takes_calls and (call := _parsed_call(text)):
            turn = {'role': 'assistant', 'content': '', 'tool_calls': [{'type': 'function', 'function': call}]}
        if role in REPLIES and previous in REPLIES:  # a call after a text, or another call: the same turn
            calls = [*turns[-1].get('tool_calls', ()), *turn.get('tool_calls', ())]
            whole = '\n'.join(one['content'] for one in (turns.pop(), turn) if one['content'])
            turn = {'role': 'assistant', 'content': whole, **({'tool_calls': calls} if calls else {})}
        turns.append(turn)
        previous = role
    if instructions.identity and turns[0]['role'] != 'system':
        turns.insert(0, {'role': 'system', 'content': instructions.identity})
    return turns, tools


def _parsed_call(text: str) -> dict[str, Any] | None:
    """The name and arguments of a call, if its text is JSON of these."""
    try:
        call = json.loads(text)
    except ValueError:
        return None
    return call if isinstance(call, dict) and isinstance(call.get('name'), str) else None


def _ends_of_replies(roles: Sequence[str]) -> list[int]:
    """The place of the last of each of the assistant's turns, which may be a text and calls."""
    after = [role in REPLIES for role in roles[1:]] + [False]
    return [i for i, role in enumerate(roles) if role in REPLIES and not after[i]]


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
        if context.instructions.chat_format == 'template':
            return self._by_template(example, context)
        vocabulary = context.vocabulary
        pairs = exchanges(example, context.instructions)
        texts = [text for pair in pairs for text in pair]
        encoded = vocabulary.encode_batch(texts)
        for i, ids in enumerate(encoded):
            if vocabulary.eos_id in ids:  # a tokenizer.json reads it from text; no turn may end another
                encoded[i] = vocabulary.encode_literally([texts[i]])[0]
        halves = [np.array([*ids, vocabulary.eos_id], np.int32) for ids in encoded]
        kept = self._fitting(halves, context)
        parts = halves[1 : 2 * kept]
        weights = [np.full(len(part), 1.0 if i % 2 == 0 else 0.0, np.float32) for i, part in enumerate(parts)]
        targets = np.concatenate(parts)
        unknown = int(sum((part == vocabulary.unk_id).sum() for part in halves[: 2 * kept]))
        replies = _ends_of_replies(example['roles'])
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

    def _by_template(self, example: Example, context: Context) -> Result:
        vocabulary = context.vocabulary
        takes_calls = 'tool_calls' in (vocabulary.conventions.chat_template or '')
        turns, tools = messages(example, context.instructions, takes_calls)
        ids, spans = chat_template.encode_with_spans(vocabulary, turns, tools=tools)
        first, lengths = spans[0][0], context.feature_lengths
        is_row = context.format != 'encoder_decoder'
        room = (sum(lengths.values()) if is_row else lengths['targets'] + first) if lengths else len(ids)
        kept = max(1, sum(end <= room for _, end in spans))
        ids_T = np.array(ids[: spans[kept - 1][1]] if kept < len(spans) else ids, np.int32)
        weights_T = np.zeros(len(ids_T), np.float32)
        for start, end in spans[:kept]:
            weights_T[start:end] = 1.0
        replies = _ends_of_replies(example['roles'])
        unknown = int((ids_T == vocabulary.unk_id).sum()) if vocabulary.kind == 'sentencepiece' else 0
        return {
            'inputs': ids_T[:first],
            'targets': ids_T[first:],
            LOSS_WEIGHTS: weights_T[first:],
            STARTED: True,
            'inputs_pretokenized': vocabulary.decode(ids_T[:first]),
            'targets_pretokenized': vocabulary.decode(ids_T[first:]),
            'turns_left_out': len(example['roles']) - replies[kept - 1] - 1,
            'unknown_tokens': unknown,
            'variant': self._variant(example, kept, len(spans), unknown),
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
