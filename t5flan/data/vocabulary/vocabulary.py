"""Text <-> token ids: the interface of all vocabularies, with sentinels and mode tokens on top of pieces or bytes.

Ids, as in T5 (arXiv:1910.10683): 0 is padding (and the decoder's start token), then the pieces of the model or the
bytes, then `extra_ids` sentinels counting down (`<extra_id_0>` is the last of them), then the mode tokens. With T5's
model of 32,000 pieces, `<extra_id_0>` is 32099 with or without mode tokens.

Nothing here imports TensorFlow or SeqIO, so that a checkpoint folder loads without them.
"""

import abc
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from t5flan.errors import UserError
from t5flan.files import to_path, write_json

PAD_ID = 0
DESCRIPTION = 'vocabulary.json'
MODEL = 'vocabulary.model'
TOKENIZER = 'tokenizer.json'


class Vocabulary(abc.ABC):
    """Encodes text to ids and decodes ids to text.

    Attributes:
        base_size: number of pieces or bytes with the special ids among them, without sentinels and mode tokens.
        extra_ids: number of sentinels.
        mode_tokens: e.g. ('[NLU]', '[NLG]', '[S2S]'); each has one id.
    """

    kind: str
    """The vocabulary's kind in its description file."""
    pad_id = PAD_ID
    eos_id: int
    unk_id: int
    start_id = PAD_ID
    """The decoder's first input: padding as in T5, or the beginning of sequence of Llama and Gemma."""

    def __init__(self, base_size: int, extra_ids: int, mode_tokens: Sequence[str]) -> None:
        if len(set(mode_tokens)) != len(mode_tokens) or '' in mode_tokens:
            raise UserError(f'mode_tokens={tuple(mode_tokens)} must be different words. Set DataConfig.mode_tokens.')
        self.base_size, self.extra_ids, self.mode_tokens = base_size, extra_ids, tuple(mode_tokens)
        self._id_of_special = {f'<extra_id_{k}>': self._sentinel(k) for k in range(self.sentinel_count)}
        self._id_of_special |= {token: base_size + extra_ids + i for i, token in enumerate(self.mode_tokens)}
        self._special_of_id = {i: token for token, i in self._id_of_special.items() if i >= base_size}
        longest_first = sorted(self._id_of_special, key=len, reverse=True)
        self._specials = re.compile('(' + '|'.join(map(re.escape, longest_first)) + ')') if longest_first else None

    @property
    def vocab_size(self) -> int:
        """Pieces, sentinels and mode tokens; a model's embedding has at least this many rows."""
        return self.base_size + self.extra_ids + len(self.mode_tokens)

    @property
    def sentinel_count(self) -> int:
        """Number of sentinels that span corruption can use."""
        return self.extra_ids

    def _sentinel(self, k: int) -> int:
        return self.base_size + self.extra_ids - 1 - k

    def sentinel_id(self, k: int) -> int:
        """The id of `<extra_id_k>`; raises a UserError if there are at most k sentinels."""
        if not 0 <= k < self.sentinel_count:
            count = self.sentinel_count
            raise UserError(f'sentinel {k} is needed, the vocabulary has {count}. Set DataConfig.extra_ids.')
        return self._sentinel(k)

    def special_token(self, id: int) -> str:
        """The spelling of a sentinel or mode token."""
        return self._special_of_id[id]

    def mode_token_id(self, token: str) -> int:
        """The id of a mode token such as '[NLU]'; raises a UserError if the vocabulary lacks it."""
        if token not in self.mode_tokens:
            raise UserError(f'mode token {token!r} is not one of {self.mode_tokens}. Set DataConfig.mode_tokens.')
        return self._id_of_special[token]

    def encode(self, text: str, special_tokens: bool = False) -> list[int]:
        """The ids of `text`, without end of sequence.

        Args:
            special_tokens: whether `<extra_id_k>` and mode tokens spelled in the text become their ids; otherwise they
                are ordinary characters, as in T5's training data.
        """
        if not special_tokens or self._specials is None:
            return self.encode_batch([text])[0]
        ids: list[int] = []
        parts = self._specials.split(text)
        for i, part in enumerate(parts):
            if i % 2:
                ids.append(self._id_of_special[part])
            else:
                ids.extend(self._encode_part(part, first=i == 0, last=i == len(parts) - 1))
        return ids

    def _encode_part(self, text: str, first: bool, last: bool) -> list[int]:
        """The ids of the text between two special tokens."""
        return self.encode_batch([text])[0] if text else []

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many texts at once; spelled special tokens are ordinary characters."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` up to the first end of sequence, without padding, special tokens spelled out.

        Ids beyond the vocabulary (a model's embedding is often padded to a rounder size) become U+FFFD.
        """
        ids_T = self._before_eos(ids)
        ids_T = ids_T[ids_T != self.pad_id]
        cuts = np.flatnonzero((ids_T >= self.base_size) | (ids_T < 0))
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

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the files that `load_vocabulary(folder)` reads."""
        write_json(to_path(folder) / DESCRIPTION, self._description())

    def _description(self, **more: Any) -> dict[str, Any]:
        sizes = {'extra_ids': self.extra_ids, 'mode_tokens': list(self.mode_tokens), 'vocab_size': self.vocab_size}
        return {'kind': self.kind, **more, **sizes} | ({'start_id': self.start_id} if self.start_id else {})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    @property
    def fingerprint(self) -> str:
        """A hash that only equal vocabularies share; every checkpoint folder holds it."""
        return hashlib.sha256(repr(self._identity()).encode()).hexdigest()[:16]

    @abc.abstractmethod
    def _identity(self) -> tuple:
        """The values that equal vocabularies share."""
