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


def tokens_around(vocabulary: Vocabulary, prompt_format: str) -> int:
    """How many tokens the prompt format adds to those of a prompt's text."""
    if prompt_format == 'plain':
        return 1
    return len(prompt_ids(vocabulary, 'a', prompt_format)) - len(vocabulary.encode('a'))


def fitting_prompt_ids(vocabulary: Vocabulary, text: str, prompt_format: str, limit: int) -> tuple[list[int], bool]:
    """`prompt_ids` of at most `limit` ids, and whether the text was cut.

    The end of the text is cut, and not the ids that the format writes after it: an answer without them in front is one
    that no prompt asks for. One id of the text stays, so that a limit below what the format writes is exceeded.
    """
    ids = prompt_ids(vocabulary, text, prompt_format)
    kept = vocabulary.encode(text) if len(ids) > limit else []
    is_cut = False
    while len(ids) > limit and len(kept) > 1:
        kept, is_cut = kept[: max(1, len(kept) - (len(ids) - limit))], True
        ids = prompt_ids(vocabulary, vocabulary.spell(kept), prompt_format)
    return ids, is_cut


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
