"""`t5flan infer`: what a checkpoint writes for prompts on the command line, or for every row of a file.

Needs nothing but the checkpoint folder. With a file the output grows by whole lines in the order of the input, and the same
command goes on where a killed one stopped; each host of several does its share, into a file of its own.
"""

import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from t5flan.decoding.sampling import Sampling
from t5flan.errors import UsageError, UserError, nearest
from t5flan.files import write_json

WINDOW = 4
"""So many batches are generated together, sorted by length, before their rows are written."""


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How rows are continued.

    Attributes:
        max_new_tokens: None is the length of targets in training.
        sampling: greedy, or temperature, top-k and top-p.
        seed: decides what is drawn; a row draws the same whatever file, batch or host it is in, given its number.
        batch_size: rows at a time.
        before: what is put in front of every text: control and mode tokens.
    """

    max_new_tokens: int | None = None
    sampling: Sampling = Sampling()
    seed: int = 0
    batch_size: int = 32
    before: str = ''


def infer(
    checkpoint: str,
    *,
    prompts: Sequence[str] = (),
    input: str | None = None,
    output: str | None = None,
    field: str = 'inputs',
    step: int | None = None,
    max_new_tokens: int | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
    control: Sequence[str] = (),
    json_file: str | None = None,
) -> None:
    """Continues `prompts` and prints the texts, or continues every row of `input` into `output`.

    Args:
        checkpoint: the workdir of a run, or one of its steps.
        input: a .jsonl (one object a line, the text in `field`) or any other text file (one text a line).
        output: a .jsonl; every row is that of the input with 'index' (its line, from 0) and 'prediction' added.
        control: control or mode tokens of the vocabulary, put in front of every text in this order.
        json_file: where prompts and what was written for them go as JSON.

    Raises:
        UsageError: neither prompts nor an input, or both, or an input without an output.
        UserError: the checkpoint, the input or a setting is wrong.
    """
    if bool(prompts) == (input is not None):
        raise UsageError('give either --prompt="…" (once or more) or --input=FILE with --output=FILE')
    if (input is None) != (output is None):
        raise UsageError('--input=FILE and --output=FILE go together')
    decoding = Decoding(max_new_tokens, Sampling(temperature, top_k, top_p), seed, batch_size, ''.join(control))
    if batch_size < 1 or (max_new_tokens is not None and max_new_tokens < 1):
        raise UsageError(f'--batch_size={batch_size} --max_new_tokens={max_new_tokens}: expected counts of 1 or more')
    rows = read_rows(input, field) if input is not None else []

    from t5flan.language_model import load  # JAX comes here: mistakes above are answered at once

    if input is not None:
        import jax

        host, hosts = jax.process_index(), jax.process_count()
        target = shard_path(Path(output), host, hosts)
        with RowWriter(target, rows[host::hosts], field) as writer:
            if not writer.remaining:
                print(f'{target} is complete: {len(writer.done)} rows')
                return
            model = load(checkpoint, step)
            check_control(control, model)
            infer_rows(model, writer, field, decoding)
        print(f'{target}: {len(writer.done)} rows')
        return
    model = load(checkpoint, step)
    check_control(control, model)
    texts = _generate(model, list(prompts), range(len(prompts)), decoding)
    for prompt, text in zip(prompts, texts):
        print(text if len(prompts) == 1 else f'{prompt}\n  -> {text}')
    if json_file is not None:
        answers = [{'inputs': prompt, 'prediction': text} for prompt, text in zip(prompts, texts)]
        write_json(json_file, {'checkpoint': model.folder, 'step': model.step, 'rows': answers}, indent=2)


def check_control(tokens: Sequence[str], model: Any) -> None:
    """Whether the model's vocabulary has these tokens.

    Raises:
        UserError: it has not; spelled in letters they would control nothing.
    """
    for token in tokens:
        if token not in model.vocabulary.mode_tokens:
            known = ', '.join(model.vocabulary.mode_tokens) or 'none'
            raise UserError(
                f'--control={token} is no token of this checkpoint, which has {known}. Set --control to one of them.'
            )


def infer_rows(model: Any, writer: 'RowWriter', field: str, decoding: Decoding) -> None:
    """Continues the rows that `writer` lacks, window by window."""
    started, before, total = time.monotonic(), len(writer.done), len(writer.done) + len(writer.remaining)
    window = WINDOW * decoding.batch_size
    while writer.remaining:
        rows = writer.remaining[:window]
        texts = _generate(model, [row[field] for row in rows], [row['index'] for row in rows], decoding)
        writer.write([row | {'prediction': text} for row, text in zip(rows, texts)])
        rate = (len(writer.done) - before) / (time.monotonic() - started)
        print(f'{len(writer.done)} of {total} rows, {rate:.1f} a second', file=sys.stderr, flush=True)


def _generate(model: Any, texts: list[str], numbers: Sequence[int], decoding: Decoding) -> list[str]:
    sampling = decoding.sampling
    return model.generate(
        [decoding.before + text for text in texts],
        decoding.max_new_tokens,
        sampling.temperature,
        sampling.top_k,
        sampling.top_p,
        decoding.seed,
        decoding.batch_size,
        rows=numbers,
    )


def read_rows(path: str, field: str) -> list[dict[str, Any]]:
    """The rows of a .jsonl, or of a text file as {field: line}, each with its line's number as 'index'; blank lines are left out.

    Raises:
        UserError: the file is missing or empty, a line is not a JSON object, or its `field` is missing or not text.
    """
    try:
        lines = Path(path).read_text(encoding='utf-8').split('\n')  # splitlines() would also split at U+2028
    except UnicodeDecodeError as error:
        raise UserError(f'{path} is not UTF-8 text ({error.reason} at byte {error.start}).') from None
    except OSError as error:
        raise UserError(f'{path}: {error.strerror}. Set --input.') from None
    as_json = path.endswith(('.jsonl', '.json'))
    rows = [
        _json_row(f'{path}:{index + 1}', line, field) | {'index': index}
        if as_json
        else {field: line.removesuffix('\r'), 'index': index}
        for index, line in enumerate(lines)
        if line.strip()
    ]
    if not rows:
        raise UserError(f'{path} holds no rows.')
    return rows


def _json_row(where: str, line: str, field: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f'{where} is not JSON: {error.msg} at column {error.colno}.') from None
    if not isinstance(row, dict):
        raise UserError(f'{where} is a {type(row).__name__}, expected an object with a field {field!r}.')
    if not isinstance(row.get(field), str):
        near = nearest(field, row)
        hint = f' (did you mean {near}?)' if near and field not in row else ''
        what = 'is not text' if field in row else f'is missing; there are {", ".join(row) or "none"}{hint}'
        raise UserError(f'{where}: the field {field!r} {what}. Set --field.')
    return row


def shard_path(path: Path, host: int, hosts: int) -> Path:
    """out.jsonl on one host, out-00001-of-00004.jsonl on the second of four."""
    return path if hosts == 1 else path.with_name(f'{path.stem}-{host:05}-of-{hosts:05}{path.suffix}')


class RowWriter:
    """Appends rows to a .jsonl in the order of `rows`, and finds out which of them an earlier run has written.

    Attributes:
        done: indices of the rows that are written.
        remaining: the rows that are not.

    Raises:
        UserError: the file holds something else than the answers to these rows.
    """

    def __init__(self, path: Path, rows: Sequence[dict[str, Any]], field: str):
        self._path = path
        self.done = self._read(rows, field)
        self.remaining = [row for row in rows if row['index'] not in self.done]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open('ab')

    def _read(self, rows: Sequence[dict[str, Any]], field: str) -> set[int]:
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
                raise UserError(
                    f'{self._path}:{number} does not answer a row of this input; take another --output, or '
                    'remove that file.'
                )
            done.add(row['index'])
        if whole < len(data):  # a line that a killed run had begun
            os.truncate(self._path, whole)
        return done

    def write(self, rows: Sequence[dict[str, Any]]) -> None:
        """Appends rows; they are on their way to disk when this returns."""
        self._file.write(
            ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows).encode('utf-8', 'surrogatepass')
        )
        self._file.flush()
        self.done |= {row['index'] for row in rows}
        self.remaining = self.remaining[len(rows) :]

    def __enter__(self) -> 'RowWriter':
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()
