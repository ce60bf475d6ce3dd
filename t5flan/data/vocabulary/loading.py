"""Loads the vocabulary that a setting or a checkpoint folder names."""

import json
import os
from collections.abc import Sequence

from t5flan.data.vocabulary.byte_level import ByteVocabulary, IdsVocabulary
from t5flan.data.vocabulary.sentencepiece_model import SentencePieceVocabulary
from t5flan.data.vocabulary.tokenizer_json import TokenizerJsonVocabulary
from t5flan.data.vocabulary.vocabulary import DESCRIPTION, MODEL, PAD_ID, TOKENIZER, Vocabulary
from t5flan.errors import UserError
from t5flan.files import to_path


def load_vocabulary(spec: str | os.PathLike, extra_ids: int = 100, mode_tokens: Sequence[str] = ()) -> Vocabulary:
    """Loads the vocabulary that DataConfig.vocabulary names.

    Args:
        spec: 'bytes', a SentencePiece model, or a folder written by `Vocabulary.save`.
        extra_ids: number of sentinels, unless a description (F.json beside F.model) gives it.
        mode_tokens: mode tokens; they must agree with a description.

    Raises:
        UserError: the vocabulary is missing or unreadable, or its description has other mode tokens.
    """
    if os.fspath(spec) == 'bytes':
        return ByteVocabulary(extra_ids, mode_tokens)
    path = to_path(spec)
    model = path / MODEL if path.is_dir() else path
    description_file = path / DESCRIPTION if path.is_dir() else path.with_suffix('.json')
    if not description_file.is_file():
        if path.is_dir():
            raise UserError(f'vocabulary {path}: the folder has no {DESCRIPTION}. Set another DataConfig.vocabulary.')
        return SentencePieceVocabulary(path, extra_ids, mode_tokens)
    try:
        description = json.loads(description_file.read_text('utf-8'))
        kind, extra_ids = description['kind'], int(description['extra_ids'])
        described = tuple(description['mode_tokens'])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f'{description_file} does not describe a vocabulary. Remove it or train again.') from None
    if mode_tokens and tuple(mode_tokens) != described:
        problem = f'DataConfig.mode_tokens={tuple(mode_tokens)}, but {description_file} has {described}'
        raise UserError(f'{problem}. Set DataConfig.mode_tokens=() or train again.')
    start_id = description.get('start_id', PAD_ID)
    if kind == 'bytes':
        return ByteVocabulary(extra_ids, described)
    if kind == 'ids':
        return IdsVocabulary(description['vocab_size'], description['eos_id'], start_id)
    if kind == 'tokenizer_json':
        return TokenizerJsonVocabulary(path / TOKENIZER, description['eos_id'], start_id)
    vocabulary = SentencePieceVocabulary(model, extra_ids, described, start_id=start_id)
    found, size = vocabulary.vocab_size, description.get('vocab_size', vocabulary.vocab_size)
    if found != size:
        raise UserError(f'{model} has {found} ids, {description_file} says {size}: not one vocabulary. Train it again.')
    return vocabulary
