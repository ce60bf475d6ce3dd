"""The tokenizer files of a Hugging Face folder <-> a vocabulary."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t5flan.conversion.huggingface_config import T5_FAMILY, read_json
from t5flan.data.vocabulary.byte_level import ByteVocabulary, IdsVocabulary
from t5flan.data.vocabulary.sentencepiece_model import SentencePieceVocabulary
from t5flan.data.vocabulary.tokenizer_json import TokenizerJsonVocabulary
from t5flan.data.vocabulary.vocabulary import Vocabulary

T5_SENTINELS = 100
BYT5_SENTINELS = 125
IDS_ONLY = 'the result takes and returns token ids, not text. Set --vocabulary to add one.'
_SPACE = '\u2581'  # SentencePiece's visible space


def read_vocabulary(folder: Path, config: Mapping[str, Any]) -> tuple[Vocabulary, tuple[str, ...]]:
    """The vocabulary of a folder, and notes about it.

    SentencePiece models come before tokenizer.json, which needs another library. Without tokenizer files the vocabulary
    is an `IdsVocabulary`.
    """
    kind = config['model_type']
    eos = _first_id(config.get('eos_token_id'), 1)
    start = _first_id(config.get('decoder_start_token_id' if kind in T5_FAMILY else 'bos_token_id'), 0)
    file = folder / 'tokenizer_config.json'
    settings = read_json(file) if file.is_file() else {}
    for name in ('spiece.model', 'tokenizer.model'):
        if (folder / name).is_file():
            sentinels = settings.get('extra_ids', T5_SENTINELS if kind in T5_FAMILY else 0)
            mode_tokens = settings.get('mode_tokens', ())
            return SentencePieceVocabulary(folder / name, sentinels, mode_tokens, start_id=start), ()
    if str(settings.get('tokenizer_class', '')).startswith('ByT5'):
        return ByteVocabulary(), ()
    if (folder / 'tokenizer.json').is_file():
        return TokenizerJsonVocabulary(folder / 'tokenizer.json', eos, start), ()
    note = f'{folder} has no tokenizer (spiece.model, tokenizer.model or tokenizer.json): {IDS_ONLY}'
    return IdsVocabulary(config['vocab_size'], eos, start), (note,)


def _first_id(value: Any, default: int) -> int:
    """An id of config.json: one, several (the first is the base model's), or none."""
    if isinstance(value, list):
        value = value[0] if value else None
    return default if value is None else int(value)


def tokenizer_files(
    vocabulary: Vocabulary, kind: str, extras: Mapping[str, bytes]
) -> tuple[dict[str, bytes], list[str]]:
    """The files that AutoTokenizer reads, name -> content, and notes about what could not be kept.

    Args:
        vocabulary: the vocabulary.
        kind: the model_type.
        extras: the files of the Hugging Face folder that the checkpoint came from, which are kept unchanged.
    """
    files = dict(extras)
    if 'tokenizer_config.json' in files or 'tokenizer.json' in files:
        return files, []
    if isinstance(vocabulary, ByteVocabulary):
        tokens = {'eos_token': '</s>', 'pad_token': '<pad>', 'unk_token': '<unk>'}
        config = {'tokenizer_class': 'ByT5Tokenizer', 'extra_ids': BYT5_SENTINELS, **tokens}
        note = (
            'ByT5Tokenizer writes the ids from 259 up as <extra_id_0> and so on; in t5flan these are the ids from 258 '
            'down, the sentinels that ByT5 was trained with'
        )
        return files | {'tokenizer_config.json': _json(config)}, [note]
    if isinstance(vocabulary, SentencePieceVocabulary):
        return files | _sentencepiece_files(vocabulary, kind), []
    if isinstance(vocabulary, TokenizerJsonVocabulary):
        files['tokenizer.json'] = vocabulary.content
        files['tokenizer_config.json'] = _json({'tokenizer_class': 'PreTrainedTokenizerFast'})
        return files, []
    return files, ['the checkpoint has no vocabulary: the folder gets no tokenizer']


def _sentencepiece_files(vocabulary: SentencePieceVocabulary, kind: str) -> dict[str, bytes]:
    model = vocabulary.proto()
    piece = vocabulary.piece
    config: dict[str, Any] = {'eos_token': piece(vocabulary.eos_id), 'unk_token': piece(vocabulary.unk_id)}
    if kind not in T5_FAMILY and model.trainer_spec.model_type != model.trainer_spec.UNIGRAM:
        config |= {
            'tokenizer_class': 'GemmaTokenizer' if kind == 'gemma' else 'LlamaTokenizer',
            'bos_token': piece(vocabulary.start_id),
            'add_bos_token': True,
            'add_eos_token': False,
        }
        return {'tokenizer.model': vocabulary.model, 'tokenizer_config.json': _json(config)}
    config |= {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'extra_ids': vocabulary.extra_ids,
        'mode_tokens': list(vocabulary.mode_tokens),
        'pad_token': piece(0),
    }
    files = {'spiece.model': vocabulary.model}
    if kind in T5_FAMILY and not vocabulary.mode_tokens and model.normalizer_spec.remove_extra_whitespaces:
        config['tokenizer_class'] = 'T5Tokenizer'  # assumes such a model; it ignores other whitespace settings
    else:
        files['tokenizer.json'] = _tokenizer_json(vocabulary, model, add_eos=kind in T5_FAMILY)
    return files | {'tokenizer_config.json': _json(config)}


def _tokenizer_json(vocabulary: SentencePieceVocabulary, model: Any, add_eos: bool) -> bytes:
    """A SentencePiece unigram model, with sentinels and mode tokens, in the format of the `tokenizers` library.

    With `add_eos` it adds an end of sequence after a text (an encoder's input), else the start token before it.
    """
    squeezed = model.normalizer_spec.remove_extra_whitespaces
    specials = [vocabulary.special_token(id) for id in range(vocabulary.base_size, vocabulary.vocab_size)]
    charsmap = model.normalizer_spec.precompiled_charsmap
    normalizers: list[dict[str, Any]] = []
    if charsmap:
        normalizers.append({'type': 'Precompiled', 'precompiled_charsmap': base64.b64encode(charsmap).decode()})
    replace = lambda old, new: {'type': 'Replace', 'pattern': {'String': old}, 'content': new}
    pre_tokenizer = None
    if squeezed:
        metaspace = {'type': 'Metaspace', 'replacement': _SPACE, 'prepend_scheme': 'always', 'split': True}
        pre_tokenizer = {'type': 'Sequence', 'pretokenizers': [{'type': 'WhitespaceSplit'}, metaspace]}
    else:
        normalizers += [{'type': 'Prepend', 'prepend': _SPACE}, replace(' ', _SPACE)]
    strip = {'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0}
    decoders = [replace(_SPACE, ' '), {'type': 'ByteFallback'}, {'type': 'Fuse'}, strip]
    unigram = {
        'type': 'Unigram',
        'unk_id': vocabulary.unk_id,
        'vocab': [[piece.piece, piece.score] for piece in model.pieces] + [[token, 0.0] for token in specials],
        'byte_fallback': model.trainer_spec.byte_fallback,
    }
    fields = {
        'version': '1.0',
        'truncation': None,
        'padding': None,
        'added_tokens': _added_tokens(vocabulary, specials, strip=not squeezed),
        'normalizer': {'type': 'Sequence', 'normalizers': normalizers} if normalizers else None,
        'pre_tokenizer': pre_tokenizer,
        'post_processor': _post_processor(vocabulary, add_eos),
        'decoder': {'type': 'Sequence', 'decoders': decoders},
        'model': unigram,
    }
    return json.dumps(fields, ensure_ascii=False).encode()


def _added_tokens(vocabulary: SentencePieceVocabulary, specials: list[str], strip: bool) -> list[dict[str, Any]]:
    """The special tokens, which `tokenizers` finds in a text before it applies the model.

    With `strip`, sentinels and mode tokens take the spaces around them, as in t5flan: these are not pieces.
    """
    control = [(id, vocabulary.piece(id)) for id in (0, vocabulary.eos_id, vocabulary.unk_id)]
    flags = {'special': True, 'single_word': False, 'normalized': False}
    strips = lambda id: {'lstrip': strip and id >= vocabulary.base_size, 'rstrip': strip and id >= vocabulary.base_size}
    tokens = sorted([*control, *enumerate(specials, vocabulary.base_size)])
    return [{'id': id, 'content': token, **flags, **strips(id)} for id, token in tokens]


def _post_processor(vocabulary: SentencePieceVocabulary, add_eos: bool) -> dict[str, Any]:
    """Adds the end of sequence after each text, or the start token before the first."""
    id = vocabulary.eos_id if add_eos else vocabulary.start_id
    token = vocabulary.piece(id)
    special = {'SpecialToken': {'id': token, 'type_id': 0}}
    a, b = ({'Sequence': {'id': name, 'type_id': 0}} for name in 'AB')
    return {
        'type': 'TemplateProcessing',
        'single': [a, special] if add_eos else [special, a],
        'pair': [a, special, b, special] if add_eos else [special, a, b],
        'special_tokens': {token: {'id': token, 'ids': [id], 'tokens': [token]}},
    }


def _json(fields: Mapping[str, Any]) -> bytes:
    return (json.dumps(fields, indent=2, sort_keys=True) + '\n').encode()
