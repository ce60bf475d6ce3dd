"""Settings of decoding. Standard library only."""

import dataclasses
from typing import Any, Literal, TypedDict

from t5flan.config.checks import is_count, is_number
from t5flan.errors import UserError, nearest

BEAM_SCORINGS = ('huggingface', 't5x')
MOST_NEW_TOKENS = 2**20
WITHOUT_FLAG = ('early_stopping', 'beam_scoring')
"""Fields that commands have no flag for: gin sets them."""


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How prompts are continued. The default is greedy decoding.

    Set it in gin (`Decoding.temperature = 0.7`), by the flags of a command (`--temperature=0.7`), or as keywords of
    `LanguageModel.generate`.

    Attributes:
        max_new_tokens: upper limit on the new tokens; None is the length of targets in training.
        temperature: 0 takes the most likely token; above 0 logits are divided by it and a token is sampled.
        top_k: sample among the k most likely tokens; 0 is all.
        top_p: nucleus sampling threshold (Holtzman et al. 2020, arXiv:1904.09751): sample among the most likely tokens
            whose probabilities, after temperature and top_k, sum to top_p; 1 is all.
        num_samples: continuations of each prompt; more than 1 for `infer`, `rationales`, `evaluate --benchmark` and
            `LanguageModel.samples`.
        seed: seed of the samples. A row's samples depend on the seed and its row number only, not on its batch.
        batch_size: prompts decoded together, over all devices.
        num_beams: width of a beam search; 1 is none. The likeliest beam found is the continuation, and
            `LanguageModel.beams` returns all of them. Needs temperature 0.
        length_penalty: alpha, the power of a beam's length that its sum of log-probabilities is divided by to rank it:
            above 0 favors longer ones.
        early_stopping: a prompt's search stops when its running beams are unlikely to beat the ended ones (False), when
            they cannot ('never'), or when `num_beams` have ended (True), as in transformers' `generate`.
        beam_scoring: 'huggingface' for length^alpha as in transformers, or 't5x' for ((5 + length) / 6)^alpha as in
            T5X, where alpha is usually 0.6; see `decoding/beam.py`.

        stop: a continuation ends before the first of these strings, wherever tokens begin and end, like the `until` of
            lm-evaluation-harness.

    Raises:
        UserError: a value is out of range, or beams are combined with sampling.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    num_samples: int = 1
    seed: int = 0
    batch_size: int = 32
    num_beams: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | Literal['never'] = False
    beam_scoring: Literal['huggingface', 't5x'] = 'huggingface'
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if hasattr(value, 'item'):  # a NumPy or JAX scalar
                object.__setattr__(self, field.name, value.item())
        self._require('temperature', is_number(self.temperature) and self.temperature >= 0, 'a number of 0 or more')
        self._require('top_k', is_count(self.top_k, 0), 'an integer of 0 (all tokens) or more')
        self._require('top_p', is_number(self.top_p) and 0 < self.top_p <= 1, 'a number above 0 and at most 1')
        self._require('seed', is_count(self.seed, -(2**31)) and self.seed < 2**31, 'a 32-bit integer')
        for name in ('num_samples', 'batch_size', 'num_beams'):
            self._require(name, is_count(getattr(self, name), 1), 'an integer of 1 or more')
        limit = self.max_new_tokens
        self._require('max_new_tokens', limit is None or is_count(limit, 1), 'an integer of 1 or more, or None')
        self._require('max_new_tokens', limit is None or limit <= MOST_NEW_TOKENS, f'at most {MOST_NEW_TOKENS}')
        self._require('length_penalty', is_number(self.length_penalty), 'a number')
        self._require('beam_scoring', self.beam_scoring in BEAM_SCORINGS, f'one of {", ".join(BEAM_SCORINGS)}')
        stops = (True, False, 'never')
        self._require('early_stopping', self.early_stopping in stops, "True, False or 'never'")
        self._check_beams()
        is_list = isinstance(self.stop, (tuple, list)) and all(isinstance(text, str) and text for text in self.stop)
        self._require('stop', is_list, 'a list of non-empty strings')
        object.__setattr__(self, 'stop', tuple(self.stop))

    def _check_beams(self) -> None:
        if self.beam_scoring == 't5x':
            self._require('early_stopping', self.early_stopping is False, "False: T5X's beam search has one rule")
        if self.num_beams == 1:
            return
        for name, expected in (('temperature', 0), ('num_samples', 1)):
            value = getattr(self, name)
            if value != expected:
                given = f'num_beams={self.num_beams} with {name}={value!r}, expected {name}={expected}'
                raise UserError(f'{given}: beam search does not sample. Set num_beams=1, or {name}={expected}.')

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            flag = '' if name in WITHOUT_FLAG else '--samples, or ' if name == 'num_samples' else f'--{name}, or '
            value = getattr(self, name)
            raise UserError(f'{name}={value!r}, expected {expected}. Set {flag}Decoding.{name} in your .gin.')

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature == 0

    def replace(self, **settings: Any) -> 'Decoding':
        """A copy with some fields replaced.

        Raises:
            UserError: a keyword is not a field, or its value is out of range.
        """
        names = [field.name for field in dataclasses.fields(self)]
        for name in settings:
            if name not in names:
                near = nearest(name, names)
                hint = f'did you mean {near}?' if near else f'expected one of {", ".join(names)}.'
                raise UserError(f'{name}={settings[name]!r} is not a decoding setting; {hint}')
        return dataclasses.replace(self, **settings)

    def require_effect(self) -> None:
        """Raises a UserError if `top_k` or `top_p` is set, but nothing is sampled."""
        for name, off in (('top_k', 0), ('top_p', 1)):
            if self.greedy and getattr(self, name) != off:
                given = f'{name}={getattr(self, name)!r} with temperature=0, expected a temperature above 0'
                raise UserError(f'{given}: greedy decoding does not sample. Set temperature, or {name}={off}.')

    def require_one_sample(self, caller: str) -> None:
        """Raises a UserError if `num_samples` is not 1."""
        if self.num_samples != 1:
            given = f'num_samples={self.num_samples}, expected 1'
            raise UserError(f'{given}: {caller} returns one continuation of each prompt. Remove Decoding.num_samples.')


class DecodingSettings(TypedDict, total=False):
    """The fields of `Decoding` but max_new_tokens, as keyword arguments."""

    temperature: float
    top_k: int
    top_p: float
    num_samples: int
    seed: int
    batch_size: int
    num_beams: int
    length_penalty: float
    early_stopping: bool | Literal['never']
    beam_scoring: Literal['huggingface', 't5x']
    stop: tuple[str, ...]


GREEDY = Decoding()

SAMPLING = Decoding(temperature=0.7, num_samples=8, batch_size=8)
"""The default where several continuations of a prompt are compared: `rationales` and `LanguageModel.samples`."""

CANDIDATES = Decoding(temperature=0.7, batch_size=32, max_new_tokens=256)
"""The default of `self_instruct`, `evol_instruct` and `backtranslate`, which sample tasks; answers are greedy."""
