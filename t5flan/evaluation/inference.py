"""`t5flan infer`: a checkpoint's continuations of prompts on the command line, or of every row of a file.

Needs only the checkpoint folder. With a file, the output grows by whole lines in the order of the input, and running
the same command again resumes where it was stopped. Several jobs, and the processes of each, share the rows; the one
that finishes last merges their files. See row_files.py.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from t5flan.data.vocabulary import chat_template
from t5flan.decoding.config import GREEDY, Decoding
from t5flan.errors import UsageError, UserError, did_you_mean
from t5flan.evaluation import row_files
from t5flan.evaluation.row_files import PREDICTION, Part, Prompt, Row, RowWriter
from t5flan.evaluation.terminal import row_progress
from t5flan.files import to_path, write_json

WINDOW = 4
"""Number of batches that are decoded together, sorted by length, before their rows are written."""

ALL = Part()
ADAPTER = 'adapter'
"""The field of a row that names its adapter."""

ReadPrompts = Callable[[Any], list[Prompt]]
"""Returns the prompts for a `LanguageModel`."""


@dataclasses.dataclass(frozen=True)
class _Asker:
    """Asks a model for the answers to prompts, as the flags say."""

    checkpoint: str
    step: int | None
    decoding: Decoding
    control: Sequence[str]
    chat: bool
    prompt_format: str | None
    adapters: Mapping[str, str]
    adapter: str | None

    @functools.cached_property
    def model(self) -> Any:
        model = load_with_control(self.checkpoint, self.step, self.control, self.adapters)
        return model if self.prompt_format is None else model.in_format(self.prompt_format)

    @property
    def several(self) -> bool:
        """Whether a prompt gets several continuations."""
        return max(self.decoding.num_samples, self.decoding.num_beams) > 1

    def answers(self, prompts: Sequence[Prompt], progress: Callable[[int], None] | None = None) -> list[Any]:
        """The text that continues each prompt, or all of its samples or beams as {'text', 'score'}."""
        found = self.model.continuations(
            [self._ids(prompt) for prompt in prompts],
            decoding=self.decoding,
            rows=[prompt.number for prompt in prompts],
            adapter=[self._adapter_of(prompt) for prompt in prompts] if self.adapters else None,
            progress=progress,
            chat=self.chat,
        )
        if self.several:
            return [[{'text': text, 'score': score} for text, score in group] for group in found]
        return [best.text for best, *_ in found]

    def _ids(self, prompt: Prompt) -> Sequence[int]:
        if prompt.ids is not None and not (self.control or self.chat):
            return prompt.ids
        text = ''.join((*self.control, prompt.text))
        if self.chat:
            return chat_template.encode(self.model.vocabulary, [{'role': 'user', 'content': text}], reply=True)
        return self.model.input_ids(text)

    def _adapter_of(self, prompt: Prompt) -> str | None:
        """The row's own adapter, or that of rows without the field; an empty cell of a table is none."""
        name = prompt.row.get(ADAPTER, self.adapter) or None
        if name is not None and name not in self.adapters:
            hint = did_you_mean(str(name), self.adapters) or '.'
            known = f'--adapters has {", ".join(self.adapters)}{hint}'
            raise UserError(f'row {prompt.number} has {ADAPTER}={name!r}; {known} Set --adapters, or change the row.')
        return name

    def check_adapters(self, prompts: Sequence[Prompt]) -> None:
        """Requires the adapter of every row to be known.

        Raises:
            UserError: one is not.
        """
        for prompt in prompts if self.adapters else ():
            self._adapter_of(prompt)

    def record(self) -> Row:
        """What decides an answer besides its row."""
        adapters = {name: which_parameters(folder) for name, folder in self.adapters.items()}
        settings = dataclasses.asdict(self.decoding)
        del settings['batch_size']
        return {
            **which_parameters(self.checkpoint, self.step),
            **settings,
            **({'adapters': adapters, 'adapter': self.adapter} if adapters else {}),
            'control': list(self.control),
            'chat': self.chat,
            'prompt_format': self.prompt_format,
        }


def which_parameters(checkpoint: str, step: int | None = None) -> Row:
    """Which parameters a folder holds: {'checkpoint', 'step', 'saved'}; step None is the latest."""
    from t5flan.training.checkpoints import checkpoint_root, find_step, saved_at  # imports JAX

    folder, step = os.fspath(checkpoint_root(checkpoint)), find_step(checkpoint, step)
    where = folder if '://' in folder else os.path.realpath(folder)
    return {'checkpoint': where, 'step': step, 'saved': saved_at(folder, step)}


def infer(
    checkpoint: str,
    *,
    prompts: Sequence[str] = (),
    input: str | ReadPrompts | None = None,
    output: str | None = None,
    field: str = 'inputs',
    control: Sequence[str] = (),
    step: int | None = None,
    decoding: Decoding = GREEDY,
    json_file: str | None = None,
    chat: bool = False,
    shard: Part = ALL,
    prompt_format: str | None = None,
    adapters: Mapping[str, str] | None = None,
    adapter: str | None = None,
) -> None:
    """Continues `prompts` and prints the texts, or continues every row of `input` and writes them to `output`.

    Args:
        checkpoint: the workdir of a run, or one of its steps.
        input: a file or glob of rows in any format or a data set 'hf:NAME' (the text in `field`), plain text (one
            text per line), or a function from the model to prompts, such as those of a SeqIO task.
        output: a .jsonl file: the rows of the input with 'index' (the line number, from 0) and 'prediction' added, as
            't5flan_index' and 't5flan_prediction' if the rows have fields of these names. The column 'targets' of a
            table is written as 'target', as in the predictions of `evaluate`. With more than one sample or beam also
            'predictions', a list of {'text', 'score'} whose first text is the prediction.
        field: the field of the rows that holds the text; the model sees nothing else of a row.
        control: control or mode tokens of the vocabulary, put before every text in this order.
        json_file: write prompts and continuations to this file as JSON.
        chat: each prompt is a turn of a user, which the chat template of the checkpoint's tokenizer words.
        shard: the part of the rows that this job answers. Its processes divide the part further; once all parts are
            complete, they are merged into `output`.
        prompt_format: how prompts are worded, see `LanguageModel.in_format`; None is as the checkpoint was saved.
        adapters: name -> folder of an adapter of the checkpoint. The field 'adapter' of a row names its own.
        adapter: the adapter of the rows without this field; None is the checkpoint alone.

    Raises:
        UsageError: neither prompts nor an input, or both, or an input without an output.
        UserError: the checkpoint, the input or a setting is wrong, or the output is of other rows or settings.
    """
    if bool(prompts) == (input is not None):
        raise UsageError('set either --prompt="..." (once or more) or --input=FILE with --output=FILE')
    if (input is None) != (output is None):
        raise UsageError('--input=FILE and --output=FILE go together')
    if decoding.num_samples > 1 and decoding.greedy:
        raise UserError(f'num_samples={decoding.num_samples} with temperature 0 are all alike. Set --temperature=0.7.')
    asker = _Asker(checkpoint, step, decoding, control, chat, prompt_format, adapters or {}, adapter)
    if input is None or output is None:
        _answer_prompts(asker, prompts, json_file)
        return
    found = row_files.read_prompts(input, field) if isinstance(input, str) else input(asker.model)
    asker.check_adapters(found)
    import jax

    merged, part = row_files.named_part(to_path(output), shard)
    part = part.within(jax.process_index(), jax.process_count())
    _answer_rows(asker, found, merged, part, always_load=jax.process_count() > 1)


def _answer_prompts(asker: _Asker, prompts: Sequence[str], json_file: str | None) -> None:
    """Prints the continuations of prompts."""
    answers = asker.answers([Prompt(i, text, {}) for i, text in enumerate(prompts)])
    rows: list[Row] = []
    for text, answer in zip(prompts, answers, strict=True):
        lines = [f'{one["text"]}  ({one["score"]:.3f})' for one in answer] if asker.several else [answer]
        for line in lines:
            print(line if len(prompts) == 1 else f'{text}\n  -> {line}')
        best: Row = (
            {'prediction': answer[0]['text'], 'predictions': answer} if asker.several else {'prediction': answer}
        )
        rows.append({'inputs': text, **best})
    if json_file is not None:
        model = asker.model
        write_json(json_file, {'checkpoint': model.folder, 'step': model.step, 'rows': rows}, indent=2)


def _answer_rows(asker: _Asker, prompts: Sequence[Prompt], output: Path, part: Part, always_load: bool) -> None:
    """Answers the rows of a part that an earlier run has not answered, then merges the parts if all are complete.

    Args:
        always_load: load the checkpoint even if nothing is left to do: the processes of a job load it together.
    """
    path = part.path(output)
    own = prompts[part.number :: part.count]
    record = {'rows': len(prompts), 'input': row_files.fingerprint(prompts), **asker.record()}
    if part.count > 1:
        record = {'part': [part.number, part.count], **record}
    with RowWriter(path, own, several=asker.several, record=record) as writer:
        if always_load:
            asker.model  # noqa: B018 (loads it)
        if not writer.remaining:
            print(f'{path} is complete: {len(writer.done)} rows')
        else:
            if writer.prediction != PREDICTION:
                print(f'the rows have a field {PREDICTION!r}: the answers go to {writer.prediction!r}', file=sys.stderr)
            _write_rest(asker, writer)
            print(f'{path}: {len(writer.done)} rows')
    if part.count == 1:
        return
    paths = {other.number: file for other, file in row_files.parts_of(output)}
    if missing := row_files.missing_rows(paths, len(prompts), part.count):
        waiting = sorted({row % part.count for row in missing})
        names = ', '.join(map(str, waiting[:10])) + (', ...' if len(waiting) > 10 else '')
        print(f'{output} is written when part {names} of {part.count} is complete')
    else:
        print(f'{output}: {row_files.merge(output, output)} rows of {part.count} parts')


def _write_rest(asker: _Asker, writer: RowWriter) -> None:
    """Answers the remaining rows, a window of batches at a time."""
    size, before = WINDOW * asker.decoding.batch_size, len(writer.done)
    with row_progress(before, before + len(writer.remaining)) as progress:
        while writer.remaining:
            report = functools.partial(_report, progress, len(writer.done))
            writer.write(asker.answers(writer.remaining[:size], report))


def _report(progress: Callable[[int], None], before: int, done: int) -> None:
    progress(before + done)


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


def load_with_control(
    checkpoint: str, step: int | None, control: Sequence[str], adapters: Mapping[str, str] | None = None
) -> Any:
    """Loads a checkpoint and checks that its vocabulary has the control tokens: spelled in letters they have no effect.

    Raises:
        UserError: the checkpoint cannot be loaded, or lacks one of the tokens.
    """
    from t5flan.language_model import load  # imports JAX: wrong usage is reported before

    model = load(checkpoint, step, None, None, adapters)
    for token in control:
        if token not in model.vocabulary.control_tokens:
            known = ', '.join(model.vocabulary.control_tokens) or 'none'
            raise UserError(f'--control={token} is not a token of this checkpoint, which has {known}. Set --control.')
    return model
