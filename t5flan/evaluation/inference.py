"""`t5flan infer`: a checkpoint's continuations of prompts on the command line, or of every row of a file.

Needs only the checkpoint folder. With a file, the output grows by whole lines in the order of the input, and running
the same command again resumes where it was stopped. With several hosts, each writes its share to its own file.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t5flan.decoding.config import GREEDY, Decoding
from t5flan.errors import UsageError, UserError, nearest
from t5flan.files import write_json

WINDOW = 4
"""Number of batches that are decoded together, sorted by length, before their rows are written."""

Row = dict[str, Any]


def infer(
    checkpoint: str,
    *,
    prompts: Sequence[str] = (),
    input: str | None = None,
    output: str | None = None,
    field: str = 'inputs',
    control: Sequence[str] = (),
    step: int | None = None,
    decoding: Decoding = GREEDY,
    json_file: str | None = None,
) -> None:
    """Continues `prompts` and prints the texts, or continues every row of `input` and writes them to `output`.

    Args:
        checkpoint: the workdir of a run, or one of its steps.
        input: a .jsonl file (one object per line, the text in `field`) or another text file (one text per line).
        output: a .jsonl file: the rows of the input with 'index' (the line number, from 0) and 'prediction' added.
        control: control or mode tokens of the vocabulary, put before every text in this order.
        json_file: write prompts and continuations to this file as JSON.

    Raises:
        UsageError: neither prompts nor an input, or both, or an input without an output.
        UserError: the checkpoint, the input or a setting is wrong.
    """
    if bool(prompts) == (input is not None):
        raise UsageError('set either --prompt="..." (once or more) or --input=FILE with --output=FILE')
    if (input is None) != (output is None):
        raise UsageError('--input=FILE and --output=FILE go together')
    decoding.require_one_sample('infer')

    def continued(model: Any, rows: Sequence[Row]) -> list[Row]:
        texts, numbers = [''.join((*control, row[field])) for row in rows], [row['index'] for row in rows]
        written = model.generate(texts, decoding=decoding, rows=numbers)
        return [row | {'prediction': text} for row, text in zip(rows, written, strict=True)]

    if input is None or output is None:
        model = load_with_control(checkpoint, step, control)
        rows = continued(model, [{field: prompt, 'index': i} for i, prompt in enumerate(prompts)])
        for row in rows:
            print(row['prediction'] if len(rows) == 1 else f'{row[field]}\n  -> {row["prediction"]}')
        if json_file is not None:
            answers = [{'inputs': row[field], 'prediction': row['prediction']} for row in rows]
            write_json(json_file, {'checkpoint': model.folder, 'step': model.step, 'rows': answers}, indent=2)
        return
    rows = read_rows(input, field)
    import jax

    host, hosts = jax.process_index(), jax.process_count()
    path = shard_path(Path(output), host, hosts)
    with RowWriter(path, rows[host::hosts], field) as writer:
        if not writer.remaining:
            print(f'{path} is complete: {len(writer.done)} rows')
            return
        model = load_with_control(checkpoint, step, control)
        started, before, total = time.monotonic(), len(writer.done), len(writer.done) + len(writer.remaining)
        while writer.remaining:
            writer.write(continued(model, writer.remaining[: WINDOW * decoding.batch_size]))
            rate = (len(writer.done) - before) / (time.monotonic() - started)
            print(f'{len(writer.done)} of {total} rows, {rate:.1f} per second', file=sys.stderr, flush=True)
    print(f'{path}: {len(writer.done)} rows')


def load_with_control(checkpoint: str, step: int | None, control: Sequence[str]) -> Any:
    """Loads a checkpoint and checks that its vocabulary has the control tokens: spelled in letters they have no effect.

    Raises:
        UserError: the checkpoint cannot be loaded, or lacks one of the tokens.
    """
    from t5flan.language_model import load  # imports JAX: wrong usage is reported before

    model = load(checkpoint, step)
    for token in control:
        if token not in model.vocabulary.mode_tokens:
            known = ', '.join(model.vocabulary.mode_tokens) or 'none'
            raise UserError(f'--control={token} is not a token of this checkpoint, which has {known}. Set --control.')
    return model


def read_rows(path: str, field: str) -> list[Row]:
    """The rows of a .jsonl file, or of a text file as {field: line}, with the line number as 'index'; no blank lines.

    Raises:
        UserError: the file is missing or empty, a line is not a JSON object, or its `field` is missing or not text.
    """
    try:
        lines = Path(path).read_text(encoding='utf-8').split('\n')  # splitlines() would also split at U+2028
    except UnicodeDecodeError as error:
        raise UserError(f'{path} is not UTF-8 text ({error.reason} at byte {error.start}).') from None
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}. Set --input.') from None
    is_json = path.endswith(('.jsonl', '.json'))
    rows = [
        (_json_row(f'{path}:{index + 1}', line, field) if is_json else {field: line.removesuffix('\r')})
        | {'index': index}
        for index, line in enumerate(lines)
        if line.strip()
    ]
    if not rows:
        raise UserError(f'{path} has no rows.')
    return rows


def _json_row(where: str, line: str, field: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f'{where} is not JSON: {error.msg} at column {error.colno}.') from None
    if not isinstance(row, dict):
        raise UserError(f'{where} is a {type(row).__name__}, expected an object with a field {field!r}.')
    if field not in row:
        near = nearest(field, row)
        hint = f' (did you mean {near}?)' if near else ''
        fields = ', '.join(row) or 'none'
        raise UserError(f'{where}: the field {field!r} is missing; the fields are {fields}{hint}. Set --field.')
    if not isinstance(row[field], str):
        raise UserError(f'{where}: the field {field!r} is not text. Set --field.')
    return row


def shard_path(path: Path, host: int, hosts: int) -> Path:
    """out.jsonl on a single host, out-00001-of-00004.jsonl on the second of four."""
    return path if hosts == 1 else path.with_name(f'{path.stem}-{host:05}-of-{hosts:05}{path.suffix}')


class RowWriter:
    """Appends rows to a .jsonl file in the order of `rows`, and finds out which of them an earlier run wrote.

    Attributes:
        done: indices of the written rows.
        remaining: the other rows.

    Raises:
        UserError: the file holds something other than answers to these rows.
    """

    def __init__(self, path: Path, rows: Sequence[Row], field: str) -> None:
        self._path = path
        self.done = self._read(rows, field)
        self.remaining = [row for row in rows if row['index'] not in self.done]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open('ab')

    def _read(self, rows: Sequence[Row], field: str) -> set[int]:
        if not self._path.exists():
            return set()
        data = self._path.read_bytes()
        whole = data.rfind(b'\n') + 1
        by_index = {row['index']: row for row in rows}
        done = set()
        for number, line in enumerate(data[:whole].split(b'\n')[:-1], 1):
            try:
                row = json.loads(line)
                same = row['prediction'] is not None and by_index[row['index']][field] == row[field]
            except (ValueError, KeyError, TypeError):
                same = False
            if not same:
                where = f'{self._path}:{number}'
                raise UserError(
                    f'{where} does not answer a row of this input. Set another --output, or remove the file.'
                )
            done.add(row['index'])
        if whole < len(data):  # an incomplete line of a killed run
            os.truncate(self._path, whole)
        return done

    def write(self, rows: Sequence[Row]) -> None:
        """Appends rows and flushes the file."""
        lines = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
        self._file.write(lines.encode('utf-8', 'surrogatepass'))
        self._file.flush()
        self.done |= {row['index'] for row in rows}
        self.remaining = self.remaining[len(rows) :]

    def __enter__(self) -> 'RowWriter':
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()
