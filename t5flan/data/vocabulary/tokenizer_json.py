"""A Hugging Face tokenizer.json as a vocabulary, for models that come without a SentencePiece model (Llama 3, say).

Needs the `tokenizers` library (extra `convert`), which is imported when a file is read.
"""

import functools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from t5flan.data.vocabulary.vocabulary import PAD_ID, TOKENIZER, Vocabulary
from t5flan.errors import UserError, reading
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
            self._content = to_path(path).read_bytes() if content is None else content
            self._tokenizer = tokenizers.Tokenizer.from_buffer(self._content)
        except OSError as error:
            raise UserError(f'{path}: {error.strerror}. Put the file back.') from None
        except Exception as error:
            why = str(error).splitlines()[0][:80]
            raise UserError(f'{path} holds no tokenizer ({why}). Download it again.') from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.eos_id, self.start_id = eos_id, start_id
        with reading(f'{path}', 'Download it again.'):
            self._read_settings()
        added = self._tokenizer.get_added_tokens_decoder()
        self._special_ids = frozenset(i for i, token in added.items() if token.special)
        own = {token.content: i for i, token in added.items()}
        own |= {name: i for k in range(1000) if (i := self._id_of_piece(name := f'<extra_id_{k}>')) is not None}
        size = 1 + max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        super().__init__(size, 0, (), own)

    def _read_settings(self) -> None:
        """What becomes of text that no token spells."""
        settings = json.loads(self._content)
        model = settings.get('model') or {}
        unknown = model.get('unk_id', self._id_of_piece(model.get('unk_token') or ''))
        has_bytes = model.get('byte_fallback') or 'ByteLevel' in json.dumps(settings.get('pre_tokenizer'))
        self._loses_text = unknown is not None and not has_bytes
        self.unk_id = PAD_ID if unknown is None else int(unknown)

    @property
    def loses_text(self) -> bool:
        """Whether the tokenizer has an unknown token and no bytes."""
        return self._loses_text

    def is_special(self, id: int) -> bool:
        """Whether the file marks the token as special; id 0 may be a word."""
        return id in self._special_ids

    @functools.cached_property
    def marker_ids(self) -> tuple[int, ...]:
        """The tokens that the file marks as special, without sentinels."""
        return tuple(sorted({*self._special_ids, *map(self.mode_token_id, self._markers)} - {*self.sentinel_ids}))

    def _id_of_piece(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, the tokenizer's special tokens among them, as in transformers."""
        return [one.ids for one in self._tokenizer.encode_batch([*map(_valid, texts)], add_special_tokens=False)]

    def encode_rendered(self, text: str) -> list[int]:
        """The same as `encode`: the tokenizer's control tokens are special tokens."""
        return self.encode(text)

    def rendered_tokens_before(self, text: str, places: Sequence[int]) -> list[int]:
        """As in `Vocabulary`, by the places that the library gives for each token."""
        ends = [end for _, end in self._tokenizer.encode(_valid(text), add_special_tokens=False).offsets]
        return [sum(end <= place for end in ends) for place in places]

    def encode_literally(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, in which spelled special tokens are ordinary characters."""
        self._tokenizer.encode_special_tokens = True  # spelled special tokens are ordinary text
        try:
            return [one.ids for one in self._tokenizer.encode_batch([*map(_valid, texts)], add_special_tokens=False)]
        finally:
            self._tokenizer.encode_special_tokens = False

    def decode(self, ids: Iterable[int]) -> str:
        """Like `Vocabulary.decode`; id 0 may be a word here, so only the start token is dropped."""
        ids_T = self._before_eos(ids)
        known = ids_T[(ids_T != self.start_id) & (ids_T >= 0) & (ids_T < self.base_size)]
        return self._decode_pieces(known.tolist(), first=True)

    def spell(self, ids: Iterable[int]) -> str:
        """As in `Vocabulary`, with every token as the tokenizer spells it."""
        return self._decode_pieces([id for id in ids if 0 <= id < self.base_size], first=True)

    def _decode_pieces(self, ids: list[int], first: bool) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def _extended(self, added: Mapping[str, int]) -> 'TokenizerJsonVocabulary':
        """The tokenizer with more added tokens, as `tokenizers` would save it."""
        fields = json.loads(self._content)
        flags = {'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False, 'special': True}
        tokens = [{'id': id, 'content': token, **flags} for token, id in added.items()]
        fields['added_tokens'] = sorted([*(fields.get('added_tokens') or ()), *tokens], key=lambda one: one['id'])
        content = json.dumps(fields, ensure_ascii=False).encode()
        made = TokenizerJsonVocabulary('tokenizer.json', self.eos_id, self.start_id, content=content)
        for token, id in added.items():
            if made._id_of_piece(token) != id:
                problem = f'added token {token!r} is given the id {id}, but the tokenizer has no id just before it'
                raise UserError(f'{problem}. Correct added_tokens.json or tokenizer_config.json.')
        return made.with_conventions(self.conventions)

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
        return 'tokenizer_json', self._canonical, self.eos_id, self.start_id

    @functools.cached_property
    def _canonical(self) -> str:
        """The file in one spelling. It has megabytes, and every hash and comparison of the vocabulary asks for it."""
        return json.dumps(json.loads(self._content), sort_keys=True)


def _valid(text: str) -> str:
    """The text with half surrogate pairs, which JSON may hold, replaced: the library takes only valid text."""
    return text.encode('utf-8', 'replace').decode() if any('\ud800' <= sign <= '\udfff' for sign in text) else text
