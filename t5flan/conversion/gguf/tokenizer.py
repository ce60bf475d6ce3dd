"""The tokenizer in a GGUF file as the files of a Hugging Face folder.

tokenizer.ggml.model    becomes
'gpt2'                  tokenizer.json: byte-level BPE with the file's merges; tokenizer.ggml.pre names the split
'llama', 't5'           tokenizer.model, spiece.model: the SentencePiece model from which llama.cpp took the pieces
none, 'no_vocab'        no file: the model takes and returns ids
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from t5flan.conversion.gguf.file import spelled
from t5flan.conversion.huggingface_tokenizer import T5_SENTINELS
from t5flan.errors import UserError

_PREFIX = 'tokenizer.ggml.'
_NAMED = {'bos': 'bos', 'eos': 'eos', 'unk': 'unknown', 'pad': 'padding', 'sep': 'seperator', 'mask': 'mask'}
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # token types: SentencePiece's, too
_SPACE = '\u2581'  # SentencePiece's visible space
_WITHOUT = 'Set --vocabulary to a SentencePiece model, or convert the Hugging Face folder.'

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_MODERN = (  # with one to `digits` digits together
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r'\s+(?!\S)|\s+'
)
_TEKKEN = (
    r'[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|'
    r'[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|'
    r'\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_DIGIT_FIRST = (r'\p{N}', _GPT2)
_LLAMA3, _QWEN2 = (_MODERN.replace('digits', '3'),), (_MODERN.replace('{1,digits}', ''),)
SPLITS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(('gpt-2', 'mpt', 'olmo', 'jais'), (_GPT2,)),
    **dict.fromkeys(('smollm', 'starcoder', 'refact', 'command-r', 'codeshell', 'exaone', 'minerva-7b'), _DIGIT_FIRST),
    **dict.fromkeys(('llama3', 'llama-v3', 'llama-bpe', 'falcon3', 'pixtral', 'dbrx', 'smaug-bpe'), _LLAMA3),
    **dict.fromkeys(('qwen2', 'deepseek-r1-qwen', 'megrez', 'stablelm2', 'hunyuan'), _QWEN2),
    'tekken': (_TEKKEN,),
    'default': (r'[\p{P}\$\+<=>\^~\|]+', _GPT2, r'\p{N}+', r'[0-9][0-9][0-9]'),  # llama.cpp's, of no model
}
"""tokenizer.ggml.pre -> the expressions that split a text, one after the other; those of the models' tokenizer.json."""
_WHOLE_WORDS = ('llama3', 'llama-v3', 'llama-bpe', 'falcon3', 'pixtral', 'tekken')
"""Where a word that is a token stays one, whatever the merges are (`ignore_merges`). These also begin with BOS."""
_COMPOSED = ('qwen2', 'deepseek-r1-qwen', 'megrez')
"""Where tokenizer.json composes characters (NFC), which llama.cpp does not."""


def ids(where: Path, metadata: Mapping[str, Any]) -> dict[str, int]:
    """'bos' -> the id of the token, and so on, for those that the file names; 'eot' is the end of a reply.

    Raises:
        UserError: an id is not one of the tokens.
    """
    found = {}
    tokens = metadata.get(f'{_PREFIX}tokens')
    for name, theirs in (_NAMED | {'eot': 'eot'}).items():
        key = f'{_PREFIX}{theirs}_token_id'
        id = metadata.get(key)
        if id is None:
            continue
        if not isinstance(id, int) or id < 0 or (isinstance(tokens, list) and id >= len(tokens)):
            problem = f'{key} is {spelled(id)}, which is no id of the tokenizer'
            raise UserError(f'{where}: {problem}. Correct it, or download the file again.')
        found[name] = id
    return found


def notes(where: Path, metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """What was assumed."""
    if metadata.get(f'{_PREFIX}model') != 'gpt2' or metadata.get(f'{_PREFIX}pre', 'default') != 'default':
        return ()
    problem = f'{_PREFIX}pre does not say how the model splits a text'
    return (f'{where}: {problem}: it is split as in llama.cpp, and some ids may differ from those of training',)


def files(where: Path, metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """The tokenizer files, name -> content; none if the file holds no tokenizer.

    Raises:
        UserError: the tokenizer is of an unknown kind, or its parts do not fit together.
    """
    kind = metadata.get(f'{_PREFIX}model', 'no_vocab')
    if kind in ('no_vocab', 'none'):
        return {}
    if kind not in ('gpt2', 'llama', 't5'):
        problem = f'{_PREFIX}model is {spelled(kind)}, which is not converted; expected gpt2, llama or t5'
        raise UserError(f'{where}: {problem}. {_WITHOUT}')
    tokens = _tokens(where, metadata)
    named = {name: tokens[id] for name, id in ids(where, metadata).items()}
    pre = metadata.get(f'{_PREFIX}pre', 'default')
    adds = {'bos': kind == 'llama' or (kind == 'gpt2' and pre in _WHOLE_WORDS), 'eos': kind == 't5'}
    adds = {name: bool(metadata.get(f'{_PREFIX}add_{name}_token', default)) for name, default in adds.items()}
    adds = {name: does and name in named for name, does in adds.items()}
    settings: dict[str, Any] = {f'{name}_token': token for name, token in named.items() if name != 'eot'}
    settings |= {f'add_{name}_token': does for name, does in adds.items()}
    longest = metadata.get(f'{metadata.get("general.architecture")}.context_length')
    settings |= {} if longest is None else {'model_max_length': longest}
    made = {}
    if kind == 'gpt2':
        settings['tokenizer_class'] = 'PreTrainedTokenizerFast'
        made['tokenizer.json'] = _tokenizer_json(where, metadata, tokens, named, adds)
    else:
        made |= _sentencepiece(where, metadata, tokens, settings)
    template = metadata.get('tokenizer.chat_template')
    if isinstance(template, str):
        made['chat_template.jinja'] = template.encode()
    return made | {'tokenizer_config.json': json.dumps(settings, indent=2, sort_keys=True).encode()}


def _tokens(where: Path, metadata: Mapping[str, Any]) -> list[str]:
    tokens = metadata.get(f'{_PREFIX}tokens')
    if not isinstance(tokens, list) or not tokens:
        raise UserError(f'{where} has a tokenizer without {_PREFIX}tokens. Download it again, or set --vocabulary.')
    return tokens


def _types(where: Path, metadata: Mapping[str, Any], tokens: list[str]) -> list[int]:
    return _column(where, metadata, 'token_type', len(tokens), _NORMAL)


def _column(where: Path, metadata: Mapping[str, Any], name: str, count: int, default: Any) -> list[Any]:
    """A number for each token."""
    values = metadata.get(_PREFIX + name)
    if values is None:
        return [default] * count
    kinds = 'iu' if isinstance(default, int) else 'iuf'
    if not isinstance(values, np.ndarray) or values.dtype.kind not in kinds or len(values) != count:
        problem = f'{_PREFIX}{name} should have a number for each of the {count} tokens'
        raise UserError(f'{where}: {problem}. Download the file again, or set --vocabulary.')
    return values.tolist()


def _tokenizer_json(
    where: Path, metadata: Mapping[str, Any], tokens: list[str], named: Mapping[str, str], adds: Mapping[str, bool]
) -> bytes:
    """Byte-level BPE in the format of the `tokenizers` library."""
    pre = metadata.get(f'{_PREFIX}pre', 'default')
    if pre not in SPLITS:
        problem = f'{_PREFIX}pre is {spelled(pre)}, which is not converted; expected one of {", ".join(SPLITS)}'
        raise UserError(f'{where}: {problem}. {_WITHOUT}')
    merges = metadata.get(f'{_PREFIX}merges')
    if not isinstance(merges, list) or not all(isinstance(one, str) and one.count(' ') == 1 for one in merges):
        problem = f'{_PREFIX}merges should be a list of pairs of tokens'
        raise UserError(f'{where}: {problem}. Download the file again, or set --vocabulary.')
    types = _types(where, metadata, tokens)
    vocab = {token: id for id, token in enumerate(tokens) if types[id] != _UNUSED}
    if len(vocab) != sum(type != _UNUSED for type in types):
        raise UserError(f'{where}: {_PREFIX}tokens has a token twice. Download the file again, or set --vocabulary.')
    flags = {'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False}
    added = [
        {'id': id, 'content': token, **flags, 'special': types[id] == _CONTROL}
        for token, id in vocab.items()
        if types[id] in (_CONTROL, _USER_DEFINED)
    ]
    around = {name: [{'SpecialToken': {'id': named[name], 'type_id': 0}}] if adds[name] else [] for name in adds}
    a, b = ({'Sequence': {'id': name, 'type_id': 0}} for name in 'AB')
    splits = [
        {'type': 'Split', 'pattern': {'Regex': one}, 'behavior': 'Isolated', 'invert': False} for one in SPLITS[pre]
    ]
    in_bytes = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': False}
    known = {named[name]: vocab[named[name]] for name in adds if adds[name]}
    fields = {
        'version': '1.0',
        'truncation': None,
        'padding': None,
        'added_tokens': added,
        'normalizer': {'type': 'NFC'} if pre in _COMPOSED else None,
        'pre_tokenizer': {'type': 'Sequence', 'pretokenizers': [*splits, in_bytes]},
        'post_processor': {
            'type': 'TemplateProcessing',
            'single': [*around['bos'], a, *around['eos']],
            'pair': [*around['bos'], a, *around['eos'], b, *around['eos']],
            'special_tokens': {token: {'id': token, 'ids': [id], 'tokens': [token]} for token, id in known.items()},
        },
        'decoder': in_bytes,
        'model': {
            'type': 'BPE',
            'dropout': None,
            'unk_token': None,
            'continuing_subword_prefix': None,
            'end_of_word_suffix': None,
            'fuse_unk': False,
            'byte_fallback': False,
            'ignore_merges': pre in _WHOLE_WORDS,
            'vocab': vocab,
            'merges': [one.split(' ') for one in merges],
        },
    }
    return json.dumps(fields, ensure_ascii=False).encode()


def _sentencepiece(
    where: Path, metadata: Mapping[str, Any], tokens: list[str], settings: dict[str, Any]
) -> dict[str, bytes]:
    """The SentencePiece model; adds what it does not say to `settings`.

    Tokens that llama.cpp appends to fill the embedding are no pieces, and those of T5's sentinels are T5's.
    """
    from sentencepiece import sentencepiece_model_pb2

    unigram = metadata[f'{_PREFIX}model'] == 't5'
    types = _types(where, metadata, tokens)
    scores = _column(where, metadata, 'scores', len(tokens), 0.0)
    count = len(tokens)
    while count and types[count - 1] == _UNUSED and tokens[count - 1] == f'[PAD{count - 1}]':
        count -= 1
    if unigram and count < len(tokens):  # T5's sentinels are among the tokens that fill the embedding
        settings['extra_ids'] = min(T5_SENTINELS, len(tokens) - count)
    control = {'<pad>', '<s>', '</s>', *(settings.get(f'{name}_token') for name in ('bos', 'eos', 'unk', 'pad'))}
    added: dict[str, Any] = {}
    model = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]  # made at import
    for id, (token, score, type) in enumerate(zip(tokens[:count], scores, types)):
        if type == _USER_DEFINED:
            token = token.replace(' ', _SPACE)  # llama.cpp has these as they are in a text
        if type == _CONTROL and id and token not in control:  # an added token such as [INST], which a text may spell
            added[str(id)] = {'content': token, 'special': True}
            type = _NORMAL
        if not _NORMAL <= type <= _BYTE:
            problem = f'the token {token!r} has the type {type}, which is unknown'
            raise UserError(f'{where}: {problem}. Download the file again, or set --vocabulary.')
        model.pieces.add(piece=token, score=score, type=type)
    trainer, normalizer = model.trainer_spec, model.normalizer_spec
    trainer.model_type = trainer.UNIGRAM if unigram else trainer.BPE
    trainer.vocab_size = count
    trainer.byte_fallback = _BYTE in types
    for name in ('bos', 'eos', 'unk'):
        if f'{name}_token' in settings:
            setattr(trainer, f'{name}_piece', settings[f'{name}_token'])
    if _UNKNOWN in types:
        trainer.unk_piece = tokens[types.index(_UNKNOWN)]
    normalizer.name = 'nmt_nfkc' if unigram else 'identity'
    charsmap = metadata.get(f'{_PREFIX}precompiled_charsmap')
    normalizer.precompiled_charsmap = charsmap.tobytes() if isinstance(charsmap, np.ndarray) else b''
    normalizer.add_dummy_prefix = bool(metadata.get(f'{_PREFIX}add_space_prefix', True))
    normalizer.remove_extra_whitespaces = bool(metadata.get(f'{_PREFIX}remove_extra_whitespaces', unigram))
    if added:
        settings['added_tokens_decoder'] = added
    if unigram:
        return {'spiece.model': model.SerializeToString()}
    gemma = str(metadata.get('general.architecture')).startswith('gemma')
    settings['tokenizer_class'] = 'GemmaTokenizer' if gemma else 'LlamaTokenizer'
    return {'tokenizer.model': model.SerializeToString()}
