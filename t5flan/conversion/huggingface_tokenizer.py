"""The tokenizer files of a Hugging Face folder <-> a vocabulary."""

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t5flan.conversion.huggingface_config import T5_FAMILY
from t5flan.data.vocabulary.byte_level import ByteVocabulary, IdsVocabulary
from t5flan.data.vocabulary.sentencepiece_model import SentencePieceVocabulary
from t5flan.data.vocabulary.tokenizer_json import TokenizerJsonVocabulary
from t5flan.data.vocabulary.vocabulary import Vocabulary
from t5flan.errors import UserError

T5_SENTINELS = 100
BYT5_SENTINELS = 125


def read_vocabulary(folder: Path, config: Mapping[str, Any]) -> tuple[Vocabulary, tuple[str, ...]]:
    """The vocabulary of a folder (SentencePiece before tokenizer.json: it needs no other library), and what to say of it.

    Without tokenizer files it is one of ids alone.
    """
    kind = config['model_type']
    eos = _first_id(config.get('eos_token_id'), 1)
    start = _first_id(config.get('decoder_start_token_id' if kind in T5_FAMILY else 'bos_token_id'), 0)
    settings = _tokenizer_config(folder)
    for name in ('spiece.model', 'tokenizer.model'):
        if (folder / name).is_file():
            sentinels = settings.get('extra_ids', T5_SENTINELS if kind in T5_FAMILY else 0)
            return SentencePieceVocabulary(
                folder / name, sentinels, settings.get('mode_tokens', ()), start_id=start
            ), ()
    if str(settings.get('tokenizer_class', '')).startswith('ByT5'):
        return ByteVocabulary(), ()
    if (folder / 'tokenizer.json').is_file():
        return TokenizerJsonVocabulary(folder / 'tokenizer.json', eos, start), ()
    note = (
        f'{folder} has no tokenizer (spiece.model, tokenizer.model or tokenizer.json): the result takes and gives token ids, '
        'not text. Set --vocabulary to bring one.'
    )
    return IdsVocabulary(config['vocab_size'], eos, start), (note,)


def _first_id(value: Any, otherwise: int) -> int:
    """config.json may have no id, one, or several (of which the first is the base model's)."""
    if isinstance(value, list):
        value = value[0] if value else None
    return otherwise if value is None else int(value)


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    file = folder / 'tokenizer_config.json'
    if not file.is_file():
        return {}
    try:
        return dict(json.loads(file.read_text('utf-8')))
    except (ValueError, TypeError):
        raise UserError(f'{file} holds no JSON object. Download it again.') from None


def tokenizer_files(
    vocabulary: Vocabulary, kind: str, extras: Mapping[str, bytes]
) -> tuple[dict[str, bytes], list[str]]:
    """File name -> content of what AutoTokenizer reads, and what could not be kept.

    Args:
        kind: the model_type.
        extras: the files that the checkpoint brought from such a folder: they go back as they came.
    """
    files = dict(extras)
    if 'tokenizer_config.json' in files or 'tokenizer.json' in files:
        return files, []
    if isinstance(vocabulary, ByteVocabulary):
        files['tokenizer_config.json'] = _json(
            {'tokenizer_class': 'ByT5Tokenizer', 'extra_ids': BYT5_SENTINELS, **_special_tokens('<pad>')}
        )
        notes = [
            "ByT5Tokenizer spells the ids from 259 on as <extra_id_0> and so on; ByT5's own sentinels, which t5flan spells so, "
            'are 258 downwards'
        ]
        return files, notes
    if isinstance(vocabulary, SentencePieceVocabulary):
        return files | _sentencepiece_files(vocabulary, kind), []
    if isinstance(vocabulary, TokenizerJsonVocabulary):
        return files | {
            'tokenizer.json': vocabulary.content,
            'tokenizer_config.json': _json({'tokenizer_class': 'PreTrainedTokenizerFast'}),
        }, []
    return files, ['no vocabulary: the folder gets no tokenizer']


def _sentencepiece_files(vocabulary: SentencePieceVocabulary, kind: str) -> dict[str, bytes]:
    model = vocabulary.proto()
    if kind not in T5_FAMILY and model.trainer_spec.model_type != model.trainer_spec.UNIGRAM:
        name = 'GemmaTokenizer' if kind == 'gemma' else 'LlamaTokenizer'
        tokens = {
            'bos_token': vocabulary.piece(vocabulary.start_id),
            'eos_token': vocabulary.piece(vocabulary.eos_id),
            'unk_token': vocabulary.piece(vocabulary.unk_id),
            'add_bos_token': True,
            'add_eos_token': False,
        }
        return {
            'tokenizer.model': vocabulary.model,
            'tokenizer_config.json': _json({'tokenizer_class': name, **tokens}),
        }
    config = {
        'extra_ids': vocabulary.extra_ids,
        'mode_tokens': list(vocabulary.mode_tokens),
        'eos_token': vocabulary.piece(vocabulary.eos_id),
        'unk_token': vocabulary.piece(vocabulary.unk_id),
        'pad_token': vocabulary.piece(0),
    }
    files = {'spiece.model': vocabulary.model}
    if kind in T5_FAMILY and not vocabulary.mode_tokens and model.normalizer_spec.remove_extra_whitespaces:
        config['tokenizer_class'] = (
            'T5Tokenizer'  # made for just such a model; of others it ignores what they say of whitespace
        )
    else:
        config['tokenizer_class'] = 'PreTrainedTokenizerFast'
        files['tokenizer.json'] = _tokenizer_json(vocabulary, model, ends=kind in T5_FAMILY)
    return files | {'tokenizer_config.json': _json(config)}


def _tokenizer_json(vocabulary: SentencePieceVocabulary, model: Any, ends: bool) -> bytes:
    """A SentencePiece unigram model in the form of the `tokenizers` library, sentinels and mode tokens on top.

    Args:
        ends: an end of sequence is put after a text (an encoder's input); else the start token is put before it.
    """
    squeezed = model.normalizer_spec.remove_extra_whitespaces
    specials = [vocabulary.special_token(id) for id in range(vocabulary.base_size, vocabulary.vocab_size)]
    pieces = [[piece.piece, piece.score] for piece in model.pieces] + [[token, 0.0] for token in specials]
    named = [
        (0, vocabulary.piece(0)),
        (vocabulary.eos_id, vocabulary.piece(vocabulary.eos_id)),
        (vocabulary.unk_id, vocabulary.piece(vocabulary.unk_id)),
        *enumerate(specials, vocabulary.base_size),
    ]
    added = [
        {
            'id': id,
            'content': token,
            'special': True,
            'single_word': False,
            'normalized': False,
            # As t5flan reads a special token that is spelled in a text: the space written around it is no piece of its own.
            'lstrip': id >= vocabulary.base_size and not squeezed,
            'rstrip': id >= vocabulary.base_size and not squeezed,
        }
        for id, token in sorted(named)
    ]
    charsmap = model.normalizer_spec.precompiled_charsmap
    normalizers = (
        [{'type': 'Precompiled', 'precompiled_charsmap': base64.b64encode(charsmap).decode()}] if charsmap else []
    )
    metaspace = {'type': 'Metaspace', 'replacement': '\u2581', 'prepend_scheme': 'always', 'split': True}
    if not squeezed:
        normalizers += [
            {'type': 'Prepend', 'prepend': '\u2581'},
            {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '\u2581'},
        ]
    token = vocabulary.piece(vocabulary.eos_id if ends else vocabulary.start_id)
    one, other = ({'Sequence': {'id': id, 'type_id': 0}} for id in 'AB')
    around = {'SpecialToken': {'id': token, 'type_id': 0}}
    return json.dumps(
        {
            'version': '1.0',
            'truncation': None,
            'padding': None,
            'added_tokens': added,
            'normalizer': {'type': 'Sequence', 'normalizers': normalizers} if normalizers else None,
            'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': [{'type': 'WhitespaceSplit'}, metaspace]}
            if squeezed
            else None,
            'post_processor': {
                'type': 'TemplateProcessing',
                'single': [one, around] if ends else [around, one],
                'pair': [one, around, other, around] if ends else [around, one, other],
                'special_tokens': {
                    token: {'id': token, 'ids': [vocabulary.eos_id if ends else vocabulary.start_id], 'tokens': [token]}
                },
            },
            'decoder': {
                'type': 'Sequence',
                'decoders': [
                    {'type': 'Replace', 'pattern': {'String': '\u2581'}, 'content': ' '},
                    {'type': 'ByteFallback'},
                    {'type': 'Fuse'},
                    {'type': 'Strip', 'content': ' ', 'start': 1, 'stop': 0},
                ],
            },
            'model': {
                'type': 'Unigram',
                'unk_id': vocabulary.unk_id,
                'vocab': pieces,
                'byte_fallback': model.trainer_spec.byte_fallback,
            },
        },
        ensure_ascii=False,
    ).encode()


def _special_tokens(pad: str) -> dict[str, str]:
    return {'eos_token': '</s>', 'pad_token': pad, 'unk_token': '<unk>'}


def _json(fields: Mapping[str, Any]) -> bytes:
    return (json.dumps(fields, indent=2, sort_keys=True) + '\n').encode()
