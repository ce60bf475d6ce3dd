"""Tables and compressed files, converted once to files that are read in place.

Conversions are stored in the cache folder and made again when the file's size or modification time changes. A line of a
table becomes the same line of JSON Lines, so line numbers stay those of the user's file.
"""

import csv
import functools
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from t5flan.data.randomness import stable_hash
from t5flan.errors import UserError
from t5flan.files import cache_folder, open_whole

BAD_ROW = '\0bad row'
"""The key under which a conversion keeps the problem of a row, so that every reading reports it."""
_VERSION = 1


def converted(
    path: str, format: str, rows: Callable[[], Iterable[Any]] | None = None, stamp: str = '', source: str = ''
) -> str:
    """The rows of a table as a file of JSON Lines.

    Args:
        path: the file or data set that the user named.
        format: 'csv', 'tsv' or 'parquet'; another one needs `rows` and `stamp`.
        rows: returns the rows; None stands for blank lines.
        stamp: changes when the rows have to be converted again; by default the file's size and modification time.
        source: the file to read, if it is not `path` itself.

    Raises:
        UserError: the file is damaged; names file and row.
    """
    make = rows or functools.partial(_READERS[format], source or path, path)

    def write(file: IO[bytes]) -> None:
        for row in make():
            file.write(b'\n' if row is None else _json_of(row) + b'\n')

    return _stored(path, f'{format}.jsonl', write, stamp)


def decompressed(path: str, format: str) -> str:
    """The content of a file of 'gzip', 'zstd' or 'utf-16', decompressed and as UTF-8.

    Raises:
        UserError: the file is cut off or damaged.
    """

    def write(file: IO[bytes]) -> None:
        try:
            if format == 'utf-16':
                with open(path, encoding='utf-16', newline='') as text:
                    for piece in iter(lambda: text.read(2**20), ''):
                        file.write(piece.encode())
                return
            import pyarrow

            with pyarrow.input_stream(path, compression=format) as stream:
                while piece := stream.read(2**22):
                    file.write(piece)
        except UnicodeError:
            raise UserError(f'{path}: not UTF-16 text, as its first bytes say. Save the file as UTF-8.') from None
        except OSError as error:
            why = str(error).splitlines()[0]
            raise UserError(f'{path}: the {format} data is cut off or damaged ({why}). Copy the file again.') from None

    return _stored(path, format, write)


def _stored(path: str, kind: str, write: Callable[[IO[bytes]], None], stamp: str = '') -> str:
    """The path of a conversion in the cache folder, which `write` makes if it is missing or outdated."""
    place = f'{stable_hash(os.path.abspath(path)):016x}'
    version = stable_hash(f'{stamp or _stamp(path)} {kind} {_VERSION}')
    target = cache_folder() / 'rows' / f'{place}-{version:016x}.{kind}'
    if target.is_file():
        return str(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        target = Path(_temporary_folder(), target.name)
    for outdated in target.parent.glob(f'{place}-*.{kind}'):
        outdated.unlink(missing_ok=True)
    with open_whole(target, 'wb') as file:
        write(file)
    return str(target)


def _stamp(path: str) -> str:
    status = os.stat(path)
    return f'{status.st_size} {status.st_mtime_ns}'


@functools.cache
def _temporary_folder() -> str:
    """For conversions when the cache folder is read-only; kept for the life of the process."""
    folder = tempfile.TemporaryDirectory(prefix='t5flan-rows-')
    _kept.append(folder)
    return folder.name


_kept: list[tempfile.TemporaryDirectory] = []


def _json_of(row: Any) -> bytes:
    """The JSON of a row, or of what is wrong with it: bytes that are no text, at any depth."""
    try:
        return json.dumps(row, default=_text_of, ensure_ascii=False).encode()
    except UnicodeDecodeError:
        names = [name for name, value in row.items() if _is_binary(value)]
        problem = f'column {", ".join(map(repr, names))} holds bytes that are not UTF-8 text. Remove the column.'
        return json.dumps({BAD_ROW: problem}).encode()


def _is_binary(value: Any) -> bool:
    try:
        json.dumps(value, default=_text_of)
    except UnicodeDecodeError:
        return True
    return False


def _text_of(value: Any) -> str:
    """Values that JSON lacks: bytes that are UTF-8, and dates, times and decimals as they are printed."""
    return value.decode('utf-8') if isinstance(value, bytes) else str(value)


def _delimited(path: str, named: str, is_csv: bool) -> Iterator[dict[str, str] | None]:
    r"""The rows of a table whose first line names the columns; None for lines that end no row.

    In a .tsv file only '\n' ends a line, and quotes are ordinary characters; a .csv file is read as spreadsheets write
    it, with ',' or ';' between the cells.
    """
    done, number, header = 0, 0, None
    with open(path, encoding='utf-8-sig', newline='' if is_csv else '\n') as file:
        lines = _csv_lines(file) if is_csv else _tsv_lines(file)
        try:
            for number, cells in lines:
                yield from [None] * (number - 1 - done)
                done = number
                if not cells or header is None:
                    header = _header(cells, f'{named} line {number}') if cells else header
                    yield None
                elif len(cells) != len(header):
                    counts = f'{len(cells)} columns, the first line has {len(header)}'
                    yield {BAD_ROW: f'{counts}. Fix the line (quotes, tabs or commas in a cell).'}
                else:
                    yield dict(zip(header, cells, strict=True))
        except UnicodeDecodeError:
            raise UserError(f'{named} after line {number}: not UTF-8. Save the file as UTF-8.') from None
        except csv.Error as error:
            raise UserError(f'{named} after line {number}: not CSV ({error}). Fix the quotes in that line.') from None


def _csv_lines(file: IO[str]) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(2**31 - 1)
    first = file.readline()
    file.seek(0)
    reader = csv.reader(file, strict=True, delimiter=';' if ';' in first and ',' not in first else ',')
    return ((reader.line_num, cells) for cells in reader)


def _tsv_lines(file: IO[str]) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(file, 1):
        yield number, line.rstrip('\r\n').split('\t') if line.strip('\r\n') else []


def _header(cells: list[str], where: str) -> list[str]:
    if twice := next((cell for cell in cells if cells.count(cell) > 1), None):
        raise UserError(f'{where}: the column {twice!r} is named twice. Rename one of them.')
    return cells


def _parquet(path: str, named: str) -> Iterator[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    yield row
    except (pyarrow.ArrowException, OSError) as error:
        why = str(error).splitlines()[0][:80]
        where = f'{named} after row {number}' if number else named
        raise UserError(f'{where}: not a whole Parquet file ({why}). Copy the file again.') from None


_READERS: dict[str, Callable[[str, str], Iterator[Any]]] = {
    'csv': functools.partial(_delimited, is_csv=True),
    'tsv': functools.partial(_delimited, is_csv=False),
    'parquet': _parquet,
}
