"""`t5flan vocabulary --input=GLOB --size=N --output=F.model`: a SentencePiece vocabulary from text files."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from t5flan.data.examples import stable_hash
from t5flan.data.text_files import json_lines, json_object, match_files
from t5flan.data.vocabularies import SentencePieceVocabulary, train_sentencepiece
from t5flan.errors import UsageError, UserError

MOST_BYTES = 100_000_000
"""Of more text than this a sample is taken: SentencePiece holds all of it, several times over, in memory."""


def train_vocabulary(
    inputs: Sequence[str],
    size: int,
    output: str | os.PathLike,
    extra_ids: int = 100,
    mode_tokens: Sequence[str] = ('[NLU]', '[NLG]', '[S2S]'),
    fields: Sequence[str] = ('text', 'inputs', 'targets'),
) -> SentencePieceVocabulary:
    """Trains a vocabulary and writes F.model and F.json.

    Args:
        inputs: paths or globs of .txt and .jsonl files.
        size: all ids, sentinels and mode tokens among them.
        output: F.model.
        fields: the fields of a .jsonl file that are read, those of them that are there.

    Raises:
        UserError: a missing, empty or malformed file, or a size that does not suit the text.
    """
    if Path(output).suffix != '.model':
        raise UsageError(f'--output={output} must end in .model; its description is written beside it as .json.')
    if size <= extra_ids + len(mode_tokens):
        raise UsageError(
            f'--size={size} leaves no pieces beside {extra_ids} sentinels and {len(mode_tokens)} mode tokens. Set --size higher.'
        )
    paths = [path for pattern in inputs for path in match_files(pattern, ('.txt', '.jsonl'), '--input')]
    share = MOST_BYTES / max(1, sum(map(os.path.getsize, paths)))
    vocabulary = train_sentencepiece(_lines(paths, fields, share), size, extra_ids, mode_tokens)
    vocabulary.save_model(output)
    return vocabulary


def _lines(paths: Sequence[str], fields: Sequence[str], share: float) -> Iterator[str]:
    """The lines' texts; of too much text a sample by each line's hash, the same on every machine."""
    for path in paths:
        for number, _, line in json_lines(path):
            if share < 1 and stable_hash(line) >= share * 2**64:
                continue
            if path.endswith('.txt'):
                try:
                    yield line.decode('utf-8')
                except UnicodeDecodeError:
                    raise UserError(f'{path} line {number}: not UTF-8. Save the file as UTF-8.') from None
                continue
            row = json_object(line, f'{path} line {number}')
            texts = [row[field] for field in fields if isinstance(row.get(field), str)]
            if not texts:
                raise UserError(
                    f'{path} line {number}: none of the fields {", ".join(fields)} holds text; the fields are '
                    f'{", ".join(row)}. Set --fields.'
                )
            yield from texts
