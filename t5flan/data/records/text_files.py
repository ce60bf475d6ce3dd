"""Local text files as records: scanned once for byte offsets and read on demand, so a corpus need not fit in memory."""

import array
import functools
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
from t5flan.data.records.file_rows import FileRows
from t5flan.errors import UserError

SUFFIXES = ('.txt', '.jsonl')
_PARAGRAPHS = re.compile(r'\n[ \t]*\n\s*')


def match_files(pattern: str, suffixes: Sequence[str], setting: str) -> list[str]:
    """The files of a path or glob, sorted.

    Raises:
        UserError: there is none, one is empty, or a name does not end in one of `suffixes`.
    """
    if glob.has_magic(pattern):
        paths = sorted(path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path))
        if not paths:
            raise UserError(f'{setting}={pattern!r} matches no file. Fix the glob in {setting}.')
    else:
        paths = [pattern]
    for path in paths:
        suffix = Path(path).suffix
        if os.path.isdir(path):
            example = os.path.join(path, f'*{suffixes[0]}')
            raise UserError(f'{path} is a folder, {setting} must be a file or a glob such as {example!r}.')
        if not os.path.isfile(path):
            raise UserError(f'{path}: no such file. Set {setting} to a file that exists.')
        if suffix not in suffixes:
            expected = ' or '.join(suffixes)
            raise UserError(f'{path}: ends in {suffix!r}, not in {expected}. Rename it or fix {setting}.')
        if os.path.getsize(path) == 0:
            raise UserError(f'{path} is empty. Set {setting} to a file with content.')
    return paths


def json_object(line: bytes, where: str) -> dict[str, Any]:
    """The object of a line of a .jsonl file; raises a UserError if it is not JSON, not UTF-8, or not an object."""
    try:
        value = json.loads(line)
        problem = '' if isinstance(value, dict) else f'is {type(value).__name__}, not a JSON object with fields'
    except ValueError as error:
        problem = f'not JSON ({getattr(error, "msg", "not UTF-8")})'
    if problem:
        raise UserError(f'{where}: {problem}. A .jsonl file has one JSON object per line.')
    return value


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
        UserError: a file or field is missing, empty or of the wrong kind; names file and line.
    """
    pattern, setting = files.train, 'TextFiles.train'
    if split == 'validation' and files.validation is not None:
        pattern, setting = files.validation, 'TextFiles.validation'
    paths = match_files(pattern, SUFFIXES, setting)
    scores = [control.field for control in files.controls]
    if scores and (plain := next((path for path in paths if not path.endswith('.jsonl')), None)):
        raise UserError(f'{plain} has no scores for TextFiles.controls {scores}. Set TextFiles.train to .jsonl files.')
    spans = array.array('q')  # five numbers per chunk, 8 bytes each; a list of tuples would take 200 bytes
    held_out = array.array('b')
    for number, path in enumerate(paths):
        is_json = path.endswith('.jsonl')
        texts = _json_texts(path, files.field, scores) if is_json else plain_texts(path, files.unit, files.max_chars)
        for offset, size, text in texts:
            held = is_held_out(text, files.held_out)
            for start, end in chunk_spans(text, files.max_chars):
                spans.extend((number, offset, size, start, end))
                held_out.append(held)
    rows = np.frombuffer(spans, np.int64).reshape(-1, 5)
    if files.validation is None:
        rows = rows[hold_out(np.array(held_out, bool), split)]
    if not len(rows):
        problem = f'{paths[0]}: no text for split {split!r} of {files.name}'
        raise UserError(f'{problem}. Add text or set TextFiles.validation.')
    return FileRows(paths, rows, functools.partial(_text_record, field=files.field, scores=scores))


def _text_record(data: bytes, path: str, start: int, end: int, *, field: str, scores: Sequence[str]) -> dict[str, Any]:
    if not path.endswith('.jsonl'):
        return {'text': data.decode('utf-8')[start:end]}
    row = json_object(data, path)
    return {'text': row[field][start:end], **{score: require_score(row, score, path) for score in scores}}


def json_lines(path: str) -> Iterator[tuple[int, int, bytes]]:
    r"""(line number from 1, first byte, line) of every line that is not blank; only '\n' ends a line."""
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


def require_score(row: dict[str, Any], key: str, where: str) -> float:
    """The number at a key such as 'toxicity' or 'prompt.toxicity'; raises a UserError if there is no number."""
    value: object = row
    for part in key.split('.'):
        value = value.get(part) if isinstance(value, dict) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        found, names = str(value)[:40], ', '.join(map(str, row))
        raise UserError(f"{where}: no number at '{key}' (found {found}); the fields are {names}. Set Control.field.")
    return float(value)


def plain_texts(path: str, unit: str, max_chars: int) -> Iterator[tuple[int, int, str]]:
    """(first byte, length in bytes, text) of the paragraphs or lines of a .txt file, or of its chunks for 'document'.

    Chunks of a document are held out one by one.
    """
    try:
        text = Path(path).read_bytes().decode('utf-8')
    except UnicodeDecodeError as error:
        raise UserError(f'{path}: byte {error.start} is not UTF-8. Save the file as UTF-8.') from None
    if unit == 'document':
        cuts = [end for _, end in chunk_spans(text, max_chars)]
    else:
        ends = _PARAGRAPHS if unit == 'paragraph' else re.compile('\n')
        cuts = [match.end() for match in ends.finditer(text)] + [len(text)]
    start = offset = 0
    for end in cuts:
        part = text[start:end]
        size = len(part.encode('utf-8'))
        if part.strip():
            yield offset, size, part if unit == 'document' else part.rstrip()
        start, offset = end, offset + size


def require_field(example: Mapping[str, Any], field: str, where: str, setting: str) -> str:
    """The text of a field; raises a UserError if it is missing (the message names the existing ones) or not text."""
    if field not in example:
        names = ', '.join(map(str, example)) or 'none'
        raise UserError(f"{where}: no field '{field}'; the fields are {names}. Set {setting}.")
    value = example[field]
    if not isinstance(value, str):
        found = f'{type(value).__name__} ({str(value)[:40]})'
        raise UserError(f"{where}: field '{field}' is {found}, it must be text. Fix the file or set {setting}.")
    try:
        value.encode('utf-8')
    except UnicodeEncodeError:
        raise UserError(f"{where}: field '{field}' has half a character (a lone surrogate). Fix the file.") from None
    return value
