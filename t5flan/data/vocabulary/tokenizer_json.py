"""A Hugging Face tokenizer.json as a vocabulary, for models that come without a SentencePiece model (Llama 3, say).

It is run by the `tokenizers` library (extra `convert`), imported when one is read.
"""

import json
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from t5flan.data.vocabulary.vocabulary import DESCRIPTION, PAD_ID, TOKENIZER, Vocabulary, write_description
from t5flan.errors import UserError
from t5flan.files import to_path, write_whole


class TokenizerJsonVocabulary(Vocabulary):
    """What the file's tokenizer makes of a text, without the special tokens that it would put around it."""

    unk_id = PAD_ID

    def __init__(
        self, path: str | os.PathLike, eos_id: int, start_id: int = PAD_ID, *, content: bytes | None = None
    ) -> None:
        """Reads `path`, or takes `content`.

        Raises:
            UserError: no such file, no tokenizer in it, or the library is not installed.
        """
        try:
            import tokenizers
        except ImportError:
            raise UserError(
                f"{path} needs the `tokenizers` library: pip install 't5flan[convert]', or give a SentencePiece model by "
                '--vocabulary.'
            ) from None
        try:
            self._content = pathlib.Path(path).read_bytes() if content is None else content
            self._tokenizer = tokenizers.Tokenizer.from_buffer(self._content)
        except OSError as error:
            raise UserError(f'{path}: {error.strerror}. Put the file back.') from None
        except Exception as error:
            raise UserError(
                f'{path} holds no tokenizer ({str(error).splitlines()[0][:80]}). Download it again.'
            ) from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.eos_id, self.start_id = eos_id, start_id
        size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values())
        super().__init__(size, 0, ())
        named = ((k, self._tokenizer.token_to_id(f'<extra_id_{k}>')) for k in range(1000))
        self._sentinels = [i for _, i in named if i is not None]

    @property
    def sentinel_count(self) -> int:
        return len(getattr(self, '_sentinels', ()))

    def _sentinel(self, k: int) -> int:
        return self._sentinels[k]

    def encode(self, text: str, special_tokens: bool = False) -> list[int]:
        """As `Vocabulary.encode`; special tokens are the tokenizer's own."""
        if special_tokens:
            return self._tokenizer.encode(text, add_special_tokens=False).ids
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        self._tokenizer.encode_special_tokens = True  # spelled special tokens are ordinary text
        try:
            return [one.ids for one in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)]
        finally:
            self._tokenizer.encode_special_tokens = False

    def decode(self, ids: Iterable[int]) -> str:
        """As `Vocabulary.decode`; id 0 may be a word here, so that only the start token is left out."""
        ids_T = np.asarray(ids if isinstance(ids, (np.ndarray, list, tuple)) else list(ids), dtype=np.int64).reshape(-1)
        ends = np.flatnonzero(ids_T == self.eos_id)
        ids_T = ids_T[: ends[0]] if ends.size else ids_T
        known = ids_T[(ids_T != self.start_id) & (ids_T >= 0) & (ids_T < self.base_size)]
        return self._decode_pieces(known.tolist(), first=True)

    def _decode_pieces(self, ids: list[int], first: bool) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def save(self, folder: str | os.PathLike) -> None:
        folder = to_path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / TOKENIZER, self._content)
        write_description(
            folder / DESCRIPTION, {'kind': 'tokenizer_json', 'eos_id': self.eos_id, **self._description()}
        )

    @property
    def content(self) -> bytes:
        """The file."""
        return self._content

    def _identity(self) -> tuple:
        return ('tokenizer_json', json.dumps(json.loads(self._content), sort_keys=True), self.eos_id, self.start_id)
