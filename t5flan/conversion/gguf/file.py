"""The header of a GGUF file: its metadata, and where each tensor lies. Numbers are read later, a tensor at a time.

    'GGUF' | version | number of tensors | number of metadata
    metadata: key | type | value              tensor: name | dimensions | type | offset in the data
    padding to the alignment | data

The `gguf` package defines the types and dequantizes. Its reader is not used: it maps the whole file, keeps two arrays
for every token and merge (160 MiB for SmolLM2's header of 1.7 MiB), and follows a damaged length as far as it goes.
Here every length is compared with the bytes that are left.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import dataclasses
import re
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from t5flan.conversion.gguf.tensor import TYPES, Tensor, blocks, require_library, type_name
from t5flan.errors import UserError

MAGIC = b'GGUF'
VERSIONS = (2, 3)
ALIGNMENT = 32  # bytes, unless general.alignment says otherwise
_MOST_DIMENSIONS = 4
_CODES = ('<u1', '<i1', '<u2', '<i2', '<u4', '<i4', '<f4', '?', '', '', '<u8', '<i8', '<f8')  # by GGUF's number
_STRING, _ARRAY = 8, 9
_SHARD = re.compile(r'(.+)-(\d{5})-of-(\d{5})\.gguf')


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """The header of a file, or of all files of a split model; the metadata are the first file's."""

    where: str
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def spelled(value: Any) -> str:
    """A value of the metadata in at most some 60 characters, for messages."""
    if isinstance(value, (list, np.ndarray)):
        return f'an array of {len(value)}'
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


def read(path: Path) -> GgufFile:
    """Reads the header; of a split model (NAME-00001-of-00003.gguf), the headers of all its files.

    Raises:
        UserError: the file is missing, truncated or not a GGUF file, or a file of a split model is missing.
    """
    if not path.is_file():
        problem = 'is a folder' if path.is_dir() else 'does not exist'
        raise UserError(f'{path} {problem}. Give a GGUF file.')
    require_library(path)
    metadata, tensors = _read_one(path)
    count = metadata.get('split.count', 0)
    if not isinstance(count, int) or count <= 1:
        return GgufFile(str(path), metadata, tensors)
    match = _SHARD.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        problem = f'is one of {count} files of a split model, but its name does not end in -00001-of-{count:05d}.gguf'
        raise UserError(f'{path} {problem}. Give the files the names they had.')
    files = [path.with_name(f'{match[1]}-{number:05d}-of-{count:05d}.gguf') for number in range(1, count + 1)]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        problem = f'of the {count} files of the model, {missing[0]} is missing ({len(missing)} are)'
        raise UserError(f'{path}: {problem}. Download the missing files.')
    tensors = {}
    for number, file in enumerate(files):
        more, held = _read_one(file)
        if (more.get('split.no'), more.get('split.count')) != (number, count):
            problem = (
                f'says it is file {more.get("split.no")} of {more.get("split.count")}, expected {number} of {count}'
            )
            raise UserError(f'{file} {problem}. Download the files again.')
        metadata = more if number == 0 else metadata
        twice = sorted(held.keys() & tensors.keys())
        if twice:
            raise UserError(f'{file} holds {twice[0]}, which another file holds too. Download the files again.')
        tensors |= held
    expected = metadata.get('split.tensors.count', len(tensors))
    if expected != len(tensors):
        problem = f'its {count} files hold {len(tensors)} tensors, expected {expected}'
        raise UserError(f'{path}: {problem}. Download the files again.')
    return GgufFile(str(path), metadata, tensors)


def files_of(path: Path) -> list[Path]:
    """The file, or all files of the split model that it belongs to by its name, as far as they are there."""
    match = _SHARD.fullmatch(path.name)
    if match is None:
        return [path]
    named = (path.with_name(f'{match[1]}-{number + 1:05d}-of-{match[3]}.gguf') for number in range(int(match[3])))
    return [file for file in named if file.is_file()]


def _read_one(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The metadata and tensors of one file."""
    try:
        with open(path, 'rb') as handle:
            return _Header(path, handle).read()
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}. Give a GGUF file that can be read.') from None


class _Header:
    """Reads a header from the start; `_take` compares every length with what is left of the file."""

    def __init__(self, path: Path, handle: BinaryIO) -> None:
        self._path, self._handle = path, handle
        self._size, self._place = path.stat().st_size, 0

    def read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        if self._size < len(MAGIC) or self._take(len(MAGIC)) != MAGIC:
            raise UserError(f'{self._path} is not a GGUF file: it does not begin with GGUF. Give another file.')
        version = self._number('<u4')
        if version and not version & 0xFFFF:
            fix = 'Convert it to little-endian (gguf_convert_endian of the gguf package), or download another.'
            raise UserError(f'{self._path} is big-endian, which is not read. {fix}')
        if version not in VERSIONS:
            problem = f'has version {version} of GGUF, expected {" or ".join(map(str, VERSIONS))}'
            raise UserError(f'{self._path} {problem}. Write it again with a current llama.cpp.')
        tensor_count, count = self._count('tensors', 24), self._count('metadata', 13)
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = self._string()
            if key in metadata:
                raise self._broken(f'has {key!r} twice')
            metadata[key] = self._value(key)
        places = [self._tensor_info() for _ in range(tensor_count)]
        alignment = metadata.get('general.alignment', ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
            raise self._broken(f'has general.alignment={alignment!r}, expected a power of two')
        start = -(-self._place // alignment) * alignment
        return metadata, self._tensors(places, start)

    def _broken(self, problem: str) -> UserError:
        return UserError(f'{self._path} is not a valid GGUF file: it {problem}. Download it again.')

    def _take(self, length: int) -> bytes:
        left = self._size - self._place
        if length > left:
            problem = f'at byte {self._place:,} of {self._size:,} it needs {length:,} more'
            raise UserError(f'{self._path} is truncated or damaged: {problem}. Download it again.')
        self._place += length
        return self._handle.read(length)

    def _number(self, code: str) -> Any:
        return np.frombuffer(self._take(np.dtype(code).itemsize), code)[0].item()

    def _count(self, what: str, least: int) -> int:
        """A number of things of at least `least` bytes each."""
        count = self._number('<u8')
        if count * least > self._size - self._place:
            problem = f'it should have {count:,} {what} in {self._size:,} bytes'
            raise UserError(f'{self._path} is truncated or damaged: {problem}. Download it again.')
        return count

    def _string(self) -> str:
        (length,) = struct.unpack('<Q', self._take(8))
        try:
            return self._take(length).decode('utf-8')
        except UnicodeDecodeError:
            raise self._broken(f'has a text that is not UTF-8 before byte {self._place:,}') from None

    def _value(self, key: str) -> Any:
        kind = self._number('<u4')
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            kind = self._number('<u4')
            if kind == _STRING:
                return [self._string() for _ in range(self._count(f'texts in {key}', 8))]
            code = self._code(kind, key)
            count = self._count(f'numbers in {key}', np.dtype(code).itemsize)
            return np.frombuffer(self._take(count * np.dtype(code).itemsize), code)
        return self._number(self._code(kind, key))

    def _code(self, kind: int, key: str) -> str:
        code = _CODES[kind] if kind < len(_CODES) else ''
        if not code:
            what = 'an array of arrays' if kind == _ARRAY else f'a value of the unknown type {kind}'
            raise self._broken(f'holds {what} as {key!r}')
        return code

    def _tensor_info(self) -> tuple[str, tuple[int, ...], int, int]:
        """A tensor's name, shape, type and place in the data."""
        name, count = self._string(), self._number('<u4')
        if not 1 <= count <= _MOST_DIMENSIONS:
            raise self._broken(f'gives {name} {count:,} dimensions')
        shape = tuple(np.frombuffer(self._take(8 * count), '<u8').tolist())[::-1]  # the fastest comes first
        return name, shape, self._number('<u4'), self._number('<u8')

    def _tensors(self, places: list[tuple[str, tuple[int, ...], int, int]], start: int) -> dict[str, Tensor]:
        """The tensors, each with its bytes inside the file and apart from the others."""
        tensors: dict[str, Tensor] = {}
        end = start
        for name, shape, number, offset in sorted(places, key=lambda place: place[3]):
            if number not in blocks():
                known = ', '.join(TYPES)
                fix = 'Quantize the original to one of them (llama-quantize), or convert the Hugging Face folder.'
                given = f'{name} has the type {type_name(number)}, which is not converted; expected one of {known}'
                raise UserError(f'{self._path}: {given}. {fix}')
            if name in tensors:
                raise self._broken(f'has {name} twice')
            block, _ = blocks()[number]
            if not all(shape) or shape[-1] % block:
                raise self._broken(f'gives {name} the shape {list(shape)} in blocks of {block}')
            tensor = Tensor.of(self._path, number, shape, start + offset)
            if tensor.offset < end:
                raise self._broken(f'has {name} at byte {tensor.offset:,}, where another tensor lies')
            end = tensor.offset + tensor.stored_bytes
            if end > self._size:
                problem = f'{name} ends at byte {end:,}, but the file has {self._size:,}'
                raise UserError(f'{self._path} is truncated or damaged: {problem}. Download it again.')
            tensors[name] = tensor
        return tensors
