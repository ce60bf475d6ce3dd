r"""How rows of a decoder-only model join a prompt and its answer.

    'plain'     prompt | answer |       | is the end of sequence, as in T5X
    'newline'   prompt \n answer |      for pretrained decoders, which have no end of sequence inside a text
    'chat'      the tokenizer's chat template: the prompt is the user's turn, the answer the assistant's

A run records its format, so that inference does the same.
"""

from collections.abc import Sequence

from t5flan.data.vocabulary import chat_template
from t5flan.data.vocabulary.vocabulary import Vocabulary


def prompt_ids(vocabulary: Vocabulary, text: str, prompt_format: str) -> list[int]:
    """The ids of a prompt, up to where the answer begins.

    Raises:
        UserError: the format is 'chat' and the vocabulary has no chat template, or it refuses the prompt.
    """
    if prompt_format == 'chat':
        return chat_template.encode(vocabulary, _turns(text), reply=True)
    if prompt_format == 'newline':
        return vocabulary.encode(f'{text}\n')
    return [*vocabulary.encode(text), vocabulary.eos_id]


def answer_ids(vocabulary: Vocabulary, prompt: str, answer: str, prompt_format: str) -> list[int]:
    """The ids of an answer and of its end; `prompt` is the text of its prompt."""
    if prompt_format != 'chat':
        return [*vocabulary.encode(answer), vocabulary.eos_id]
    ids, [(start, end)] = chat_template.encode_with_spans(vocabulary, [*_turns(prompt), _turn('assistant', answer)])
    reply: Sequence[int] = ids[start:end]
    last = vocabulary.turn_end_id
    return list(reply[: reply.index(last) + 1]) if last in reply else list(reply)


def natural_format(vocabulary: Vocabulary) -> str:
    """The format for a decoder that other software trained: its chat template if it has one, else a newline."""
    return 'chat' if vocabulary.conventions.chat_template else 'newline'


def end_id(vocabulary: Vocabulary, prompt_format: str) -> int:
    """The token that ends an answer."""
    return vocabulary.turn_end_id if prompt_format == 'chat' else vocabulary.eos_id


def _turns(prompt: str) -> list[dict[str, str]]:
    return [_turn('user', prompt)]


def _turn(role: str, content: str) -> dict[str, str]:
    return {'role': role, 'content': content}
