"""Settings of a run's own files, of control tokens and of denoisers. Standard library only."""

import dataclasses
import string
from collections.abc import Sequence
from typing import Annotated

from t5flan.config import checks
from t5flan.config.checks import (
    BelowOne,
    BetweenZeroAndOne,
    Count,
    Limits,
    NonNegative,
    Positive,
    Share,
    check_limits,
    require,
    require_one_of,
    require_text,
)
from t5flan.errors import UserError

TEXT_UNITS = ('document', 'paragraph', 'line')
METRICS = ('exact_match', 'f1', 'rouge_l', 'bleu')
DENOISERS = ('R', 'S', 'X', 'C')


@dataclasses.dataclass(frozen=True)
class FileTask:
    """Files of inputs and targets that become a task, without Python.

    In a .gin file:
        FileTask.name = 'my_task'
        FileTask.train = 'data/train.jsonl'
        DataConfig.file_tasks = [@FileTask()]
        DataConfig.mixture = 'my_task'
    Several tasks take one gin scope each: `a/FileTask.train = ...`,
    `DataConfig.file_tasks = [@a/FileTask(), @b/FileTask()]`.
    """

    name: str
    """The task's name, for DataConfig.mixture."""
    train: str
    """Path or glob of .jsonl, .json, .csv, .tsv or .parquet files, also compressed (.gz, .zst), or 'hf:NAME' for a data
    set of the Hugging Face hub. The first line of a table names its columns."""
    validation: str | None = None
    """Path or glob of validation files; None holds out `held_out` of train, chosen by a hash of the example."""
    test: str | None = None
    """Path or glob of test files; None makes no 'test' split."""
    input_field: str = 'inputs'
    """The JSON key or column that holds the input text; 'question.text' is the key 'text' of the object 'question'."""
    target_field: str = 'targets'
    """The JSON key or column that holds the target text, or a list of right answers: the first is trained on."""
    options_field: str | None = None
    """The key of a list of options, which is appended to the input in FLAN's style ('OPTIONS:' and '- ' lines). The
    target may then be the number of an option, from 0, or its letter."""
    template: str = '{input}'
    """The input as the model sees it: `{input}` is the input field, `{OTHER}` any other field of the row; a list is
    written as options."""
    held_out: BelowOne = 0.02
    """Share of train held out for validation if there is no validation file: at least one example, none for 0."""
    metrics: tuple[str, ...] = ('exact_match',)
    """Metrics of generated text: 'exact_match', 'f1' (of words, as SQuAD), 'rouge_l', 'bleu'."""
    rate: Positive = 1.0
    """Weight of this task in the mixture 'file_tasks', which holds all file tasks."""

    def __post_init__(self) -> None:
        for field in ('name', 'train', 'input_field', 'target_field', 'template'):
            require_text(f'FileTask.{field}', getattr(self, field))
        if self.options_field is not None:
            require_text('FileTask.options_field', self.options_field)
        check_limits(self)
        self._check_fields()
        object.__setattr__(self, 'metrics', tuple(self.metrics))
        for metric in self.metrics:
            require_one_of('FileTask.metrics', metric, METRICS)

    def _check_fields(self) -> None:
        """Requires the template to hold text of the row, but not the target."""
        try:
            parts = [name for _, name, _, _ in string.Formatter().parse(self.template) if name is not None]
        except ValueError:  # tasks/files.py says what is wrong with its braces
            return
        of = f' of {self.name!r}'
        require(len(parts) > 0, 'FileTask.template', self.template, 'a text with {input} or another field', of)
        fields = [self.input_field if name == 'input' else name for name in parts]
        expected = f'a field that is not in the input, whose fields are {", ".join(fields)}'
        require(self.target_field not in fields, 'FileTask.target_field', self.target_field, expected, of)


@dataclasses.dataclass(frozen=True)
class Control:
    """Control tokens by a score of the text (PaLM 2, arXiv:2305.10403, section 5).

    `t5flan infer --control='[TOX_LOW]'` generates with one of them. In a .gin file, for .jsonl rows such as
    {"text": ..., "toxicity": 0.12}:
        Control.field = 'toxicity'
        Control.tokens = ['[TOX_LOW]', '[TOX_MID]', '[TOX_HIGH]']
        Control.thresholds = [0.3, 0.7]
        TextFiles.controls = [@Control()]
    """

    field: str
    """The key of the score, a number; 'prompt.toxicity' is the key 'toxicity' of the object 'prompt'."""
    tokens: tuple[str, ...]
    """Tokens from the lowest scores to the highest, each one of DataConfig.mode_tokens."""
    thresholds: tuple[float, ...]
    """The lowest score of each token after the first, in rising order."""
    share: Share = 0.05
    """Share of the texts that get their token, chosen by a hash of the text; the others get none."""
    loss_weight: NonNegative = 0.0
    """Weight of the token's own loss in causal LM, where it is a target: 0 only conditions on it, 1 also learns how
    often each score occurs. The other objectives put the token into the inputs, which have no loss."""

    def __post_init__(self) -> None:
        object.__setattr__(self, 'tokens', tuple(self.tokens))
        object.__setattr__(self, 'thresholds', tuple(self.thresholds))
        require_text('Control.field', self.field)
        check_limits(self)
        numbers = all(map(checks.is_number, self.thresholds))
        rising = numbers and sorted(set(self.thresholds)) == [*self.thresholds]
        count = len(self.tokens)
        expected = f'{count - 1} rising numbers, one fewer than Control.tokens={self.tokens}'
        require(0 < count == len(self.thresholds) + 1 and rising, 'Control.thresholds', self.thresholds, expected)


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """Local text that becomes the tasks NAME_span_corruption, NAME_prefix_lm and NAME_causal_lm, without Python.

    In a .gin file:
        TextFiles.name = 'books'
        TextFiles.train = 'books/*.txt'
        DataConfig.text_files = [@TextFiles()]
        DataConfig.mixture = 'books_span_corruption'
    """

    name: str
    """The corpus' name, with which the names of its tasks start."""
    train: str
    """Path or glob of .txt files, or of rows as in FileTask.train, also compressed."""
    validation: str | None = None
    """Path or glob of validation files; None holds out `held_out` of the chunks."""
    field: str = 'text'
    """The key of the text in rows."""
    unit: str = 'document'
    """One text in a .txt file: 'document' (the whole file), 'paragraph' (between blank lines) or 'line'."""
    max_chars: Count = 2000
    """Longer texts are cut at whitespace into chunks of at most this many characters; no text is lost."""
    held_out: BetweenZeroAndOne = 0.02
    """Share of the chunks held out for validation if there is no validation file."""
    controls: tuple[Control, ...] = ()
    """Control tokens in front of the texts, in this order, by scores in the .jsonl files."""

    def __post_init__(self) -> None:
        object.__setattr__(self, 'controls', tuple(self.controls))
        for field in ('name', 'train', 'field'):
            require_text(f'TextFiles.{field}', getattr(self, field))
        require_one_of('TextFiles.unit', self.unit, TEXT_UNITS)
        check_limits(self)


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """A way to make inputs and targets from raw text; UL2 mixes several (arXiv:2205.05131, section 3.1).

    `DataConfig.denoisers = {'mine': [@r/Denoiser(), @s/Denoiser()]}` makes a mixture CORPUS_mine of every corpus
    (stdlib_docs_mine, c4_mine, ...); gin/runs/ul2.gin has UL2's denoisers and others.
    """

    name: str
    """Its tasks are CORPUS_mine_NAME."""
    kind: str
    """'R' and 'X' (regular, extreme) replace spans by sentinels; 'S' (sequential, prefix LM) continues a text; 'C'
    (causal LM) writes it from nothing."""
    mean_span: Annotated[float, Limits(1)] | None = None
    """R and X: mean span length in tokens, 1 or more."""
    noise_density: BetweenZeroAndOne | None = None
    """Share of the tokens that become targets, above 0 and below 1; for S, on average."""
    rate: NonNegative = 1.0
    """Weight in the mixture, relative to the other denoisers' rates."""
    mode_token: str = ''
    """Put in front of the inputs; one of DataConfig.mode_tokens, or '' for none."""
    anywhere: bool = False
    """R and X: spans may lie anywhere. False, as in T5: a window starts with text and ends with noise. A window with a
    single span (64 tokens, 15 %, rows of 512) then always has it at the end and trains what S does."""

    def __post_init__(self) -> None:
        require_text('Denoiser.name', self.name)
        require_one_of('Denoiser.kind', self.kind, DENOISERS)
        for field, used in (('mean_span', self.kind in 'RX'), ('noise_density', self.kind != 'C')):
            value = getattr(self, field)
            if (value is not None) != used:
                verb = f'requires {field}' if used else f'takes no {field}, given {value}'
                denoiser = f'Denoiser {self.name!r} of kind {self.kind!r}'
                raise UserError(f'{denoiser} {verb}. Set Denoiser.{field} in your .gin.')
        check_limits(self, f' of {self.name!r}')


def check_denoisers(mixture: str, denoisers: Sequence[Denoiser]) -> None:
    """Raises a UserError if denoisers make no mixture: none, two of the same name, or rates that sum to 0."""
    setting, names = f"DataConfig.denoisers['{mixture}']", [denoiser.name for denoiser in denoisers]
    if not mixture.isidentifier():
        problem = f'{mixture!r} is part of task names, expected letters, digits and "_"'
        raise UserError(f'{setting}: {problem}. Set DataConfig.denoisers.')
    if twice := next((name for name in names if names.count(name) > 1), None):
        problem = f'{setting} has {names.count(twice)} denoisers named {twice!r}'
        raise UserError(f'{problem}. Set another Denoiser.name for each.')
    if not sum(denoiser.rate for denoiser in denoisers) > 0:
        problem = f'{setting}: the rates of its {len(names)} denoisers sum to 0'
        raise UserError(f'{problem}. Set Denoiser.rate above 0 in your .gin.')
