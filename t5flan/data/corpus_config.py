"""Settings of raw text: local files, the tokens that control it, and the denoisers that learn from it. Standard library only."""

import dataclasses
from collections.abc import Sequence

from t5flan.config.checks import require_count, require_one_of, require_share, require_text
from t5flan.errors import UserError

TEXT_UNITS = ('document', 'paragraph', 'line')
DENOISERS = ('R', 'S', 'X', 'C')


@dataclasses.dataclass(frozen=True)
class Control:
    """Control tokens by a score of the text (PaLM 2, arXiv:2305.10403, section 5): `t5flan infer --control='[TOX_LOW]'` asks for one.

    In a .gin file, for .jsonl rows such as {"text": …, "toxicity": 0.12}:
        Control.field = 'toxicity'
        Control.tokens = ['[TOX_LOW]', '[TOX_MID]', '[TOX_HIGH]']
        Control.thresholds = [0.3, 0.7]
        TextFiles.controls = [@Control()]
    """

    field: str
    """The key of a number; 'prompt.toxicity' looks into an object."""
    tokens: tuple[str, ...]
    """From the lowest scores to the highest; each one of DataConfig.mode_tokens."""
    thresholds: tuple[float, ...]
    """Where the next token begins, rising; one fewer than tokens."""
    share: float = 0.05
    """Share of the texts that get their token, by a hash of the text; the others get none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, 'tokens', tuple(self.tokens))
        object.__setattr__(self, 'thresholds', tuple(self.thresholds))
        require_text('Control.field', self.field)
        require_share('Control.share', self.share)
        if (
            not self.tokens
            or len(self.thresholds) != len(self.tokens) - 1
            or sorted(set(self.thresholds)) != [*self.thresholds]
        ):
            raise UserError(
                f'Control.thresholds={self.thresholds} must rise and be one fewer than Control.tokens={self.tokens}. Set one of them.'
            )


@dataclasses.dataclass(frozen=True)
class TextFiles:
    """Local text that becomes the tasks NAME_span_corruption, NAME_prefix_lm and NAME_causal_lm by gin alone.

    In a .gin file:
        TextFiles.name = 'books'
        TextFiles.train = 'books/*.txt'
        DataConfig.text_files = [@TextFiles()]
        DataConfig.mixture = 'books_span_corruption'
    """

    name: str
    train: str
    """Path or glob of .txt or .jsonl files."""
    validation: str | None = None
    """The same for validation; None holds out `held_out` of the chunks."""
    field: str = 'text'
    """The key of the text in .jsonl files."""
    unit: str = 'document'
    """What is one text in a .txt file: the whole 'document', a 'paragraph' (blank lines between) or a 'line'."""
    max_chars: int = 2000
    """Longer texts are cut at whitespace into chunks of at most this many characters; no text is lost."""
    held_out: float = 0.02
    controls: tuple[Control, ...] = ()
    """Tokens in front of texts, by their scores (.jsonl files)."""

    def __post_init__(self) -> None:
        object.__setattr__(self, 'controls', tuple(self.controls))
        for field in ('name', 'train', 'field'):
            require_text(f'TextFiles.{field}', getattr(self, field))
        require_one_of('TextFiles.unit', self.unit, TEXT_UNITS)
        require_count('TextFiles.max_chars', self.max_chars)
        if not 0.0 < self.held_out < 1.0:
            raise UserError(
                f'TextFiles.held_out={self.held_out} must lie between 0 and 1. Set TextFiles.held_out in your .gin.'
            )


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """A way to make inputs and targets of raw text, as UL2 mixes several (arXiv:2205.05131, section 3.1).

    `DataConfig.denoisers = {'mine': [@r/Denoiser(), @s/Denoiser()]}` makes the mixture CORPUS_mine of every corpus
    (stdlib_docs_mine, c4_mine, …); gin/runs/ul2.gin spells out UL2's and others.
    """

    name: str
    """Its tasks are CORPUS_mine_NAME."""
    kind: str
    """'R' and 'X' (regular, extreme) replace spans by sentinels; 'S' (sequential, prefix LM) continues a text; 'C' (causal LM)
    writes it from nothing."""
    mean_span: float | None = None
    """R and X: tokens of a span on average, 1 or more."""
    noise_density: float | None = None
    """Share of the tokens that become targets, above 0 and below 1; S: on average."""
    rate: float = 1.0
    """Weight in the mixture, against the other denoisers' rates."""
    mode_token: str = ''
    """Put in front of the inputs; one of DataConfig.mode_tokens. '' puts none."""
    anywhere: bool = False
    """R and X: spans may lie anywhere. False is T5's: a window begins with text and ends with noise, so that one with a single
    span (64 tokens, 15 %, rows of 512) always has it at the end, and learns what S does."""

    def __post_init__(self) -> None:
        require_text('Denoiser.name', self.name)
        require_one_of('Denoiser.kind', self.kind, DENOISERS)
        spans, some = self.kind in 'RX', self.kind != 'C'
        for field, wanted in (('mean_span', spans), ('noise_density', some)):
            if (getattr(self, field) is not None) != wanted:
                has = f'wants a {field}' if wanted else f'has no {field}, given is {getattr(self, field)}'
                raise UserError(
                    f'Denoiser {self.name!r} of kind {self.kind!r} {has}. Set Denoiser.{field} in your .gin.'
                )
        self._number('mean_span', 'a number, 1 or more', spans and not 1 <= self.mean_span < float('inf'))
        self._number('noise_density', 'above 0 and below 1', some and not 0 < self.noise_density < 1)
        self._number('rate', '0 or more', not 0 <= self.rate < float('inf'))

    def _number(self, field: str, expected: str, is_wrong: bool) -> None:
        if is_wrong:
            raise UserError(
                f'Denoiser.{field}={getattr(self, field)} of {self.name!r} must be {expected}. Set Denoiser.{field} in your .gin.'
            )


def check_denoisers(mixture: str, denoisers: Sequence[Denoiser]) -> None:
    """Whether denoisers make a mixture.

    Raises:
        UserError: there is none, two have one name, or their rates sum to 0.
    """
    setting, names = f"DataConfig.denoisers['{mixture}']", [denoiser.name for denoiser in denoisers]
    if not mixture.isidentifier():
        raise UserError(
            f'{setting}: {mixture!r} must be letters, digits and "_", it ends names. Set DataConfig.denoisers.'
        )
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(
            f'{setting} has {names.count(twice)} denoisers named {twice!r}. Set another Denoiser.name for each.'
        )
    if not sum(denoiser.rate for denoiser in denoisers) > 0:
        raise UserError(
            f'{setting}: the rates of its {len(names)} denoisers sum to 0. Set Denoiser.rate above 0 in your .gin.'
        )
