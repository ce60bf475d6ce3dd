"""A small SentencePiece vocabulary for tests, and choosing a vocabulary for a while."""

import contextlib
import functools
import os
from pathlib import Path
from unittest import mock

from t5flan.data.vocabulary.sentencepiece_model import SentencePieceVocabulary
from t5flan.data.vocabulary.tokenizer_json import TokenizerJsonVocabulary
from t5flan.data.vocabulary.training import train_sentencepiece
from t5flan.data.vocabulary.vocabulary import Conventions

TEXTS = (
    'The quick brown fox jumps over the lazy dog, 12 times.',
    'A naïve question:\n\tis 7 x 6 = 42?',
    'Übung macht den Meister.',
)


@functools.cache
def small_vocabulary() -> SentencePieceVocabulary:
    """Some 300 pieces and bytes, 10 sentinels, no mode tokens."""
    return train_sentencepiece(TEXTS, 318, extra_ids=10, mode_tokens=())


def small_vocabulary_model(path: str | os.PathLike) -> SentencePieceVocabulary:
    """The same vocabulary, written to `path` (F.model) and read from there."""
    small_vocabulary().save_model(path)
    return SentencePieceVocabulary(path, 10)


@contextlib.contextmanager
def vocabulary_chosen(vocabulary):
    """Chooses a vocabulary for the time of a `with` block."""
    from t5flan.data.vocabulary import seqio_vocabulary  # imports TensorFlow

    with mock.patch.object(seqio_vocabulary, '_chosen', [vocabulary]):
        yield


# -- A byte-level BPE with chat templates --------------------------------------------------------------------------

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + "
    "'\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = """{{- bos_token }}
{%- if tools %}
    {{- '<|start|>tools<|header|>\n' + tools | tojson(indent=1) + eos_token }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role not in ('system', 'user', 'assistant', 'tool') %}
        {{- raise_exception('unknown role') }}
    {%- endif %}
    {%- set content = '<|start|>' + message['role'] + '<|header|>\n\n' + message['content'] | trim + eos_token %}
    {{- content }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|header|>\n\n' }}
{%- endif %}
"""
SYSTEM = (  # SmolLM2's words a system turn where there is none
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are brief<|im_end|>\n' }}{% endif %}{% generation %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endgeneration %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {'chatml': CHATML, 'llama3': LLAMA3, 'system': SYSTEM}
TOKENS = ('<|bos|>', '<|im_end|>', '<|im_start|>', '<|start|>', '<|header|>')
NAMED = {'bos_token': '<|bos|>', 'eos_token': '<|im_end|>'}


def bpe_folder(path: Path) -> Path:
    """Writes the tokenizer.json of a byte-level BPE with a few merges and the special tokens of the templates."""
    import tokenizers

    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=list(TOKENS),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(['assistant user system Hello new line\n\n' * 9], trainer)
    made.save(str(path / 'tokenizer.json'))
    return path


def bpe_vocabulary(folder: Path, template: str | None) -> TokenizerJsonVocabulary:
    """The vocabulary of `bpe_folder`, with a chat template."""
    conventions = Conventions(add_bos=template == LLAMA3, chat_template=template, named_tokens=NAMED)
    return TokenizerJsonVocabulary(folder / 'tokenizer.json', 1, 0).with_conventions(conventions)
