"""t5flan/data/records/rows.py: one small file of every format, and every way in which a file may be broken."""

import bz2
import csv
import datetime
import gzip
import io
import json
import os

import pyarrow
import pyarrow.parquet
import pytest

from t5flan.data.records import rows as rows_lib
from t5flan.data.records.file_rows import read_bytes
from t5flan.data.records.paths import match_files
from t5flan.data.records.rows import match_rows, parse_row, read_rows
from t5flan.errors import UserError

ROWS = [{'inputs': 'a', 'targets': 'ä, "b"\tc'}, {'inputs': '漢\u2028字', 'targets': 'two\nlines'}]
LINES = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in ROWS)
BOM = '\ufeff'


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def table(rows=ROWS, **options):
    text = io.StringIO(newline='')
    writer = csv.writer(text, **options)
    writer.writerows([list(rows[0]), *[list(row.values()) for row in rows]])
    return text.getvalue()


def parquet(rows=ROWS, **columns):
    data = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows) if not columns else pyarrow.table(columns), data)
    return data.getvalue()


def zstd(data):
    out = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(out, 'zstd') as stream:
        stream.write(data)
    return out.getvalue().to_pybytes()


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode('utf-8'))
    return str(path)


TSV = [{'inputs': 'a "quoted', 'targets': 'b'}, {'inputs': '', 'targets': 'd'}]
TSV_TEXT = 'inputs\ttargets\na "quoted\tb\n\n\td\n'
FILES = {
    'a.jsonl': (LINES, ROWS),
    'mark.jsonl': (BOM + LINES, ROWS),
    'mark on a line of its own.jsonl': (f'{BOM}\n{LINES}', ROWS),
    'crlf.jsonl': (LINES.replace('\n', '\r\n').replace('two\r\n', 'two\n'), ROWS),
    'blank lines.jsonl': (f'\n{LINES}\n \n', ROWS),
    'no end.jsonl': (LINES.rstrip('\n'), ROWS),
    'list.json': (json.dumps(ROWS), ROWS),
    'indented.json': (json.dumps(ROWS, indent=2), ROWS),
    'keyed.json': (BOM + json.dumps({'x': ROWS[0], 'y': ROWS[1]}, indent=1), ROWS),
    'with version.json': (json.dumps({'version': '1.1', 'data': ROWS}), ROWS),
    'a.csv': (table(), ROWS),
    'excel.csv': (BOM + table(), ROWS),
    'semicolons.csv': (table(delimiter=';'), ROWS),
    'windows.csv': (table([ROWS[0]]), [ROWS[0]]),
    'a.tsv': (TSV_TEXT, TSV),
    'crlf.tsv': (BOM + TSV_TEXT.replace('\n', '\r\n'), TSV),
    'a.parquet': (parquet(), ROWS),
    'unicode text.txt': (TSV_TEXT.encode('utf-16'), TSV),
    'utf16.jsonl': (LINES.encode('utf-16'), ROWS),
    'a.jsonl.gz': (gzip.compress(LINES.encode()), ROWS),
    'two parts.jsonl.gz': (b''.join(gzip.compress((line + '\n').encode()) for line in LINES.split('\n')[:-1]), ROWS),
    'a.json.zst': (zstd(json.dumps(ROWS).encode()), ROWS),
    'a.csv.gz': (gzip.compress(table().encode()), ROWS),
    'a.tsv.zst': (zstd(TSV_TEXT.encode()), TSV),
    'a.parquet.gz': (gzip.compress(parquet()), ROWS),
    # Names that mislead.
    'lines.json': (LINES, ROWS),
    'list.jsonl': (json.dumps(ROWS, indent=1), ROWS),
    'tabs.csv': (TSV_TEXT, TSV),
    'commas.tsv': (table(), ROWS),
    'lines.txt': (LINES, ROWS),
    'table.jsonl': (table(), ROWS),
    'unnamed': (LINES, ROWS),
    'compressed.jsonl': (gzip.compress(LINES.encode()), ROWS),
    'parquet.csv': (parquet(), ROWS),
    # Names that shells and globs read in their own way.
    'a [v2] *? {x} #1.jsonl': (LINES, ROWS),
}


@pytest.mark.parametrize('name', FILES)
def test_every_format_gives_the_same_rows(tmp_path, name):
    content, expected = FILES[name]
    path = written(tmp_path / name, content)
    assert match_rows(path, 'FileTask.train') == [path]
    for _ in range(2):  # the second time from the cache folder
        rows = list(read_rows(path))
        assert [row.value for row in rows] == expected
        # What training reads by offset is the same.
        assert [parse_row(read_bytes(row.path, row.offset, len(row.data)), row.where) for row in rows] == expected
        assert all(row.where.startswith(f'{path} ') for row in rows)


def test_rows_are_named_by_their_line_in_the_users_file(tmp_path):
    wheres = {
        name: [row.where.split('/')[-1] for row in read_rows(written(tmp_path / name, FILES[name][0]))]
        for name in FILES
    }
    assert wheres['blank lines.jsonl'] == ['blank lines.jsonl line 2', 'blank lines.jsonl line 3']
    assert wheres['a.tsv'] == ['a.tsv line 2', 'a.tsv line 4']
    assert wheres['a.csv'] == ['a.csv line 2', 'a.csv line 4']  # its cell has two lines
    assert wheres['a.csv.gz'] == ['a.csv.gz line 2', 'a.csv.gz line 4']
    assert wheres['keyed.json'] == ["keyed.json 'x'", "keyed.json 'y'"]
    assert wheres['with version.json'][1] == "with version.json 'data' row 2"
    assert wheres['a.parquet'] == ['a.parquet row 1', 'a.parquet row 2']


def test_values_of_parquet_that_json_lacks(tmp_path):
    path = written(
        tmp_path / 'a.parquet',
        parquet(
            inputs=['q'],
            answers=[{'text': ['x', 'y'], 'start': [1, 2]}],
            day=[datetime.date(2026, 1, 2)],
            raw=[b'bytes'],
            none=pyarrow.array([None], pyarrow.string()),
        ),
    )
    [row] = read_rows(path)
    assert row.value.pop('answers') == {'text': ['x', 'y'], 'start': [1, 2]}
    assert row.value == {'inputs': 'q', 'day': '2026-01-02', 'raw': 'bytes', 'none': None}


def test_a_changed_file_is_converted_again_and_the_old_conversion_removed(tmp_path):
    path = written(tmp_path / 'a.csv', 'x\n1\n')
    assert [row.value for row in read_rows(path)] == [{'x': '1'}]
    written(tmp_path / 'a.csv', 'x\n22\n')
    assert [row.value for row in read_rows(path)] == [{'x': '22'}]
    assert len(list((tmp_path / 'cache' / 't5flan' / 'rows').iterdir())) == 1


def test_without_a_cache_folder_a_temporary_one_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', written(tmp_path / 'a file', 'x'))
    assert [row.value for row in read_rows(written(tmp_path / 'a.csv', 'x\n1\n'))] == [{'x': '1'}]


def test_long_lines_and_deep_rows(tmp_path):
    long = 'x' * 20_000_000
    [row] = read_rows(written(tmp_path / 'a.jsonl', json.dumps({'inputs': long})))
    assert row.value['inputs'] == long
    [row] = read_rows(written(tmp_path / 'a.csv', f'inputs\n{long}\n'))
    assert row.value['inputs'] == long
    [row] = read_rows(written(tmp_path / 'b.jsonl', '{"a": ' + '[' * 100 + ']' * 100 + '}'))
    assert len(str(row.value['a'])) == 200


DEEP = '{"a": ' + '[' * 200_000 + ']' * 200_000 + '}'
FAULTS = {
    'empty.jsonl': ('', 'is empty'),
    'blank.jsonl': (' \n\n', 'is empty'),
    'mark.jsonl': (BOM, 'is empty'),
    'text.jsonl': ('once upon a time\n', 'text.jsonl line 1: not JSON'),
    'half.jsonl': (LINES + '{"inputs": "a"', 'half.jsonl line 3: not JSON'),
    'list.jsonl': ('{"a": 1}\n[1]\n', 'list.jsonl line 2: is list, not a JSON object'),
    'latin.jsonl': ('{"a": "é"}'.encode('latin-1'), r'latin.jsonl line 1: not JSON \(not UTF-8\)'),
    'deep.jsonl': (DEEP, r'deep.jsonl line 1: not JSON \(it is nested too deeply\)'),
    'deep.json': (f'[{DEEP}]', r'deep.json row 1: not JSON \(it is nested too deeply\)'),
    'cut.json': ('[{"a": 1}, {"a"', 'cut.json row 2: not JSON'),
    'two.json': ('[{"a": 1}]\n[{"a": 2}]', 'two.json: more text after the end of the JSON value'),
    'numbers.json': ('[{"a": 1}, 2]', 'numbers.json row 2: is int, not a JSON object'),
    'scalars.json': ('{"inputs": "a",\n "targets": "b"}', "scalars.json 'inputs': is not a row"),
    'mixed.json': ('{"x": {"inputs": "a"}, "n": 3}', "mixed.json 'n': is not a row, as the others are"),
    'word.json': ('"text"', 'word.json: begins with'),
    'columns.csv': ('a,b\n1,2\n1\n', 'columns.csv line 3: 1 columns, the first line has 2'),
    'quotes.csv': ('a,b\n"1,2\n', 'quotes.csv after line 1: not CSV'),
    'twice.csv': ('a,b,a\n1,2,3\n', "twice.csv line 1: the column 'a' is named twice"),
    'latin.tsv': ('a\tb\n1\té\n'.encode('latin-1'), 'latin.tsv after line .: not UTF-8'),
    'cut.jsonl.gz': (gzip.compress(LINES.encode() * 50)[:-20], 'cut.jsonl.gz: the gzip data is cut off or damaged'),
    'cut.csv.zst': (zstd(table().encode() * 50)[:-9], 'cut.csv.zst: the zstd data is cut off or damaged'),
    'nothing.jsonl.gz': (gzip.compress(b''), 'nothing.jsonl.gz is empty'),
    'cut.parquet': (parquet()[:-30], 'cut.parquet: not a whole Parquet file'),
    'bytes.parquet': (parquet(a=[b'\xff\xfe']), "bytes.parquet row 1: column 'a' holds bytes that are not UTF-8"),
    'odd.tsv': (TSV_TEXT.encode('utf-16') + b'\x00', 'odd.tsv: not UTF-16 text'),
    'book.csv': (b'PK\x03\x04....', 'book.csv is a ZIP or Excel file. Export it as CSV'),
    'a.jsonl.bz2': (bz2.compress(LINES.encode()), 'is compressed with bzip2'),
    'pointer.jsonl': ('version https://git-lfs.github.com/spec/v1\noid sha256:4d\n', 'is a pointer of Git LFS'),
    'page.json': ('<!DOCTYPE html><html>', 'page.json is a web page'),
    'prose.md': ('Once upon a time, there was', 'prose.md: no rows are recognized in it'),
}


@pytest.mark.parametrize('name', FAULTS)
def test_one_line_for_a_broken_file(tmp_path, name):
    content, pattern = FAULTS[name]
    path = written(tmp_path / name, content)
    with pytest.raises(UserError, match=pattern) as error:
        list(read_rows(path))
    assert '\n' not in str(error.value) and str(error.value).count('/') < 20
    assert not list((tmp_path / 'cache').glob('**/*.tmp'))


@pytest.mark.parametrize('name', ['columns.csv', 'list.jsonl', 'numbers.json', 'bytes.parquet'])
def test_a_row_that_cannot_be_read_is_skipped_on_request(tmp_path, name):
    errors = []
    found = list(
        read_rows(written(tmp_path / name, FAULTS[name][0]), lambda where, error: errors.append((where, error)))
    )
    assert len(errors) == 1 and len(found) == (name != 'bytes.parquet')
    assert errors[0][0] in str(errors[0][1])


def test_paths_and_globs(tmp_path, monkeypatch):
    folder = tmp_path / 'data [v2] {x} #?'
    folder.mkdir()
    b, a = (written(folder / name, LINES) for name in ('b*.jsonl', 'a.jsonl'))
    assert match_files(str(folder / '*.jsonl'), 's') == [a, b]
    assert match_files(b, 's') == [b]  # the file itself, not what the pattern matches
    assert match_files(str(folder / '[a]*'), 's') == [a]
    assert match_files(str(tmp_path / '**' / 'a.jsonl'), 's') == [a]
    monkeypatch.setenv('HOME', str(folder))
    assert match_files('~/a.jsonl', 's') == [a] and match_files('~/[a].jsonl', 's') == [a]
    monkeypatch.chdir(folder)
    assert match_files('*.jsonl', 's') == ['a.jsonl', 'b*.jsonl']
    os.mkfifo(folder / 'pipe')
    for pattern, message in {
        'c*.jsonl': "s='c.*' matches no file",
        'c.jsonl': 'c.jsonl: no such file. Set s',
        '~/': 'is a folder, s must be a file or a glob such as',
        'pipe': 'pipe: not a regular file',
    }.items():
        with pytest.raises(UserError, match=message):
            match_files(pattern, 's')


def test_an_unreadable_file(tmp_path, monkeypatch):
    path = written(tmp_path / 'a.jsonl', LINES)

    def denied(*_):
        raise PermissionError(13, 'Permission denied')

    monkeypatch.setattr(rows_lib, 'read_bytes', denied)
    with pytest.raises(UserError, match='a.jsonl: Permission denied. Set the path of a readable file'):
        list(read_rows(path))
