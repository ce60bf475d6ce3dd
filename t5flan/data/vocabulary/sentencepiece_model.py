"""SentencePiece models as vocabularies: T5, mT5, Gemma and those that `t5flan vocabulary` trains."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from t5flan.data.vocabulary.vocabulary import MODEL, PAD_ID, Vocabulary
from t5flan.errors import UserError
from t5flan.files import to_path, write_json, write_whole

_SPACE = '\u2581'  # SentencePiece's visible space


class SentencePieceVocabulary(Vocabulary):
    """A SentencePiece model with `extra_ids` sentinels and the mode tokens appended, as T5 appends its sentinels.

    Worked example (T5's model): 'Translate English to German: That is good.' -> [30355, 15, 1566, 12, 2968, 10, 466,
    19, 207, 5]. T5's normalizer turns a newline into a space; models trained by `train_vocabulary` keep it.
    """

    kind = 'sentencepiece'
    _FEW = 32
    """Below this many texts, encoding one by one is faster: SentencePiece starts threads for a batch."""

    def __init__(
        self,
        path: str | os.PathLike,
        extra_ids: int = 100,
        mode_tokens: Sequence[str] = (),
        *,
        model: bytes | None = None,
        start_id: int = PAD_ID,
    ) -> None:
        """Reads the model at `path` (local or gs://), or takes `model`, the content of such a file.

        Raises:
            UserError: the file is missing, or not a SentencePiece model with an end of sequence.
        """
        import sentencepiece

        self.path = os.fspath(path)
        try:
            self._model = to_path(path).read_bytes() if model is None else model
        except OSError as error:
            raise UserError(f'vocabulary {self.path}: {error.strerror}. Set another DataConfig.vocabulary.') from None
        processor = self._processor = sentencepiece.SentencePieceProcessor()
        self._makes_arrays = hasattr(processor, 'EncodeAsNumpy')  # since 0.2.2; Beam needs an older version
        try:
            loaded = bool(self._model) and processor.LoadFromSerializedProto(self._model)
        except RuntimeError:
            loaded = False
        if not loaded or processor.eos_id() < 0:
            problem = f'vocabulary {self.path} is not a SentencePiece model with end of sequence'
            raise UserError(f'{problem}. Set DataConfig.vocabulary.')
        if processor.pad_id() not in (0, -1) or not (processor.is_control(0) or processor.is_unknown(0)):
            zero = processor.id_to_piece(0)
            raise UserError(f'vocabulary {self.path}: id 0 is {zero!r}, it must be padding. Train it with pad_id=0.')
        self.eos_id, self.unk_id, self.start_id = processor.eos_id(), processor.unk_id(), start_id
        # The model puts a space before every text, but not Gemma's.
        self._adds_space = processor.encode('a', out_type=str)[:1] != ['a']
        super().__init__(processor.get_piece_size(), extra_ids, mode_tokens, self._find_own_sentinels())

    def _find_own_sentinels(self) -> dict[str, int]:
        """The sentinels among the pieces: '<extra_id_0>' in UMT5, '\u2581<extra_id_0>' in mT5."""
        found: dict[str, int] = {}
        while True:
            name = f'<extra_id_{len(found)}>'
            ids = [self._id_of_piece(piece) for piece in (name, _SPACE + name)]
            id = next((i for i in ids if i is not None), None)
            if id is None:
                return found
            found[name] = id

    def without_duplicate_sentinels(self) -> 'SentencePieceVocabulary':
        """The vocabulary without appended sentinels if the model holds sentinels as pieces (mT5, UMT5)."""
        if not (self.extra_ids and self._own_sentinels):
            return self
        return SentencePieceVocabulary(self.path, 0, self.mode_tokens, model=self._model, start_id=self.start_id)

    def _id_of_piece(self, token: str) -> int | None:
        id = self._processor.piece_to_id(token)
        return id if self._processor.id_to_piece(id) == token else None

    def _is_ordinary(self, token: str) -> bool:
        piece = self.proto().pieces[self._processor.piece_to_id(token)]
        return piece.type == piece.NORMAL

    def _control_tokens(self) -> dict[str, int]:
        processor = self._processor
        control = [i for i in range(self.base_size) if processor.is_control(i) or processor.is_unknown(i)]
        return {processor.id_to_piece(i): i for i in control}

    def encode_literally(self, texts: Sequence[str]) -> list[list[int]]:
        """The pieces of each text; many texts are encoded in parallel threads."""
        if len(texts) < self._FEW:
            return [self._processor.encode(text, out_type=int) for text in texts]
        return self._processor.encode(list(texts), out_type=int)

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As in `Vocabulary`; without special tokens in the texts, straight from SentencePiece's own arrays."""
        if not self._makes_arrays or (self._find_special and self._may_spell_special(texts)):
            return super().encode_arrays(texts)
        encode = functools.partial(self._processor.encode, out_type='numpy')
        made = [encode(text) for text in texts] if len(texts) < self._FEW else encode(list(texts))
        return [ids.copy() for ids in made]  # theirs are read-only

    def _encode_part(self, text: str, first: bool, last: bool) -> list[int]:
        if self._adds_space:  # the space that the model adds stands for the space after a special token
            text = text if first else text.removeprefix(' ')
            text = text if last else text.removesuffix(' ')
        return self.encode_literally([text])[0] if text else []

    def _decode_pieces(self, ids: list[int], first: bool) -> str:
        text = self._processor.decode(ids)
        return text if first or not self._starts_word(ids[0]) else ' ' + text

    def _starts_word(self, id: int) -> bool:
        return self._adds_space and self._processor.id_to_piece(id).startswith(_SPACE)

    def _spell(self, before: str, special: str) -> str:
        if not self._adds_space:
            return special
        return ' ' + special if before and not before[-1].isspace() else special

    def save(self, folder: str | os.PathLike) -> None:
        """Writes vocabulary.model and vocabulary.json."""
        self.save_model(to_path(folder) / MODEL)
        self._save_template(folder)

    def save_model(self, path: str | os.PathLike) -> None:
        """Writes F.model, which any SentencePiece reads, and beside it F.json with the sentinels and mode tokens."""
        write_whole(path, self._model)
        write_json(to_path(path).with_suffix('.json'), self._description())

    def _identity(self) -> tuple:
        return (self._model, self.extra_ids, self.mode_tokens) + ((self.start_id,) if self.start_id else ())

    @property
    def loses_text(self) -> bool:
        """Whether the model has no pieces for bytes."""
        return not any(self._processor.is_byte(id) for id in range(self._processor.get_piece_size()))

    def lacks(self, character: str) -> bool:
        """Whether a character becomes the unknown id or bytes."""
        ids = self.encode_literally([character])[0]
        return any(self._processor.is_unknown(id) or self._processor.is_byte(id) for id in ids)

    @property
    def model(self) -> bytes:
        """The content of the SentencePiece model file."""
        return self._model

    def piece(self, id: int) -> str:
        """The spelling of a piece of the model, such as '</s>'."""
        return self._processor.id_to_piece(id)

    def proto(self) -> Any:
        """The model's pieces and settings as SentencePiece's ModelProto."""
        from sentencepiece import sentencepiece_model_pb2

        return sentencepiece_model_pb2.ModelProto.FromString(self._model)  # type: ignore[attr-defined]  # made at import
