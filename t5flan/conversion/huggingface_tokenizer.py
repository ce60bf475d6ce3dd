"""The tokenizer files of a Hugging Face folder <-> a vocabulary."""

import base64
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from t5flan.conversion.huggingface_config import T5_FAMILY, parse_json
from t5flan.data.vocabulary.byte_level import ByteVocabulary, IdsVocabulary
from t5flan.data.vocabulary.sentencepiece_model import SentencePieceVocabulary
from t5flan.data.vocabulary.tokenizer_json import TokenizerJsonVocabulary
from t5flan.data.vocabulary.vocabulary import Conventions, Vocabulary
from t5flan.errors import UserError

T5_SENTINELS = 100
BYT5_SENTINELS = 125
IDS_ONLY = 'the result takes and returns token ids, not text. Set --vocabulary to add one.'
_SPACE = '\u2581'  # SentencePiece's visible space


def read_vocabulary(
    folder: Path, config: Mapping[str, Any], contents: Mapping[str, bytes] | None = None
) -> tuple[Vocabulary, tuple[str, ...]]:
    """The vocabulary of a folder, and notes about it; the folder is read only if `contents` is None.

    Which file defines the ids, where there are several:

    - A T5 has those of its SentencePiece model, from which its tokenizer.json was made, unless the two differ.
    - A decoder-only model has those of its tokenizer.json, as with AutoTokenizer (Llama 3's tokenizer.model is not a
      SentencePiece model). Without the library that reads it, an equal SentencePiece model serves.

    Tokens of added_tokens.json, `added_tokens_decoder` and tokenizer.json are added to it with their ids. Without
    tokenizer files the vocabulary is an `IdsVocabulary`.

    Raises:
        UserError: a file is broken, or an added token has an id that another token has.
    """
    files = _TokenizerFiles(folder, contents)
    kind = config['model_type']
    eos = _first_id(config.get('eos_token_id'), 1)
    start = _first_id(config.get('decoder_start_token_id' if kind in T5_FAMILY else 'bos_token_id'), 0)
    vocabulary, notes = _base_vocabulary(files, kind, eos, start)
    if vocabulary is None:
        expected = '' if contents is not None else ' (spiece.model, tokenizer.model or tokenizer.json)'
        note = f'{folder} has no tokenizer{expected}: {IDS_ONLY}'
        return IdsVocabulary(config['vocab_size'], eos, start), (note,)
    vocabulary = vocabulary.with_added_tokens(files.added_tokens(isinstance(vocabulary, ByteVocabulary)))
    vocabulary = vocabulary.with_added_tokens(files.named_without_ids())
    conventions, more = _conventions(files, vocabulary, kind)
    vocabulary = vocabulary.with_conventions(conventions)
    bos = conventions.named_tokens.get('bos_token')
    if kind not in T5_FAMILY and conventions.add_bos and bos and len(ids := vocabulary.encode_rendered(bos)) == 1:
        vocabulary.start_id = ids[0]
    return vocabulary, (*notes, *more)


def require_rows(folder: Path, vocabulary: Vocabulary, rows: int) -> None:
    """Raises a UserError if a vocabulary has ids without a row in the embedding."""
    if vocabulary.vocab_size > rows:
        problem = f'the tokenizer has {vocabulary.vocab_size} ids, but the embedding has {rows} rows'
        fitting = vocabulary.extra_ids - (vocabulary.vocab_size - rows)
        fix = f"Set 'extra_ids' in tokenizer_config.json to {fitting} or fewer"
        if fitting < 0:
            fix = 'Resize the embedding (resize_token_embeddings)'
        raise UserError(f'{folder}: {problem}. {fix}, or give the right tokenizer with --vocabulary.')


class _TokenizerFiles:
    """The tokenizer files of a folder, or their contents; JSON files are empty mappings where they are missing.

    Attributes:
        folder: the folder, or the file from which the contents were made, for messages.
        settings, tokenizer: the content of tokenizer_config.json and tokenizer.json.
        model: the path of the SentencePiece model, if there is one.
    """

    def __init__(self, folder: Path, contents: Mapping[str, bytes] | None) -> None:
        self.folder, self._contents = folder, contents
        self.settings = self._json('tokenizer_config.json')
        self.tokenizer = self._json('tokenizer.json')
        self._special_tokens_map = self._json('special_tokens_map.json')
        models = [name for name in ('spiece.model', 'tokenizer.model') if self.has(name)]
        self.model = self.path(models[0]) if models else None
        self.model_content = contents[models[0]] if models and contents is not None else None

    def has(self, name: str) -> bool:
        return (self.folder / name).is_file() if self._contents is None else name in self._contents

    def path(self, name: str) -> Path:
        """Where a file is, for messages: its own path, or the file from which it was made."""
        return self.folder / name if self._contents is None else self.folder

    def content(self, name: str) -> bytes:
        return self.path(name).read_bytes() if self._contents is None else self._contents[name]

    def _json(self, name: str) -> dict[str, Any]:
        return parse_json(self.path(name), self.content(name)) if self.has(name) else {}

    def added_tokens(self, is_bytes: bool) -> dict[str, int]:
        """Token -> id, in the order of the ids, of all files that list added tokens.

        With `is_bytes`, without sentinels: t5flan's are the last bytes, with which ByT5 was trained.
        """
        listed: list[tuple[Any, Any]] = list(self._json('added_tokens.json').items())
        decoder = self.settings.get('added_tokens_decoder') or {}
        pairs = decoder.items() if isinstance(decoder, dict) else [(None, decoder)]
        listed += [(one.get('content') if isinstance(one, dict) else one, id) for id, one in pairs]
        listed += [(one.get('content'), one.get('id')) for one in self.tokenizer.get('added_tokens') or ()]
        found: dict[str, int] = {}
        for token, id in listed:
            if not isinstance(token, str) or not str(id).isdecimal():
                problem = f'{self.folder}: an added token is {token!r} with the id {id!r}, expected text and a number'
                raise UserError(f'{problem}. Correct added_tokens.json or added_tokens_decoder.')
            if is_bytes and token.startswith('<extra_id_'):
                continue
            if found.setdefault(token, int(id)) != int(id):
                problem = f'{self.folder}: the added token {token!r} has the ids {found[token]} and {id}'
                raise UserError(f'{problem}. Correct added_tokens.json or tokenizer_config.json.')
        return dict(sorted(found.items(), key=lambda pair: pair[1]))

    def named_tokens(self) -> dict[str, str]:
        """'bos_token' -> its spelling, and so on."""
        values = {name: self._special_tokens_map.get(name) for name in _NAMED}
        values |= {name: self.settings[name] for name in _NAMED if self.settings.get(name) is not None}
        return {name: text for name, value in values.items() if (text := _spelling(value))}

    def named_without_ids(self) -> list[str]:
        """Further special tokens, which transformers appends if the tokenizer lacks them."""
        lists = [files.get(name) for files in (self._special_tokens_map, self.settings) for name in _FURTHER]
        values = [value for one in lists for value in (one.values() if isinstance(one, dict) else one or ())]
        return [text for value in values if (text := _spelling(value))]

    def chat_template(self) -> tuple[str | None, tuple[str, ...]]:
        """The template, and notes; a file comes before a setting, as in transformers."""
        name = 'chat_template.jinja'
        template = self.content(name).decode('utf-8') if self.has(name) else self.settings.get('chat_template')
        if isinstance(template, list):
            named = {one.get('name'): one.get('template') for one in template if isinstance(one, dict)}
            others = ', '.join(str(name) for name in named if name != 'default')
            note = f'{self.folder}: of its chat templates, {others} are not used'
            template, notes = named.get('default'), (note,) if others else ()
            return (template if isinstance(template, str) else None), notes
        return (template if isinstance(template, str) else None), ()


_NAMED = tuple(f'{name}_token' for name in ('bos', 'eos', 'unk', 'sep', 'pad', 'cls', 'mask'))
_FURTHER = ('additional_special_tokens', 'extra_special_tokens')


def _spelling(value: Any) -> str | None:
    """A token of a JSON file: its text, or an object with its text and flags."""
    text = value.get('content') if isinstance(value, dict) else value
    return text if isinstance(text, str) and text else None


def _base_vocabulary(
    files: _TokenizerFiles, kind: str, eos: int, start: int
) -> tuple[SentencePieceVocabulary | ByteVocabulary | TokenizerJsonVocabulary | None, list[str]]:
    """The vocabulary without added tokens, and notes; None without tokenizer files."""
    sentencepiece, notes = None, []
    if files.model is not None:
        try:
            sentencepiece = _sentencepiece_vocabulary(files, kind, start)
        except UserError:
            if not files.tokenizer:
                raise
    if files.tokenizer and not str(files.settings.get('tokenizer_class', '')).startswith('ByT5'):
        equal = sentencepiece is not None and _same_ids(sentencepiece, files.tokenizer)
        has_library = importlib.util.find_spec('tokenizers') is not None
        ours = 'mode_tokens' in files.settings  # t5flan wrote the folder: the model and the settings say all
        if files.model is not None and not equal:
            what = 'other ids' if sentencepiece else 'no SentencePiece pieces'
            notes.append(f'{files.folder}: tokenizer.json defines the ids; {files.model.name} has {what}')
        if not equal or (kind not in T5_FAMILY and has_library and not ours):
            name = 'tokenizer.json'
            return TokenizerJsonVocabulary(files.path(name), eos, start, content=files.content(name)), notes
        if kind not in T5_FAMILY and not ours:
            assert files.model is not None  # because of `equal`
            fix = "pip install 't5flan[convert]' and convert again for exactly the tokens of transformers"
            notes.append(f'{files.folder}: {files.model.name} is used, which has the ids of tokenizer.json; {fix}')
    if sentencepiece is not None:
        return sentencepiece, notes
    is_bytes = str(files.settings.get('tokenizer_class', '')).startswith('ByT5')
    return (ByteVocabulary() if is_bytes else None), notes


def _sentencepiece_vocabulary(files: _TokenizerFiles, kind: str, start: int) -> SentencePieceVocabulary:
    settings, model = files.settings, files.model
    assert model is not None
    sentinels = settings.get('extra_ids', T5_SENTINELS if kind in T5_FAMILY else 0)
    content = files.model_content
    made = SentencePieceVocabulary(model, sentinels, settings.get('mode_tokens', ()), model=content, start_id=start)
    made = made.without_duplicate_sentinels()
    listed = {token: id for token, id in files.added_tokens(False).items() if token.startswith('<extra_id_')}
    if made.extra_ids and any(made.encode(token) != [id] for token, id in listed.items()):
        return SentencePieceVocabulary(
            model, 0, made.mode_tokens, model=content, start_id=start
        )  # the file's list gives their ids
    return made


def _same_ids(vocabulary: SentencePieceVocabulary, tokenizer: Mapping[str, Any]) -> bool:
    """Whether a tokenizer.json gives every piece of a SentencePiece model the same id."""
    model = tokenizer.get('model')
    pieces = model.get('vocab') if isinstance(model, dict) else None
    if isinstance(pieces, list):
        theirs = {id: one[0] for id, one in enumerate(pieces)}
    else:
        theirs = {id: piece for piece, id in (pieces or {}).items()}
    theirs |= {one.get('id'): one.get('content') for one in tokenizer.get('added_tokens') or ()}
    return all(theirs.get(id) == vocabulary.piece(id) for id in range(vocabulary.base_size))


def _conventions(files: _TokenizerFiles, vocabulary: Vocabulary, kind: str) -> tuple[Conventions, tuple[str, ...]]:
    """What the tokenizer adds to a text, and notes; a tokenizer.json's post-processor decides, as in transformers."""
    named = files.named_tokens()
    template, notes = files.chat_template()
    if isinstance(vocabulary, SentencePieceVocabulary):
        bos = {'bos_token': vocabulary.piece(vocabulary.start_id)} if vocabulary.start_id else {}
        named = bos | {'eos_token': vocabulary.piece(vocabulary.eos_id)} | named
    if kind in T5_FAMILY:
        return Conventions(chat_template=template, named_tokens=named), notes
    asked = {key: bool(files.settings.get(key, key == 'add_bos_token')) for key in ('add_bos_token', 'add_eos_token')}
    if not files.tokenizer:  # Llama's and Gemma's SentencePiece tokenizers
        return Conventions(asked['add_bos_token'], asked['add_eos_token'], template, named), notes
    before, after = _added_around(files.tokenizer.get('post_processor'))
    add_bos, add_eos = bool(before), bool(after)
    named |= {'bos_token': before[-1]} if before and 'bos_token' not in named else {}
    if len(before) > 1:
        notes = (*notes, f'{files.folder}: of the tokens before a text ({", ".join(before)}) only the last is added')
    for key, does in (('add_bos_token', add_bos), ('add_eos_token', add_eos)):
        if key in files.settings and asked[key] != does:
            acts = 'adds one' if does else 'adds none'
            note = f'{files.folder}: {key} is {asked[key]}, but tokenizer.json {acts}, which counts as in transformers'
            notes = (*notes, note)
    return Conventions(add_bos, add_eos, template, named), notes


def _added_around(processor: Any) -> tuple[list[str], list[str]]:
    """The tokens that the post-processor of a tokenizer.json puts before and after a text."""
    if not isinstance(processor, dict):
        return [], []
    if processor.get('type') == 'Sequence':
        parts = [_added_around(one) for one in processor.get('processors') or ()]
        return [token for before, _ in reversed(parts) for token in before], [t for _, after in parts for t in after]
    if processor.get('type') in ('RobertaProcessing', 'BertProcessing'):
        return [processor['cls'][0]], [processor['sep'][0]]
    single = [one for one in processor.get('single') or () if isinstance(one, dict)]
    text = next((i for i, one in enumerate(single) if 'Sequence' in one), len(single))
    tokens = lambda part: [one['SpecialToken']['id'] for one in part if 'SpecialToken' in one]
    return tokens(single[:text]), tokens(single[text:])


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
    if vocabulary.conventions.chat_template is not None:
        files['chat_template.jinja'] = vocabulary.conventions.chat_template.encode()
    if isinstance(vocabulary, ByteVocabulary):
        tokens = {'eos_token': '</s>', 'pad_token': '<pad>', 'unk_token': '<unk>'}
        config = {
            'tokenizer_class': 'ByT5Tokenizer',
            'extra_ids': BYT5_SENTINELS,
            **tokens,
            **_added_decoder(vocabulary, strips=False),
        }
        note = (
            'ByT5Tokenizer writes the ids from 259 up as <extra_id_0> and so on; in t5flan these are the ids from 258 '
            'down, the sentinels that ByT5 was trained with'
        )
        other = ', '.join(token for token, id in vocabulary.added_tokens.items() if id < 259 + BYT5_SENTINELS)
        notes = [note] + [f'ByT5Tokenizer gives {other} other ids: they were not kept'] * bool(other)
        return files | {'tokenizer_config.json': _json(config)}, notes
    if isinstance(vocabulary, SentencePieceVocabulary):
        return files | _sentencepiece_files(vocabulary, kind), []
    if isinstance(vocabulary, TokenizerJsonVocabulary):
        files['tokenizer.json'] = vocabulary.content
        spelled = {'eos_token': vocabulary.special_token(vocabulary.eos_id)}
        spelled |= {'bos_token': vocabulary.special_token(vocabulary.start_id)} if kind not in T5_FAMILY else {}
        around = {name: token for name, token in spelled.items() if token}
        around |= vocabulary.conventions.named_tokens if kind in T5_FAMILY else _around(vocabulary)
        files['tokenizer_config.json'] = _json({'tokenizer_class': 'PreTrainedTokenizerFast', **around})
        return files, []
    return files, ['the checkpoint has no vocabulary: the folder gets no tokenizer']


def _sentencepiece_files(vocabulary: SentencePieceVocabulary, kind: str) -> dict[str, bytes]:
    model = vocabulary.proto()
    piece = vocabulary.piece
    added = _added_decoder(vocabulary, strips=not model.normalizer_spec.remove_extra_whitespaces)
    config: dict[str, Any] = {'eos_token': piece(vocabulary.eos_id), 'unk_token': piece(vocabulary.unk_id)}
    if kind not in T5_FAMILY and model.trainer_spec.model_type != model.trainer_spec.UNIGRAM:
        config |= {
            'tokenizer_class': 'GemmaTokenizer' if kind.startswith('gemma') else 'LlamaTokenizer',
            **added,
            **({'bos_token': piece(vocabulary.start_id)} | _around(vocabulary)),
        }
        return {'tokenizer.model': vocabulary.model, 'tokenizer_config.json': _json(config)}
    config |= {
        'tokenizer_class': 'PreTrainedTokenizerFast',
        'extra_ids': vocabulary.extra_ids,
        'mode_tokens': list(vocabulary.mode_tokens),
        'pad_token': piece(0),
        **added,
        **vocabulary.conventions.named_tokens,
    }
    if kind not in T5_FAMILY:
        config |= {'bos_token': piece(vocabulary.start_id)} | _around(vocabulary)
    files = {'spiece.model': vocabulary.model}
    if kind in T5_FAMILY and not vocabulary.mode_tokens and model.normalizer_spec.remove_extra_whitespaces:
        config['tokenizer_class'] = 'T5Tokenizer'  # assumes such a model; it ignores other whitespace settings
    else:
        files['tokenizer.json'] = _tokenizer_json(vocabulary, model, add_eos=kind in T5_FAMILY)
    return files | {'tokenizer_config.json': _json(config)}


def _around(vocabulary: Vocabulary) -> dict[str, Any]:
    """The settings of tokenizer_config.json for what is added to a text."""
    conventions = vocabulary.conventions
    return {
        'add_bos_token': conventions.add_bos,
        'add_eos_token': conventions.add_eos,
        **conventions.named_tokens,
    }


def _added_decoder(vocabulary: Vocabulary, strips: bool) -> dict[str, Any]:
    """`added_tokens_decoder` of tokenizer_config.json, with the added tokens and their ids.

    With `strips`, they take the spaces around them.
    """
    flags = {'special': True, 'single_word': False, 'normalized': False, 'lstrip': strips, 'rstrip': strips}
    added = {str(id): {'content': token, **flags} for token, id in vocabulary.added_tokens.items()}
    return {'added_tokens_decoder': added} if added else {}


def _tokenizer_json(vocabulary: SentencePieceVocabulary, model: Any, add_eos: bool) -> bytes:
    """A SentencePiece unigram model, with sentinels and mode tokens, in the format of the `tokenizers` library.

    With `add_eos` it adds an end of sequence after a text (an encoder's input), else the start token before it.
    """
    squeezed = model.normalizer_spec.remove_extra_whitespaces
    ids = range(vocabulary.base_size, vocabulary.vocab_size)
    specials = [vocabulary.special_token(id) or f'<unused_id_{id}>' for id in ids]
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
        'post_processor': _post_processor(vocabulary, for_encoder=add_eos),
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
    named = [(id, token) for id, token in enumerate(specials, vocabulary.base_size) if vocabulary.special_token(id)]
    tokens = sorted([*control, *named])
    return [{'id': id, 'content': token, **flags, **strips(id)} for id, token in tokens]


def _post_processor(vocabulary: SentencePieceVocabulary, for_encoder: bool) -> dict[str, Any]:
    """Adds the end of sequence after an encoder's text; around a decoder's text, what the conventions say."""
    conventions = vocabulary.conventions
    before = vocabulary.start_id if conventions.add_bos and not for_encoder else None
    after = vocabulary.eos_id if conventions.add_eos or for_encoder else None
    added = {id: vocabulary.piece(id) for id in (before, after) if id is not None}
    special = lambda id: [] if id is None else [{'SpecialToken': {'id': added[id], 'type_id': 0}}]
    a, b = ({'Sequence': {'id': name, 'type_id': 0}} for name in 'AB')
    return {
        'type': 'TemplateProcessing',
        'single': [*special(before), a, *special(after)],
        'pair': [*special(before), a, *special(after), b, *special(after)],
        'special_tokens': {token: {'id': token, 'ids': [id], 'tokens': [token]} for id, token in added.items()},
    }


def _json(fields: Mapping[str, Any]) -> bytes:
    return (json.dumps(fields, indent=2, sort_keys=True) + '\n').encode()
