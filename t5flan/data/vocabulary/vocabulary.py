"""Text <-> token ids in plain Python: SentencePiece models and bytes, with sentinels and mode tokens on top.

Ids, as in T5 (arXiv:1910.10683): 0 is padding (and the decoder's start token), then the pieces of the model or the bytes,
then `extra_ids` sentinels counting down (`<extra_id_0>` is the last of them), then the mode tokens. With T5's model of
32,000 pieces `<extra_id_0>` is 32099 whether there are mode tokens or not.

Nothing here imports TensorFlow or SeqIO: a checkpoint folder is read without them.
"""

import abc
import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from t5flan.errors import UserError
from t5flan.files import write_json

PAD_ID = 0
DESCRIPTION = 'vocabulary.json'
MODEL = 'vocabulary.model'
TOKENIZER = 'tokenizer.json'


class Vocabulary(abc.ABC):
    """Ids of a text, and the text of ids.

    Attributes:
        base_size: pieces or bytes, the special ids among them, without sentinels and mode tokens.
        extra_ids: sentinels.
        mode_tokens: e.g. ('[NLU]', '[NLG]', '[S2S]'); each has an id of its own.
    """

    pad_id = PAD_ID
    eos_id: int
    unk_id: int
    start_id = PAD_ID
    """What a decoder reads first: the padding as in T5, or the beginning of sequence of Llama and Gemma."""

    def __init__(self, base_size: int, extra_ids: int, mode_tokens: Sequence[str]) -> None:
        if len(set(mode_tokens)) != len(mode_tokens) or '' in mode_tokens:
            raise UserError(
                f'mode_tokens={tuple(mode_tokens)} must be different words. Set DataConfig.mode_tokens in your .gin.'
            )
        self.base_size = base_size
        self.extra_ids = extra_ids
        self.mode_tokens = tuple(mode_tokens)
        self._id_of_special = {f'<extra_id_{k}>': self._sentinel(k) for k in range(self.sentinel_count)}
        self._id_of_special |= {token: base_size + extra_ids + i for i, token in enumerate(self.mode_tokens)}
        self._special_of_id = {i: token for token, i in self._id_of_special.items() if i >= base_size}
        longest_first = sorted(self._id_of_special, key=len, reverse=True)
        self._specials = re.compile('(' + '|'.join(map(re.escape, longest_first)) + ')') if longest_first else None

    @property
    def vocab_size(self) -> int:
        """Pieces, sentinels and mode tokens; a model's embedding holds at least as many rows."""
        return self.base_size + self.extra_ids + len(self.mode_tokens)

    @property
    def sentinel_count(self) -> int:
        return self.extra_ids

    def _sentinel(self, k: int) -> int:
        return self.base_size + self.extra_ids - 1 - k

    def sentinel_id(self, k: int) -> int:
        """The id of `<extra_id_k>`.

        Raises:
            UserError: there are not so many sentinels.
        """
        if not 0 <= k < self.sentinel_count:
            raise UserError(
                f'sentinel {k} is needed, the vocabulary has {self.sentinel_count}. Set DataConfig.extra_ids in your '
                '.gin, or train a vocabulary with more.'
            )
        return self._sentinel(k)

    def special_token(self, id: int) -> str:
        """The spelling of a sentinel or mode token."""
        return self._special_of_id[id]

    def mode_token_id(self, token: str) -> int:
        """The id of a mode token such as '[NLU]'."""
        if token not in self.mode_tokens:
            raise UserError(
                f"mode token {token!r} is none of the vocabulary's {self.mode_tokens}. Set DataConfig.mode_tokens in your .gin."
            )
        return self._id_of_special[token]

    def encode(self, text: str, special_tokens: bool = False) -> list[int]:
        """The ids of `text`, without end of sequence.

        Args:
            text: any string.
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
        """The ids of what stands between two special tokens."""
        return self.encode_batch([text])[0] if text else []

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of many texts at once, special tokens read as ordinary characters."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` up to the first end of sequence; padding is left out, sentinels and mode tokens are spelled.

        Ids beyond the vocabulary (a model's embedding is often padded to a rounder size) read as U+FFFD.
        """
        ids_T = np.asarray(ids if isinstance(ids, (np.ndarray, list, tuple)) else list(ids), dtype=np.int64).reshape(-1)
        ends = np.flatnonzero(ids_T == self.eos_id)
        ids_T = ids_T[: ends[0]] if ends.size else ids_T
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

    def _spell(self, before: str, special: str) -> str:
        """A special token as it follows the text `before`."""
        return special

    @abc.abstractmethod
    def _decode_pieces(self, ids: list[int], first: bool) -> str:
        """The text of ordinary ids; `first` where they begin the text."""

    @abc.abstractmethod
    def save(self, folder: str | os.PathLike) -> None:
        """Writes what `load_vocabulary(folder)` reads."""

    def _description(self) -> dict:
        described = {'extra_ids': self.extra_ids, 'mode_tokens': list(self.mode_tokens), 'vocab_size': self.vocab_size}
        return described | ({'start_id': self.start_id} if self.start_id else {})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vocabulary) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    @property
    def fingerprint(self) -> str:
        """A hash that equal vocabularies share and others do not; it stands in every checkpoint folder."""
        return hashlib.sha256(repr(self._identity()).encode()).hexdigest()[:16]

    @abc.abstractmethod
    def _identity(self) -> tuple:
        """What two equal vocabularies share."""


def write_description(path: pathlib.Path, description: dict) -> None:
    """vocabulary.json, or F.json beside F.model."""
    write_json(path, description)
