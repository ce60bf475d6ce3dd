"""A Hugging Face tokenizer.json as a vocabulary, for models that come without a SentencePiece model (Llama 3, say).

Needs the `tokenizers` library (extra `convert`), which is imported when a file is read.
"""

import json
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from t5flan.data.vocabulary.vocabulary import PAD_ID, TOKENIZER, Vocabulary
from t5flan.errors import UserError
from t5flan.files import to_path, write_whole


class TokenizerJsonVocabulary(Vocabulary):
    """Encodes with the file's tokenizer, without the special tokens that it would put around a text."""

    kind = 'tokenizer_json'
    unk_id = PAD_ID

    def __init__(
        self, path: str | os.PathLike, eos_id: int, start_id: int = PAD_ID, *, content: bytes | None = None
    ) -> None:
        """Reads `path`, or takes `content`.

        Raises:
            UserError: the file is missing or holds no tokenizer, or the library is not installed.
        """
        try:
            import tokenizers
        except ImportError:
            raise UserError(f"{path} needs tokenizers: pip install 't5flan[convert]', or set --vocabulary.") from None
        try:
            self._content = pathlib.Path(path).read_bytes() if content is None else content
            self._tokenizer = tokenizers.Tokenizer.from_buffer(self._content)
        except OSError as error:
            raise UserError(f'{path}: {error.strerror}. Put the file back.') from None
        except Exception as error:
            why = str(error).splitlines()[0][:80]
            raise UserError(f'{path} holds no tokenizer ({why}). Download it again.') from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.eos_id, self.start_id = eos_id, start_id
        named = (self._tokenizer.token_to_id(f'<extra_id_{k}>') for k in range(1000))
        self._sentinels = [i for i in named if i is not None]
        size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        super().__init__(size, 0, ())

    @property
    def sentinel_count(self) -> int:
        """Number of tokens of the tokenizer that are named `<extra_id_k>`."""
        return len(self._sentinels)

    def _sentinel(self, k: int) -> int:
        return self._sentinels[k]

    def encode(self, text: str, special_tokens: bool = False) -> list[int]:
        """Like `Vocabulary.encode`, with the tokenizer's special tokens."""
        if special_tokens:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text."""
        self._tokenizer.encode_special_tokens = True  # spelled special tokens are ordinary text
        try:
            return [one.ids for one in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]
        finally:
            self._tokenizer.encode_special_tokens = False

    def decode(self, ids: Iterable[int]) -> str:
        """Like `Vocabulary.decode`; id 0 may be a word here, so only the start token is dropped."""
        ids_T = self._before_eos(ids)
        known = ids_T[(ids_T != self.start_id) & (ids_T >= 0) & (ids_T < self.base_size)]
        return self._decode_pieces(known.tolist(), first=True)

    def _decode_pieces(self, ids: list[int], first: bool) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes tokenizer.json and vocabulary.json."""
        write_whole(to_path(folder) / TOKENIZER, self._content)
        super().save(folder)

    def _description(self, **more: Any) -> dict[str, Any]:
        return super()._description(eos_id=self.eos_id, **more)

    @property
    def content(self) -> bytes:
        """The content of the file."""
        return self._content

    def _identity(self) -> tuple:
        return ('tokenizer_json', json.dumps(json.loads(self._content), sort_keys=True), self.eos_id, self.start_id)
