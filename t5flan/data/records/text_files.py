"""Local text files as records: scanned once for byte offsets and read on demand, so a corpus need not fit in memory."""

import array
import codecs
import functools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from t5flan.config.checks import is_number
from t5flan.data.corpus_config import TextFiles
from t5flan.data.randomness import stable_hash
from t5flan.data.records import hub
from t5flan.data.records import rows as rows_lib
from t5flan.data.records.fields import find_field, require_field
from t5flan.data.records.file_rows import FileRows
from t5flan.data.records.paths import match_files
from t5flan.errors import UserError

_PARAGRAPHS = re.compile(r'\n[ \t]*\r?\n\s*')


def is_held_out(text: str | bytes, share: float) -> bool:
    """Whether a text is in the held-out `share`, by a hash of the text: the same on any machine, in any order."""
    return stable_hash(text) < share * 2**64


def hold_out(held_out_R: np.ndarray, split: str) -> np.ndarray:
    """Row numbers of 'train' or 'validation'. With two or more rows, each split gets at least one."""
    if len(held_out_R) > 1 and not held_out_R.any():
        held_out_R[-1] = True
    if len(held_out_R) > 1 and held_out_R.all():
        held_out_R[0] = False
    return np.flatnonzero(held_out_R if split == 'validation' else ~held_out_R)


def chunk_spans(text: str, most: int) -> list[tuple[int, int]]:
    """(start, end) of chunks of at most `most` characters, cut after a blank line, else a line, else a space."""
    spans, start = [], 0
    while len(text) - start > most:
        end = start + most
        for mark in ('\n\n', '\n', ' '):
            found = text.rfind(mark, start + most // 2, end)
            if found > 0:
                end = found + len(mark)
                break
        spans.append((start, min(end, start + most)))
        start = spans[-1][1]
    return spans + [(start, len(text))] * (start < len(text))


def chunk_text(text: str, most: int) -> list[str]:
    """A text in chunks of at most `most` characters; joined, they are the text.

    >>> chunk_text('one two three', 8)
    ['one two ', 'three']
    """
    return [text[start:end] for start, end in chunk_spans(text, most)]


def open_text(files: TextFiles, split: str) -> FileRows:
    """The records {'text': …} of a split of local text files, with the scores that its controls name.

    Raises:
        UserError: a file or field is missing, empty or of the wrong kind; names file and row.
    """
    pattern, setting = files.train, 'TextFiles.train'
    if split == 'validation' and files.validation is not None:
        pattern, setting = files.validation, 'TextFiles.validation'
    named = match_texts(pattern, setting)
    scores = [control.field for control in files.controls]
    if scores and (plain := next((path for path in named if rows_lib.is_plain_text(path)), None)):
        raise UserError(f'{plain} has no scores for TextFiles.controls {scores}. Set TextFiles.train to .jsonl files.')
    spans = array.array('q')  # six numbers per chunk, 8 bytes each; a list of tuples would take 200 bytes
    held_out = array.array('b')
    paths = list(named)
    for number, path in enumerate(named):
        for text in texts_of(path, files.field, files.unit, files.max_chars, scores):
            paths[number] = text.path
            held = is_held_out(text.text, files.held_out)
            for start, end in chunk_spans(text.text, files.max_chars):
                spans.extend((number, text.offset, text.size, start, end, text.is_row))
                held_out.append(held)
    rows = np.frombuffer(spans, np.int64).reshape(-1, 6)
    if files.validation is None:
        rows = rows[hold_out(np.array(held_out, bool), split)]
    if not len(rows):
        problem = f'{named[0]}: no text for split {split!r} of {files.name}'
        raise UserError(f'{problem}. Add text or set TextFiles.validation.')
    return FileRows(paths, rows, functools.partial(_text_record, field=files.field, scores=scores), named)


def _text_record(
    data: bytes, path: str, start: int, end: int, is_row: int, *, field: str, scores: Sequence[str]
) -> dict[str, Any]:
    if not is_row:
        return {'text': _plain(data.decode('utf-8'))[start:end]}
    row = rows_lib.parse_row(data, path)
    text = find_field(row, field, path, 'TextFiles.field')
    return {'text': text[start:end], **{score: require_score(row, score, path) for score in scores}}


class Text(NamedTuple):
    """A text of a file and its place."""

    where: str
    path: str
    """The file that holds it: the user's own, or its conversion in the cache folder."""
    offset: int
    size: int
    text: str
    is_row: bool


def match_texts(pattern: str, setting: str) -> list[str]:
    """The files of a path or glob that hold text: rows (see rows.py) or plain text; raises a UserError for others."""
    if hub.is_dataset(pattern):
        return [pattern]
    paths = match_files(pattern, setting)
    for path in paths:
        if rows_lib.is_plain_text(path):
            continue
        if rows_lib.is_rows(path):
            rows_lib.format_of(path)
        else:
            suffix = Path(path).suffix
            known = f'.txt, {rows_lib.FORMATS}'
            raise UserError(f'{path}: ends in {suffix!r}, expected {known}. Rename it or fix {setting}.')
    return paths


def texts_of(path: str, field: str, unit: str, max_chars: int, scores: Sequence[str] = ()) -> Iterator[Text]:
    """The texts of a file: `field` of its rows, or the units of plain text.

    Args:
        scores: fields that every row must have a number in.

    Raises:
        UserError: a field is missing or of the wrong kind; names file and row.
    """
    if rows_lib.is_plain_text(path):
        plain = rows_lib.plain_text(path)
        for offset, size, text in plain_texts(plain, unit, max_chars, named=path):
            yield Text(path, plain, offset, size, text, is_row=False)
        return
    for row in rows_lib.read_rows(path):
        for score in scores:
            require_score(row.value, score, row.where)
        text = require_field(row.value, field, row.where, 'TextFiles.field')
        yield Text(row.where, row.path, row.offset, len(row.data), text, is_row=True)


def require_score(row: dict[str, Any], key: str, where: str) -> float:
    """The number at a key such as 'toxicity' or 'prompt.toxicity'; raises a UserError if there is no number."""
    value: object = row
    for part in key.split('.'):
        value = value.get(part) if isinstance(value, dict) else None
    if not isinstance(value, (int, float)) or not is_number(value):  # NaN is none either
        found, names = str(value)[:40], ', '.join(map(str, row))
        raise UserError(f"{where}: no number at '{key}' (found {found}); the fields are {names}. Set Control.field.")
    return float(value)


def plain_texts(path: str, unit: str, max_chars: int, named: str = '') -> Iterator[tuple[int, int, str]]:
    r"""(first byte, length in bytes, text) of the paragraphs or lines of a .txt file, or of its chunks for 'document'.

    Chunks of a document are held out one by one. A byte order mark is dropped, and '\r\n' becomes '\n'.

    Args:
        named: the file that messages name.
    """
    data = Path(path).read_bytes()
    offset = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    try:
        text = data[offset:].decode('utf-8')
    except UnicodeDecodeError as error:
        raise UserError(f'{named or path}: byte {error.start} is not UTF-8. Save the file as UTF-8.') from None
    if unit == 'document':
        cuts = [end for _, end in chunk_spans(text, max_chars)]
    else:
        ends = _PARAGRAPHS if unit == 'paragraph' else re.compile('\n')
        cuts = [match.end() for match in ends.finditer(text)] + [len(text)]
    start = 0
    for end in cuts:
        part = text[start:end]
        size = len(part.encode('utf-8'))
        if part.strip():
            yield offset, size, _plain(part) if unit == 'document' else _plain(part).rstrip()
        start, offset = end, offset + size


def _plain(text: str) -> str:
    return text.replace('\r\n', '\n') if '\r' in text else text
