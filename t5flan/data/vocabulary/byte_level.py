"""Vocabularies without a model file: UTF-8 bytes (ByT5), and ids whose text is unknown."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from t5flan.data.vocabulary.vocabulary import PAD_ID, Vocabulary
from t5flan.errors import UserError


class ByteVocabulary(Vocabulary):
    """UTF-8 bytes, byte b as id b + 3 (ByT5, arXiv:2105.13626).

    Worked example: 'né' -> [113, 198, 172].
    With extra_ids=0 the sentinels are ByT5's: the last byte ids, `<extra_id_0>` = 258, then 257, and so on.
    """

    kind = 'bytes'
    eos_id = 1
    unk_id = 2
    _OFFSET = 3
    _low_specials_are_text = True

    def __init__(self, extra_ids: int = 0, mode_tokens: Sequence[str] = ()) -> None:
        size = self._OFFSET + 256
        own = {} if extra_ids else {f'<extra_id_{k}>': size - 1 - k for k in range(100)}
        super().__init__(size, extra_ids, mode_tokens, own)

    def _id_of_piece(self, token: str) -> int | None:
        return self._control_tokens().get(token)

    def _is_ordinary(self, token: str) -> bool:
        return False

    def _control_tokens(self) -> dict[str, int]:
        return {'<pad>': self.pad_id, '</s>': self.eos_id, '<unk>': self.unk_id}

    def encode_literally(self, texts: Sequence[str]) -> list[list[int]]:
        """The bytes of each text; a lone surrogate, which JSON may hold, becomes three bytes instead of an error."""
        return [ids.tolist() for ids in self._byte_ids(texts)]

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As in `Vocabulary`."""
        if self._find_special and self._may_spell_special(texts):
            return super().encode_arrays(texts)
        return self._byte_ids(texts)

    def _byte_ids(self, texts: Sequence[str]) -> list[np.ndarray]:
        encoded = (np.frombuffer(text.encode('utf-8', 'surrogatepass'), np.uint8) for text in texts)
        return [bytes_T.astype(np.int32) + np.int32(self._OFFSET) for bytes_T in encoded]

    def _decode_pieces(self, ids: list[int], first: bool) -> str:
        return bytes(i - self._OFFSET for i in ids if i >= self._OFFSET).decode('utf-8', 'replace')

    def _identity(self) -> tuple:
        return ('bytes', self.extra_ids, self.mode_tokens)


class IdsVocabulary(Vocabulary):
    """Ids without text, for a converted checkpoint that came without its vocabulary."""

    kind = 'ids'
    unk_id = PAD_ID

    def __init__(self, size: int, eos_id: int = 1, start_id: int = PAD_ID) -> None:
        self.eos_id, self.start_id = eos_id, start_id
        super().__init__(size, 0, ())

    def encode_literally(self, texts: Sequence[str]) -> list[list[int]]:
        """Raises UserError: text has no ids here."""
        raise self._no_text()

    def _decode_pieces(self, ids: list[int], first: bool) -> str:
        raise self._no_text()

    def _no_text(self) -> UserError:
        fix = 'Convert it again with --vocabulary=F.model (or --vocabulary=bytes).'
        return UserError(f'the checkpoint has no vocabulary to encode or decode text with. {fix}')

    def _description(self, **more: Any) -> dict[str, Any]:
        return super()._description(eos_id=self.eos_id, **more)

    def _identity(self) -> tuple:
        return ('ids', self.base_size, self.eos_id, self.start_id)
