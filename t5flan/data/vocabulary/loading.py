"""Loads the vocabulary that a setting or a checkpoint folder names."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from t5flan.data.vocabulary.byte_level import ByteVocabulary, IdsVocabulary
from t5flan.data.vocabulary.sentencepiece_model import SentencePieceVocabulary
from t5flan.data.vocabulary.tokenizer_json import TokenizerJsonVocabulary
from t5flan.data.vocabulary.vocabulary import (
    CHAT_TEMPLATE,
    DESCRIPTION,
    MODEL,
    PAD_ID,
    TOKENIZER,
    Conventions,
    Vocabulary,
)
from t5flan.errors import MALFORMED, UserError
from t5flan.files import read_object, to_path

_KINDS = ('sentencepiece', 'bytes', 'ids', 'tokenizer_json')


def load_vocabulary(
    spec: str | os.PathLike,
    extra_ids: int = 100,
    mode_tokens: Sequence[str] = (),
    added_tokens: Sequence[str] = (),
) -> Vocabulary:
    """Loads the vocabulary that DataConfig.vocabulary names.

    Args:
        spec: 'bytes', a SentencePiece model, or a folder written by `Vocabulary.save`.
        extra_ids: number of sentinels, unless a description (F.json beside F.model) gives it or the model holds its
            own (mT5).
        mode_tokens: mode tokens; they must be those of a description, or tokens that were added to it.
        added_tokens: tokens to append after all others; those that the vocabulary has already keep their ids.

    Raises:
        UserError: the vocabulary is missing or unreadable, or its description has other mode tokens.
    """
    vocabulary = _load(spec, extra_ids, mode_tokens).with_added_tokens(added_tokens)
    return vocabulary.with_markers(mode_tokens) if mode_tokens else vocabulary


def load_saved_vocabulary(path: os.PathLike[str], expected: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary in a checkpoint folder, which must be the one with the size and fingerprint of its description.

    Raises:
        UserError: it is unreadable or another one.
    """
    vocabulary = load_vocabulary(path)
    if expected.get('fingerprint') not in (None, vocabulary.fingerprint):
        raise UserError(
            f'{path} ({vocabulary.vocab_size} ids) is not the vocabulary the checkpoint was trained with '
            f'({expected.get("size")} ids). Restore that one.'
        )
    return vocabulary


def _load(spec: str | os.PathLike, extra_ids: int, mode_tokens: Sequence[str]) -> Vocabulary:
    if os.fspath(spec) == 'bytes':
        return ByteVocabulary(extra_ids, mode_tokens)
    path = to_path(os.path.expanduser(spec))
    model = path / MODEL if path.is_dir() else path
    description_file = path / DESCRIPTION if path.is_dir() else path.with_suffix('.json')
    if not description_file.is_file():
        if path.is_dir():
            raise UserError(f'vocabulary {path}: the folder has no {DESCRIPTION}. Set another DataConfig.vocabulary.')
        return SentencePieceVocabulary(path, extra_ids, mode_tokens).without_duplicate_sentinels()
    try:
        description = read_object(description_file)
        kind, extra_ids = description['kind'], int(description['extra_ids'])
        described = tuple(description['mode_tokens'])
        named = {str(name): str(token) for name, token in description.get('named_tokens', {}).items()}
        around = Conventions(bool(description.get('add_bos', True)), bool(description.get('add_eos', False)))
        added = {str(token): int(id) for token, id in description.get('added_tokens', {}).items()}
        start_id = _id(description.get('start_id', PAD_ID))
        ids = {name: _id(description[name]) for name in ('vocab_size', 'eos_id') if name in description}
        _id(extra_ids, 2**20)
    except MALFORMED:
        raise UserError(f'{description_file} does not describe a vocabulary. Remove it or train again.') from None
    vocabulary: Vocabulary
    needed = {'ids': ('vocab_size', 'eos_id'), 'tokenizer_json': ('eos_id',)}.get(str(kind), ())
    if kind not in _KINDS or not {*needed} <= ids.keys():
        raise UserError(f'{description_file} does not describe a vocabulary. Remove it or train again.')
    if kind == 'bytes':
        vocabulary = ByteVocabulary(extra_ids, described)
    elif kind == 'ids':
        vocabulary = IdsVocabulary(ids['vocab_size'], ids['eos_id'], start_id)
    elif kind == 'tokenizer_json':
        vocabulary = TokenizerJsonVocabulary(path / TOKENIZER, ids['eos_id'], start_id)
    else:
        vocabulary = SentencePieceVocabulary(model, extra_ids, described, start_id=start_id)
    vocabulary = vocabulary.with_added_tokens(added)
    if mode_tokens and tuple(mode_tokens) != described and not {*mode_tokens} <= {*vocabulary.control_tokens}:
        problem = f'DataConfig.mode_tokens={tuple(mode_tokens)}, but {description_file} has {described}'
        fix = '`t5flan convert --add_tokens=A,B` adds tokens to a checkpoint'
        raise UserError(f'{problem}. Set DataConfig.mode_tokens=() or train it again; {fix}.')
    found, size = vocabulary.vocab_size, description.get('vocab_size', vocabulary.vocab_size)
    if found != size:
        raise UserError(f'{model} has {found} ids, {description_file} says {size}: not one vocabulary. Train it again.')
    template = _chat_template(path) if path.is_dir() else None
    return vocabulary.with_conventions(dataclasses.replace(around, named_tokens=named, chat_template=template))


def _id(value: Any, end: int = 2**31) -> int:
    """An id or a count of ids.

    Raises:
        ValueError: it is something else.
    """
    if type(value) is not int or not 0 <= value < end:
        raise ValueError(value)
    return value


def _chat_template(folder: Any) -> str | None:
    """The chat template of a vocabulary folder: its tokenizer's, or one that the user put there."""
    file = folder / CHAT_TEMPLATE
    try:
        return file.read_text('utf-8') if file.is_file() else None
    except (OSError, ValueError) as error:
        raise UserError(f'{file} cannot be read ({error}). Correct it or remove it.') from None
