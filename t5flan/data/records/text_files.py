"""Local text files as records: found once by their byte offsets, read when asked for, so that a corpus need not fit in memory."""

import array
import glob
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from t5flan.data.corpus_config import TextFiles
from t5flan.data.randomness import stable_hash
from t5flan.errors import UserError

SUFFIXES = ('.txt', '.jsonl')
_PARAGRAPHS = re.compile(r'\n[ \t]*\n\s*')


def match_files(pattern: str, suffixes: Sequence[str], setting: str) -> list[str]:
    """The files of a path or glob, sorted.

    Raises:
        UserError: none is there, one is empty, or one's name ends otherwise than in `suffixes`.
    """
    if glob.has_magic(pattern):
        paths = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
        if not paths:
            raise UserError(f'{setting}={pattern!r} matches no file. Fix the glob in {setting}.')
    else:
        paths = [pattern]
    for path in paths:
        if os.path.isdir(path):
            raise UserError(
                f'{path} is a folder, {setting} must be a file or a glob such as {os.path.join(path, "*" + suffixes[0])!r}.'
            )
        if not os.path.isfile(path):
            raise UserError(f'{path}: no such file. Set {setting} to a file that exists.')
        if Path(path).suffix not in suffixes:
            raise UserError(
                f'{path}: ends in {Path(path).suffix or "nothing"!r}, not in {" or ".join(suffixes)}. Rename it or fix '
                f'{setting}.'
            )
        if os.path.getsize(path) == 0:
            raise UserError(f'{path} is empty. Set {setting} to a file with content.')
    return paths


def json_object(line: bytes, where: str) -> dict:
    """The object of a JSONL line.

    Raises:
        UserError: not JSON, not UTF-8, or no object.
    """
    try:
        value = json.loads(line)
    except ValueError as error:
        raise UserError(
            f'{where}: not JSON ({getattr(error, "msg", "not UTF-8")}). A .jsonl file has one JSON object a line.'
        ) from None
    if not isinstance(value, dict):
        raise UserError(
            f'{where}: is {type(value).__name__}, not a JSON object with fields. A .jsonl file has one JSON object a line.'
        )
    return value


def is_held_out(text: str | bytes, share: float) -> bool:
    """Whether a text belongs to the held-out `share`: by a hash of the text, so that it never depends on order or machine."""
    return stable_hash(text) < share * 2**64


def hold_out(held_out_R: np.ndarray, split: str) -> np.ndarray:
    """Row numbers of 'train' or 'validation'. Two rows or more give each split one at least."""
    if len(held_out_R) > 1 and not held_out_R.any():
        held_out_R[-1] = True
    if len(held_out_R) > 1 and held_out_R.all():
        held_out_R[0] = False
    return np.flatnonzero(held_out_R if split == 'validation' else ~held_out_R)


def chunk_spans(text: str, most: int) -> list[tuple[int, int]]:
    """Where to cut a text into chunks of at most `most` characters: after a blank line, else a line, else a space."""
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
    """A text as chunks of at most `most` characters; joined, they are the text.

    >>> chunk_text('one two three', 8)
    ['one two ', 'three']
    """
    return [text[start:end] for start, end in chunk_spans(text, most)]


class TextRecords(Sequence):
    """Chunks of text files as records {'text': …}, read from the disk when asked for."""

    def __init__(self, paths: Sequence[str], spans: np.ndarray, field: str, scores: Sequence[str] = ()) -> None:
        """`spans` [R, 5] int64: file, first byte, bytes, and the characters of that text (from, to).

        Args:
            scores: keys of numbers that are kept beside the text.
        """
        self._paths, self._spans, self._field, self._scores = list(paths), spans, field, tuple(scores)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, index: int) -> dict[str, str]:
        file, offset, size, start, end = self._spans[index].tolist()
        with open(self._paths[file], 'rb') as handle:
            handle.seek(offset)
            data = handle.read(size)
        if not self._paths[file].endswith('.jsonl'):
            return {'text': data.decode('utf-8')[start:end]}
        row = json_object(data, self._paths[file])
        scores = {score: require_score(row, score, self._paths[file]) for score in self._scores}
        return {'text': row[self._field][start:end], **scores}


def open_text(files: TextFiles, split: str) -> TextRecords:
    """The records of a split of local text files.

    Raises:
        UserError: a file or field is missing, empty or of the wrong kind; names file and line.
    """
    given = split == 'validation' and files.validation is not None
    setting = 'TextFiles.validation' if given else 'TextFiles.train'
    paths = match_files(files.validation if given else files.train, SUFFIXES, setting)
    scores = [control.field for control in files.controls]
    if scores and (plain := next((path for path in paths if not path.endswith('.jsonl')), None)):
        raise UserError(
            f'{plain} has no scores, TextFiles.controls wants {scores}. Set TextFiles.train to .jsonl files.'
        )
    spans = array.array('q')  # five numbers a chunk: eight bytes each, where a list of tuples takes two hundred
    held_out = array.array('b')
    for number, path in enumerate(paths):
        units = (
            _json_texts(path, files.field, scores)
            if path.endswith('.jsonl')
            else plain_texts(path, files.unit, files.max_chars)
        )
        for offset, size, text in units:
            held = is_held_out(text, files.held_out)
            for start, end in chunk_spans(text, files.max_chars):
                spans.extend((number, offset, size, start, end))
                held_out.append(held)
    rows = np.frombuffer(spans, np.int64).reshape(-1, 5)
    if files.validation is None:
        rows = rows[hold_out(np.array(held_out, bool), split)]
    if not len(rows):
        raise UserError(
            f'{", ".join(paths[:3])}: no text for split {split!r} of {files.name!r}. Give more text, or set TextFiles.validation.'
        )
    return TextRecords(paths, rows, files.field, scores)


def json_lines(path: str) -> Iterator[tuple[int, int, bytes]]:
    """(line number from 1, first byte, line) of every line that is not blank; lines end at "\\n" alone."""
    offset = 0
    with open(path, 'rb') as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, offset, line
            offset += len(line)


def _json_texts(path: str, field: str, scores: Sequence[str] = ()) -> Iterator[tuple[int, int, str]]:
    for number, offset, line in json_lines(path):
        where = f'{path} line {number}'
        row = json_object(line, where)
        for score in scores:
            require_score(row, score, where)
        yield (offset, len(line), require_field(row, field, where, 'TextFiles.field'))


def require_score(row: dict, key: str, where: str) -> float:
    """The number at a key such as 'toxicity' or 'prompt.toxicity'.

    Raises:
        UserError: there is none.
    """
    value: object = row
    for part in key.split('.'):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserError(
            f"{where}: no number at '{key}' (found {str(value)[:40]}); the fields are {', '.join(map(str, row))}. Set Control.field."
        )
    return float(value)


def plain_texts(path: str, unit: str, max_chars: int) -> Iterator[tuple[int, int, str]]:
    """(first byte, bytes, text) of a .txt file's paragraphs or lines, or of its chunks, which are held out one by one."""
    try:
        text = Path(path).read_bytes().decode('utf-8')
    except UnicodeDecodeError as error:
        raise UserError(f'{path}: byte {error.start} is not UTF-8. Save the file as UTF-8.') from None
    if unit == 'document':
        cuts = [end for _, end in chunk_spans(text, max_chars)]
    elif unit == 'paragraph':
        cuts = [match.end() for match in _PARAGRAPHS.finditer(text)] + [len(text)]
    else:
        cuts = [match.end() for match in re.finditer('\n', text)] + [len(text)]
    start = offset = 0
    for end in cuts:
        part = text[start:end]
        size = len(part.encode('utf-8'))
        if part.strip():
            kept = part if unit == 'document' else part.rstrip()
            yield offset, size, kept
        start, offset = end, offset + size


def require_field(example: Mapping[str, Any], field: str, where: str, setting: str) -> str:
    """The text of a field.

    Raises:
        UserError: it is missing (the line names those there) or not text.
    """
    if field not in example:
        raise UserError(
            f"{where}: no field '{field}'; the fields are {', '.join(map(str, example)) or 'none'}. Set {setting}."
        )
    value = example[field]
    if not isinstance(value, str):
        raise UserError(
            f"{where}: field '{field}' is {type(value).__name__} ({str(value)[:40]}), it must be text. Fix the file or "
            f'set {setting}.'
        )
    try:
        value.encode('utf-8')
    except UnicodeEncodeError:
        raise UserError(
            f"{where}: field '{field}' holds half a character (a lone surrogate \\ud800-\\udfff). Fix the file."
        ) from None
    return value
