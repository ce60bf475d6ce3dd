"""Text <-> token ids: the interface of all vocabularies, with sentinels and mode tokens on top of pieces or bytes.

Ids, as in T5 (arXiv:1910.10683): 0 is padding (and the decoder's start token), then the pieces of the model or the
bytes, then `extra_ids` sentinels counting down (`<extra_id_0>` is the last of them), then the mode tokens, then other
added tokens. With T5's model of 32,000 pieces, `<extra_id_0>` is 32099 with or without mode tokens. A model may also
hold its sentinels as pieces (mT5, UMT5); then none are appended.

The same text becomes the same ids in training, evaluation, generation and scoring, as in SeqIO and Hugging Face:

    'fill <extra_id_0> in [S2S]'   sentinels, mode tokens and added tokens spelled in a text are their ids
    'the end </s>'                 end of sequence and padding are ordinary characters: no text can end a sequence
                                   (SeqIO's rule; transformers' T5Tokenizer reads '</s>' as id 1)

Two kinds of text read control tokens such as '</s>' as ids too, exactly as transformers does: the output of a chat
template (`encode_rendered`), and all text of a tokenizer.json, whose control tokens (<|im_end|>) are added tokens.

Nothing here imports TensorFlow or SeqIO, so that a checkpoint folder loads without them.
"""

import abc
import copy
import dataclasses
import functools
import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from t5flan.errors import UserError
from t5flan.files import to_path, write_json, write_whole

PAD_ID = 0
DESCRIPTION = 'vocabulary.json'
MODEL = 'vocabulary.model'
TOKENIZER = 'tokenizer.json'
CHAT_TEMPLATE = 'chat_template.jinja'
HOW_TO_ADD_SENTINELS = 'Set DataConfig.extra_ids; `t5flan convert --add_sentinels=100` adds them to a checkpoint.'
HOW_TO_ADD = 'Set DataConfig.mode_tokens; `t5flan convert --add_tokens=A,B` adds tokens to a checkpoint.'
_MOST_HINTS = 16  # with more, one search for all tokens is faster than one for each


@dataclasses.dataclass(frozen=True)
class Conventions:
    """What a tokenizer puts around a text and how it words a conversation; Hugging Face's tokenizer_config.json.

    The defaults are those of vocabularies without such a file.
    """

    add_bos: bool = True
    """Whether a decoder-only model reads the start token first. An encoder-decoder's decoder always does."""
    add_eos: bool = False
    """Whether a prompt ends with end of sequence even if the format does not require it."""
    chat_template: str | None = None
    """The jinja template of a conversation, see prompting/chat_template.py."""
    named_tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Name -> token, which the template may use: {'bos_token': '<s>', 'eos_token': '</s>'}."""

    def to_dict(self) -> dict[str, Any]:
        """The fields that differ from the defaults, without the template, which has a file of its own."""
        fields = {'add_bos': self.add_bos, 'add_eos': self.add_eos, 'named_tokens': dict(self.named_tokens)}
        defaults = dataclasses.asdict(Conventions())
        return {name: value for name, value in fields.items() if value != defaults[name]}


class Vocabulary(abc.ABC):
    """Encodes text to ids and decodes ids to text.

    Attributes:
        base_size: number of pieces or bytes with the special ids among them, without sentinels and mode tokens.
        extra_ids: number of sentinels that were appended to the pieces.
        mode_tokens: e.g. ('[NLU]', '[NLG]', '[S2S]'); each has one id.
        added_tokens: other added tokens and their ids.
        conventions: what the tokenizer adds around a text.
    """

    kind: str
    """The vocabulary's kind in its description file."""
    pad_id = PAD_ID
    eos_id: int
    unk_id: int
    start_id = PAD_ID
    """The decoder's first input: padding as in T5, or the beginning of sequence of Llama and Gemma."""
    sentinel_ids: tuple[int, ...]
    """The ids of `<extra_id_0>`, `<extra_id_1>`, ..., appended or among the pieces."""
    conventions = Conventions()
    _markers: tuple[str, ...] = ()
    """Tokens that are markers besides the mode tokens."""
    _low_specials_are_text = False
    """Whether special ids below `base_size` (ByT5's sentinels) are decoded as ordinary ids."""

    def __init__(
        self,
        base_size: int,
        extra_ids: int,
        mode_tokens: Sequence[str],
        own_sentinels: Mapping[str, int] | None = None,
        added_tokens: Mapping[str, int] | None = None,
    ) -> None:
        """Args are the attributes; `own_sentinels` are those among the pieces, by their names `<extra_id_k>`."""
        if len(set(mode_tokens)) != len(mode_tokens) or '' in mode_tokens:
            raise UserError(f'mode_tokens={tuple(mode_tokens)} must be different words. Set DataConfig.mode_tokens.')
        self.base_size, self.extra_ids, self.mode_tokens = base_size, extra_ids, tuple(mode_tokens)
        self.added_tokens = dict(added_tokens or {})
        self._own_sentinels = dict(own_sentinels or {})
        ids = {} if extra_ids else dict(self._own_sentinels)
        ids |= {f'<extra_id_{k}>': base_size + extra_ids - 1 - k for k in range(extra_ids)}
        ids |= {token: base_size + extra_ids + i for i, token in enumerate(self.mode_tokens)}
        self._id_of_special = ids | self.added_tokens
        self.sentinel_ids = _sentinel_ids(self._id_of_special)
        lowest = base_size if self._low_specials_are_text else 0
        self._special_of_id = {i: token for token, i in self._id_of_special.items() if i >= lowest}
        self._low_ids = np.array([i for i in self._special_of_id if i < base_size], np.int64)

    @functools.cached_property
    def _find_special(self) -> re.Pattern[str] | None:
        return _finder(self._id_of_special)

    @property
    def loses_text(self) -> bool:
        """Whether characters without a piece become the unknown id; not with byte fallback."""
        return False

    def lacks(self, character: str) -> bool:
        """Whether a character has no piece: it becomes the unknown id or, with byte fallback, bytes."""
        return self.loses_text and self.unk_id in self.encode_literally([character])[0]

    @property
    def vocab_size(self) -> int:
        """Pieces, sentinels, mode tokens and added tokens; a model's embedding has at least this many rows."""
        size = self.base_size + self.extra_ids + len(self.mode_tokens)
        return max([size, *(id + 1 for id in self.added_tokens.values())])

    @property
    def sentinel_count(self) -> int:
        """Number of sentinels that span corruption can use."""
        return len(self.sentinel_ids)

    def sentinel_id(self, k: int) -> int:
        """The id of `<extra_id_k>`; raises a UserError if there are at most k sentinels."""
        if not 0 <= k < self.sentinel_count:
            count = self.sentinel_count
            raise UserError(f'sentinel {k} is needed, the vocabulary has {count}. {HOW_TO_ADD_SENTINELS}')
        return self.sentinel_ids[k]

    def special_token(self, id: int) -> str | None:
        """The spelling of a sentinel, mode token or added token; None for other ids."""
        return self._special_of_id.get(id)

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """The tokens that may stand before a text: mode tokens and added tokens, without sentinels."""
        return tuple(token for token in self._id_of_special if not re.fullmatch(r'<extra_id_\d+>', token))

    @functools.cached_property
    def marker_ids(self) -> tuple[int, ...]:
        """The ids that no objective may mask, in rising order: mode tokens, those that DataConfig.mode_tokens names.

        Other added tokens (a newline, '<table>') are words of the text.
        """
        return tuple(sorted({self._id_of_special[token] for token in (*self.mode_tokens, *self._markers)}))

    def with_markers(self, tokens: Iterable[str]) -> Self:
        """The same ids, with more of its control tokens as markers."""
        made = copy.copy(self)
        made.__dict__.pop('marker_ids', None)
        made._markers = (*self._markers, *tokens)
        return made

    def is_special(self, id: int) -> bool:
        """Whether an answer leaves the id out (transformers' `skip_special_tokens`): a sentinel, an added token, ..."""
        return id in (self.pad_id, self.eos_id) or id in self._special_of_id

    def mode_token_id(self, token: str) -> int:
        """The id of a mode token such as '[NLU]'; raises a UserError if the vocabulary lacks it."""
        if token not in self.control_tokens:
            raise UserError(f'mode token {token!r} is not one of {self.control_tokens}. {HOW_TO_ADD}')
        return self._id_of_special[token]

    # -- Text to ids ------------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without end of sequence."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many texts at once; special tokens spelled in a text are their ids."""
        finder = self._find_special
        if finder is None or not self._may_spell_special(texts):
            return self.encode_literally(texts)
        special = [i for i, text in enumerate(texts) if finder.search(text)]
        ids: list[list[int]] = [[]] * len(texts)
        plain = sorted(set(range(len(texts))) - set(special))
        for i, one in zip(plain, self.encode_literally([texts[i] for i in plain]), strict=True):
            ids[i] = one
        for i in special:
            ids[i] = self._encode_split(texts[i], finder, self._id_of_special)
        return ids

    def _may_spell_special(self, texts: Sequence[str]) -> bool:
        """Whether a text may have a special token: most have none, and few substring searches in all at once tell."""
        joined = '\n'.join(texts)
        return any(hint in joined for hint in self._hints)

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of `encode_batch` as int32 arrays, which some vocabularies make without lists of Python numbers."""
        return [np.array(ids, np.int32) for ids in self.encode_batch(texts)]

    @functools.cached_property
    def _hints(self) -> tuple[str, ...]:
        """Texts with a special token contain one of these."""
        hints = {re.sub(r'^<extra_id_\d+>$', '<extra_id_', token) for token in self._id_of_special}
        return tuple(hints) if len(hints) <= _MOST_HINTS else ('',)

    def encode_rendered(self, text: str) -> list[int]:
        """The ids of a chat template's output, in which control tokens such as '</s>' are their ids too."""
        finder, ids = self._rendered_specials
        return self._encode_split(text, finder, ids) if finder else self.encode(text)

    def rendered_tokens_before(self, text: str, places: Sequence[int]) -> list[int]:
        """How many tokens of `encode_rendered(text)` lie before each place, a number of characters.

        Where a token reaches across a place, those before it are counted.
        """
        ids, parts = self.encode_rendered(text), [self.encode_rendered(text[:place]) for place in places]
        return [next((i for i, (a, b) in enumerate(zip(ids, part)) if a != b), len(part)) for part in parts]

    @functools.cached_property
    def _rendered_specials(self) -> tuple[re.Pattern[str] | None, dict[str, int]]:
        ids = self._control_tokens() | self._id_of_special
        return _finder(ids), ids

    def _control_tokens(self) -> dict[str, int]:
        """Token -> id of the tokens that only templates spell."""
        return {}

    @property
    def turn_end_id(self) -> int:
        """The id that ends a reply in a conversation: the tokenizer's end of sequence, if it differs from the model's.

        Llama 3's chat models end a reply with <|eot_id|>, their base model ends a text with <|end_of_text|>.
        """
        named = self.conventions.named_tokens.get('eos_token')
        ids = self.encode_rendered(named) if named else []
        return ids[0] if len(ids) == 1 else self.eos_id

    def _encode_split(self, text: str, finder: re.Pattern[str], id_of: Mapping[str, int]) -> list[int]:
        ids: list[int] = []
        parts = finder.split(text)
        for i, part in enumerate(parts):
            if i % 2:
                ids.append(id_of[part])
            elif part:
                ids.extend(self._encode_part(part, first=i == 0, last=i == len(parts) - 1))
        return ids

    def _encode_part(self, text: str, first: bool, last: bool) -> list[int]:
        """The ids of the text between two special tokens."""
        return self.encode_literally([text])[0]

    @abc.abstractmethod
    def encode_literally(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many texts at once; spelled special tokens are ordinary characters."""

    # -- Ids to text ------------------------------------------------------------------------------------------------

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` up to the first end of sequence, without padding, special tokens spelled out.

        Ids beyond the vocabulary (a model's embedding is often padded to a rounder size) become U+FFFD.
        """
        ids_T = self._before_eos(ids)
        ids_T = ids_T[ids_T != self.pad_id]
        is_cut_T = (ids_T >= self.base_size) | (ids_T < 0)
        cuts = np.flatnonzero(is_cut_T | np.isin(ids_T, self._low_ids) if self._low_ids.size else is_cut_T)
        if not cuts.size:
            return self._decode_pieces(ids_T.tolist(), first=True)
        text, start = '', 0
        for cut in [*cuts.tolist(), len(ids_T)]:
            run = ids_T[start:cut].tolist()
            if run:
                text += self._decode_pieces(run, first=start == 0)
            if cut < len(ids_T):
                text += self._spell(text, self._special_of_id.get(int(ids_T[cut]), '\ufffd'))
            start = cut + 1
        return text

    def spell(self, ids: Iterable[int]) -> str:
        """All text of a prompt's `ids`; unlike `decode`, ends of sequence inside it are spelled and end nothing."""
        ids_T = np.asarray(list(ids), np.int64)
        runs = np.split(ids_T, np.flatnonzero(ids_T == self.eos_id))
        texts = [self.decode(run[i > 0 :]) for i, run in enumerate(runs)]
        return (self.special_token(self.eos_id) or '</s>').join(texts)

    def _before_eos(self, ids: Iterable[int]) -> np.ndarray:
        """The ids before the first end of sequence. int64 [T]."""
        ids_T = np.asarray(ids if isinstance(ids, (np.ndarray, list, tuple)) else list(ids), dtype=np.int64).reshape(-1)
        ends = np.flatnonzero(ids_T == self.eos_id)
        return ids_T[: ends[0]] if ends.size else ids_T

    def _spell(self, before: str, special: str) -> str:
        """A special token as it is written after the text `before`."""
        return special

    @abc.abstractmethod
    def _decode_pieces(self, ids: list[int], first: bool) -> str:
        """The text of ordinary ids; `first` where they begin the whole text."""

    # -- Changed copies ---------------------------------------------------------------------------------------------

    def with_conventions(self, conventions: Conventions) -> Self:
        """The same ids with other conventions."""
        made = copy.copy(self)
        made.conventions = conventions
        return made

    def with_added_tokens(self, tokens: Iterable[str] | Mapping[str, int]) -> Self:
        """The vocabulary with more tokens; all others keep their ids.

        Args:
            tokens: tokens to append, or token -> id. Tokens that the vocabulary has already keep their ids.

        Raises:
            UserError: a token is empty, or the given id is not free.
        """
        added: dict[str, int] = {}
        for token in tokens:
            if not isinstance(token, str) or not token:
                raise UserError(f'added token {token!r}, expected a non-empty string. Set DataConfig.added_tokens.')
            ids = self._id_of_special | added
            free = max(self.vocab_size, 1 + max(added.values(), default=0))
            is_special, piece = token in ids, self._id_of_piece(token)
            found = ids.get(token, piece)
            id = tokens[token] if isinstance(tokens, Mapping) else free if found is None else found
            if id != found and (found is not None or id < self.base_size or id in ids.values()):
                here = f'the token has the id {found}' if found is not None else 'the id is taken'
                fix = 'Correct added_tokens.json or tokenizer_config.json.'
                raise UserError(f'added token {token!r} is given the id {id}, but {here} in the vocabulary. {fix}')
            if not is_special and (piece is None or self._is_ordinary(token)):
                added[token] = id
        return self._extended(added) if added else self

    def _id_of_piece(self, token: str) -> int | None:
        """The id that the pieces already give to a whole token; None if it has none."""
        return None

    def _is_ordinary(self, token: str) -> bool:
        """Whether a piece is neither a control token nor one that is always found in a text."""
        return True

    def _extended(self, added: Mapping[str, int]) -> Self:
        made = copy.copy(self)
        for cached in ('_find_special', '_hints', '_rendered_specials', 'marker_ids'):
            made.__dict__.pop(cached, None)
        Vocabulary.__init__(
            made, self.base_size, self.extra_ids, self.mode_tokens, self._own_sentinels, self.added_tokens | dict(added)
        )
        return made

    def tokens_added_to(self, old: 'Vocabulary') -> tuple[str, ...] | None:
        """The tokens by which this vocabulary extends `old`, in the order of their ids; None if it is no extension."""
        tokens = {token: id for token, id in self.added_tokens.items() if token not in old.added_tokens}
        tokens |= {token: id for id, token in self._special_of_id.items() if id >= old.vocab_size}
        try:
            same = old.with_added_tokens(tokens).fingerprint == self.fingerprint
        except UserError:
            return None
        return tuple(sorted(tokens, key=lambda token: tokens[token])) if same else None

    # -- Files and identity -----------------------------------------------------------------------------------------

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the files that `load_vocabulary(folder)` reads."""
        write_json(to_path(folder) / DESCRIPTION, self._description())
        self._save_template(folder)

    def _save_template(self, folder: str | os.PathLike) -> None:
        if self.conventions.chat_template is not None:
            write_whole(to_path(folder) / CHAT_TEMPLATE, self.conventions.chat_template)

    def _description(self, **more: Any) -> dict[str, Any]:
        sizes = {'extra_ids': self.extra_ids, 'mode_tokens': list(self.mode_tokens), 'vocab_size': self.vocab_size}
        added = {'added_tokens': self.added_tokens} if self.added_tokens else {}
        start = {'start_id': self.start_id} if self.start_id else {}
        return {'kind': self.kind, **more, **sizes} | start | added | self.conventions.to_dict()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self._whole_identity() == other._whole_identity()

    def __hash__(self) -> int:
        return hash(self._whole_identity())

    @property
    def fingerprint(self) -> str:
        """A hash that only equal vocabularies share; every checkpoint folder holds it."""
        return hashlib.sha256(repr(self._whole_identity()).encode()).hexdigest()[:16]

    def _whole_identity(self) -> tuple:
        """What decides the ids of a text. A chat template does not, so that it can be changed after training."""
        added = (('added', *sorted(self.added_tokens.items())),) if self.added_tokens else ()
        around = self.conventions.add_bos, self.conventions.add_eos
        return self._identity() + added + ((('around', *around),) if around != (True, False) else ())

    @abc.abstractmethod
    def _identity(self) -> tuple:
        """The values that equal vocabularies share."""


def _finder(ids: Mapping[str, int]) -> re.Pattern[str] | None:
    """Finds special tokens in a text, the longest where several match."""
    longest_first = sorted(ids, key=len, reverse=True)
    return re.compile('(' + '|'.join(map(re.escape, longest_first)) + ')') if longest_first else None


def _sentinel_ids(ids: Mapping[str, int]) -> tuple[int, ...]:
    """The ids of `<extra_id_0>`, `<extra_id_1>` and so on, as far as they go."""
    found: list[int] = []
    while (id := ids.get(f'<extra_id_{len(found)}>')) is not None:
        found.append(id)
    return tuple(found)
