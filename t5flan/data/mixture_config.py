"""Settings of mixtures and of the stages of a run. Standard library only."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from t5flan.config.checks import Count, Positive, Share, check_limits, require, require_text
from t5flan.errors import UserError


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixture of tasks and other mixtures, defined in gin.

    With given rates (each part keeps its own rates inside), or by the number of examples, as in Flan 2022:
        tasks/Mixture.name = 'tasks'
        tasks/Mixture.by_examples = ['natural_instructions', 'cot']
        tasks/Mixture.cap = 5000
        all/Mixture.name = 'all'
        all/Mixture.rates = {'tasks': 0.9, 'chat': 0.1}
        DataConfig.mixtures = [@tasks/Mixture(), @all/Mixture()]
        DataConfig.mixture = 'all'
    A name may be a pattern: 'cot_*' stands for every task whose name matches.
    """

    RENAMED: ClassVar[Mapping[str, str]] = {'shares': 'rates', 'without': 'exclude'}

    name: str
    """The name of the mixture, for `DataConfig.mixture` and for other mixtures."""
    rates: Mapping[str, Positive] = dataclasses.field(default_factory=dict)
    """Task or mixture -> its weight; they need not sum to 1."""
    by_examples: tuple[str, ...] = ()
    """Tasks and mixtures whose tasks each weigh min(examples of 'train', cap) ** (1 / temperature)."""
    cap: Count | None = None
    """The most examples counted of one task; None counts all."""
    caps: Mapping[str, Count] = dataclasses.field(default_factory=dict)
    """Task or part -> its own cap, in place of `cap`."""
    temperature: Positive = 1.0
    """1 is proportional, a large one even; mT5's exponent alpha = 0.3 is a temperature of 1 / 0.3."""
    keep_rates: bool = False
    """True: a mixture in `by_examples` weighs as one, by the examples of its largest task (its denoisers read the same
    text), and keeps its own rates inside: languages by size, each with UL2's denoisers."""
    exclude: tuple[str, ...] = ()
    """Tasks (or patterns) to leave out, such as those held out for testing."""

    def __post_init__(self) -> None:
        for field in ('by_examples', 'exclude'):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        for field in ('rates', 'caps'):
            object.__setattr__(self, field, dict(getattr(self, field)))
        require_text('Mixture.name', self.name)
        of = f' of {self.name!r}'
        if bool(self.rates) == bool(self.by_examples):
            found = 'both rates and' if self.rates else 'neither rates nor'
            problem = f'Mixture {self.name!r} has {found} by_examples, expected one of them'
            raise UserError(f'{problem}. Set Mixture.rates or Mixture.by_examples in your .gin.')
        check_limits(self, of)
        if (self.cap is not None or self.caps or self.temperature != 1 or self.keep_rates) and not self.by_examples:
            problem = f'Mixture {self.name!r} has rates, which take no cap, temperature or keep_rates'
            raise UserError(f'{problem}. Set Mixture.by_examples instead, or remove them from your .gin.')


@dataclasses.dataclass(frozen=True)
class Stage:
    """From a step on, another mixture: task instructions first, then chat.

    DataConfig.mixture = 'natural_instructions'
    Stage.mixture = 'chat'
    Stage.start_step = 8000
    Stage.previous = 0.1
    DataConfig.stages = [@Stage()]
    """

    RENAMED: ClassVar[Mapping[str, str]] = {'begins': 'start_step', 'former': 'previous'}

    mixture: str
    """The task or mixture of this stage."""
    start_step: Count
    """Steps before this stage: with 8000, step 8001 is the first to train on it."""
    previous: Share = 0.0
    """Share of the examples that still come from the previous stage."""

    def __post_init__(self) -> None:
        require_text('Stage.mixture', self.mixture)
        check_limits(self)
        expected = f'less than 1, or nothing is left of {self.mixture!r}'
        require(self.previous < 1, 'Stage.previous', self.previous, expected)
