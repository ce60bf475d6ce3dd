"""`t5flan infer`: a checkpoint's continuations of prompts on the command line, or of every row of a file.

Needs only the checkpoint folder. With a file, the output grows by whole lines in the order of the input, and running
the same command again resumes where it was stopped. With several hosts, each writes its share to its own file.
"""

import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from t5flan.data.records import rows as rows_lib
from t5flan.data.records.fields import require_field
from t5flan.data.records.hub import is_dataset
from t5flan.data.records.paths import match_files
from t5flan.data.records.rows import is_rows, plain_text
from t5flan.data.vocabulary import chat_template
from t5flan.decoding.config import GREEDY, Decoding
from t5flan.errors import UsageError, UserError
from t5flan.files import write_json

WINDOW = 4
"""Number of batches that are decoded together, sorted by length, before their rows are written."""

INDEX, PREDICTION = 'index', 'prediction'
"""The fields that are added to a row, unless the row has fields of that name."""

Row = dict[str, Any]


class Prompt(NamedTuple):
    """A text to continue and the row it comes from."""

    number: int
    """Number of the row, from 0, which with the seed determines its samples."""
    text: str
    row: Row


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
    chat: bool = False,
) -> None:
    """Continues `prompts` and prints the texts, or continues every row of `input` and writes them to `output`.

    Args:
        checkpoint: the workdir of a run, or one of its steps.
        input: a file or glob of rows in any format (the text in `field`), or of plain text (one text per line).
        output: a .jsonl file: the rows of the input with 'index' (the line number, from 0) and 'prediction' added, as
            't5flan_index' and 't5flan_prediction' if the rows have fields of these names. The column 'targets' of a
            table is written as 'target', as in the predictions of `evaluate`.
        field: the field of the rows that holds the text; the model sees nothing else of a row.
        control: control or mode tokens of the vocabulary, put before every text in this order.
        json_file: write prompts and continuations to this file as JSON.
        chat: each prompt is a turn of a user, which the chat template of the checkpoint's tokenizer words.

    Raises:
        UsageError: neither prompts nor an input, or both, or an input without an output.
        UserError: the checkpoint, the input or a setting is wrong.
    """
    if bool(prompts) == (input is not None):
        raise UsageError('set either --prompt="..." (once or more) or --input=FILE with --output=FILE')
    if (input is None) != (output is None):
        raise UsageError('--input=FILE and --output=FILE go together')
    decoding.require_one_sample('infer')

    def continued(model: Any, prompts: Sequence[Prompt]) -> list[str]:
        texts = [''.join((*control, prompt.text)) for prompt in prompts]
        if chat:
            turns = [[{'role': 'user', 'content': text}] for text in texts]
            return model.chat(turns, decoding=decoding, rows=[prompt.number for prompt in prompts])
        return model.generate(texts, decoding=decoding, rows=[prompt.number for prompt in prompts])

    if input is None or output is None:
        model = load_with_control(checkpoint, step, control)
        written = continued(model, [Prompt(i, text, {}) for i, text in enumerate(prompts)])
        for text, prediction in zip(prompts, written, strict=True):
            print(prediction if len(prompts) == 1 else f'{text}\n  -> {prediction}')
        if json_file is not None:
            answers = [{'inputs': text, 'prediction': one} for text, one in zip(prompts, written, strict=True)]
            write_json(json_file, {'checkpoint': model.folder, 'step': model.step, 'rows': answers}, indent=2)
        return
    found = read_prompts(input, field)
    import jax

    host, hosts = jax.process_index(), jax.process_count()
    path = shard_path(Path(output), host, hosts)
    with RowWriter(path, found[host::hosts]) as writer:
        if not writer.remaining:
            print(f'{path} is complete: {len(writer.done)} rows')
            return
        if writer.prediction != PREDICTION:
            print(f'the rows have a field {PREDICTION!r}: the answers go to {writer.prediction!r}', file=sys.stderr)
        model = load_with_control(checkpoint, step, control)
        started, before, total = time.monotonic(), len(writer.done), len(writer.done) + len(writer.remaining)
        while writer.remaining:
            writer.write(continued(model, writer.remaining[: WINDOW * decoding.batch_size]))
            rate = (len(writer.done) - before) / (time.monotonic() - started)
            print(f'{len(writer.done)} of {total} rows, {rate:.1f} per second', file=sys.stderr, flush=True)
    print(f'{path}: {len(writer.done)} rows')


def converse(
    checkpoint: str, *, step: int | None = None, decoding: Decoding = GREEDY, ask: Callable[[str], str] = input
) -> None:
    """A conversation in the terminal: each line is a turn, worded by the checkpoint's chat template.

    An empty line or /new starts over; /quit, Ctrl-D or Ctrl-C ends. A turn that the template refuses is reported and
    left out.

    Args:
        ask: shows a prompt and returns a line; raises EOFError at the end.

    Raises:
        UserError: the checkpoint cannot be loaded or has no chat template.
    """
    decoding.require_one_sample('infer')
    model = load_with_control(checkpoint, step, ())
    chat_template.require(model.vocabulary)
    print('an empty line starts a new conversation, /quit ends', file=sys.stderr)
    turns: list[dict[str, str]] = []
    while True:
        try:
            text = ask('> ').strip()
            if text == '/quit':
                return
            if text in ('', '/new'):
                turns = []
                continue
            asked = [*turns, {'role': 'user', 'content': text}]
            [reply] = model.chat([asked], decoding=decoding)
        except (EOFError, KeyboardInterrupt):
            print()
            return
        except UserError as error:
            print(error, file=sys.stderr)
            continue
        print(reply, flush=True)
        turns = [*asked, {'role': 'assistant', 'content': reply}]


def load_with_control(checkpoint: str, step: int | None, control: Sequence[str]) -> Any:
    """Loads a checkpoint and checks that its vocabulary has the control tokens: spelled in letters they have no effect.

    Raises:
        UserError: the checkpoint cannot be loaded, or lacks one of the tokens.
    """
    from t5flan.language_model import load  # imports JAX: wrong usage is reported before

    model = load(checkpoint, step)
    for token in control:
        if token not in model.vocabulary.control_tokens:
            known = ', '.join(model.vocabulary.control_tokens) or 'none'
            raise UserError(f'--control={token} is not a token of this checkpoint, which has {known}. Set --control.')
    return model


def read_prompts(pattern: str, field: str) -> list[Prompt]:
    """The prompts of a file or glob: `field` of every row of any format, or the lines of plain text.

    A prompt's row gets 'index', the number of its line or row, from 0; blank lines are counted but are no prompts.

    Raises:
        UserError: a file is missing, empty or damaged, or `field` is missing or not text; names file and row.
    """
    prompts: list[Prompt] = []
    start = 0
    for path in [pattern] if is_dataset(pattern) else match_files(pattern, '--input'):
        last = start
        for number, where, row in _rows(path, field):
            last = start + number
            text = require_field(row, field, where, '--field')
            prompts.append(Prompt(last - 1, text, row))
        start = last
    if not prompts:
        raise UserError(f'{pattern} has no rows. Set --input.')
    names = {name for prompt in prompts for name in prompt.row}
    index = free_name(INDEX, names)
    return [prompt._replace(row={**prompt.row, index: prompt.number}) for prompt in prompts]


def _rows(path: str, field: str) -> Iterator[tuple[int, str, Row]]:
    """(number from 1, place, row) of every row of a file, or of every line that is not blank."""
    if is_rows(path):
        for row in rows_lib.read_rows(path):
            yield row.number, row.where, _with_target(row.value, field) if row.is_cells else row.value
        return
    with open(plain_text(path), 'rb') as file:  # only '\n' ends a line, not U+2028
        for number, line in enumerate(file, 1):
            try:
                text = line.decode('utf-8-sig' if number == 1 else 'utf-8').rstrip('\r\n')
            except UnicodeDecodeError:
                raise UserError(f'{path} line {number}: not UTF-8 text. Save the file as UTF-8.') from None
            if text.strip():
                yield number, f'{path} line {number}', {field: text}


def _with_target(cells: Row, field: str) -> Row:
    """A line of a table with its column 'targets' as 'target', the name in files of predictions."""
    if field == 'targets' or 'targets' not in cells or 'target' in cells:
        return cells
    return {'target' if name == 'targets' else name: value for name, value in cells.items()}


def free_name(name: str, taken: Collection[str]) -> str:
    """`name`, or a name like it that is not taken, so that no column of the user is overwritten.

    >>> free_name('prediction', {'inputs', 'prediction'})
    't5flan_prediction'
    """
    names = itertools.chain([name, f't5flan_{name}'], (f't5flan_{name}_{number}' for number in itertools.count(2)))
    return next(one for one in names if one not in taken)


def shard_path(path: Path, host: int, hosts: int) -> Path:
    """out.jsonl on a single host, out-00001-of-00004.jsonl on the second of four."""
    return path if hosts == 1 else path.with_name(f'{path.stem}-{host:05}-of-{hosts:05}{path.suffix}')


class RowWriter:
    """Appends answers to a .jsonl file in the order of `prompts`, and finds out which of them an earlier run wrote.

    Attributes:
        done: indices of the answered prompts -> their answers.
        remaining: the other prompts.
        prediction: the field of the answers.
        setting: the flag that messages name.

    Raises:
        UserError: the file holds something other than answers to these prompts.
    """

    def __init__(self, path: Path, prompts: Sequence[Prompt], setting: str = '--output') -> None:
        self._path, self._setting = path, setting
        self.prediction = free_name(PREDICTION, {name for prompt in prompts for name in prompt.row})
        self.done = self._read(prompts)
        self.remaining = [prompt for prompt in prompts if prompt.number not in self.done]
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open('ab')

    def _read(self, prompts: Sequence[Prompt]) -> dict[int, Any]:
        if not self._path.exists():
            return {}
        data = self._path.read_bytes()
        whole = data.rfind(b'\n') + 1
        by_line = iter(prompts)
        done: dict[int, Any] = {}
        for number, line in enumerate(data[:whole].split(b'\n')[:-1], 1):
            prompt = next(by_line, None)
            try:
                row = json.loads(line)
                prediction = row.pop(self.prediction)
            except (ValueError, KeyError, TypeError, AttributeError):
                row = prediction = None
            if prompt is None or prediction is None or json.dumps(row) != json.dumps(prompt.row):
                where = f'{self._path}:{number}'
                raise UserError(
                    f'{where} does not answer a row of this input. Set another {self._setting}, or remove the file.'
                )
            done[prompt.number] = prediction
        if whole < len(data):  # an incomplete line of a killed run
            os.truncate(self._path, whole)
        return done

    def write(self, predictions: Sequence[Any]) -> None:
        """Appends the answers (a text, or a list of samples) to the next of the remaining prompts; flushes the file."""
        answered = self.remaining[: len(predictions)]
        rows = [prompt.row | {self.prediction: text} for prompt, text in zip(answered, predictions, strict=True)]
        lines = ''.join(json.dumps(row, ensure_ascii=False) + '\n' for row in rows)
        self._file.write(lines.encode('utf-8', 'surrogatepass'))
        self._file.flush()
        self.done |= {prompt.number: text for prompt, text in zip(answered, predictions, strict=True)}
        self.remaining = self.remaining[len(predictions) :]

    def __enter__(self) -> 'RowWriter':
        return self

    def __exit__(self, *_: Any) -> None:
        self._file.close()
