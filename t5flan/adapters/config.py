"""Settings of adapters: `RunConfig.adapter = @Lora()` chooses one. Standard library only.

Each is a frozen dataclass whose fields are gin bindings (`Lora.rank = 16`). An invalid value raises a `UserError` at
construction.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from t5flan.config.checks import is_count, is_number, require, require_count, require_patterns, require_positive

QUERY_AND_VALUE = ('.*attention/(query|value)/kernel',)


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank adaptation (https://arxiv.org/abs/2106.09685): a kernel W becomes W + alpha / rank * A B.

    A is drawn uniformly, as in PEFT, and B is zero, so that the adapted model begins as the base.

    Attributes:
        rank: columns of A and rows of B.
        alpha: the product is scaled by alpha / rank.
        rslora: scale by alpha / sqrt(rank) instead (https://arxiv.org/abs/2312.03732).
        targets: regular expressions of the kernels to adapt; each matches whole parameter paths
            ('decoder/.*/(query|value)/kernel').
        rank_pattern: regular expression -> the rank of the kernels that it matches; the first that matches applies.
        alpha_pattern: the same for alpha.
        bias: also train a vector that is added to the output of B (PEFT's `lora_bias`).
    """

    rank: int = 8
    alpha: float = 16.0
    rslora: bool = False
    targets: tuple[str, ...] = QUERY_AND_VALUE
    rank_pattern: Mapping[str, int] = dataclasses.field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = dataclasses.field(default_factory=dict)
    bias: bool = False

    def __post_init__(self) -> None:
        name = type(self).__name__
        require_count(f'{name}.rank', self.rank)
        require_positive(f'{name}.alpha', self.alpha)
        require(isinstance(self.bias, bool), f'{name}.bias', self.bias, 'True or False')
        require(isinstance(self.rslora, bool), f'{name}.rslora', self.rslora, 'True or False')
        _check_targets(self)
        for field, kind, holds in (
            ('rank_pattern', 'integers of 1 or more', lambda x: is_count(x, 1)),
            ('alpha_pattern', 'numbers above 0', lambda x: is_number(x) and x > 0),
        ):
            given: Mapping[str, Any] = getattr(self, field)
            require_patterns(f'{name}.{field}', list(given))
            require(all(map(holds, given.values())), f'{name}.{field}', given, f'regular expressions to {kind}')


@dataclasses.dataclass(frozen=True)
class Dora(Lora):
    """Weight-decomposed low-rank adaptation (https://arxiv.org/abs/2402.09353): LoRA changes the direction only.

    The columns of W + alpha / rank * A B are scaled to lengths that are trained, at first those of W's columns.

    Attributes:
        rank, alpha, rslora, targets, rank_pattern, alpha_pattern: as of `Lora`.
        bias: False; DoRA has none.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        require(not self.bias, 'Dora.bias', self.bias, 'False')


@dataclasses.dataclass(frozen=True)
class Ia3:
    """(IA)3 (https://arxiv.org/abs/2205.05638): a trained vector rescales activations; it begins as ones.

    Attributes:
        targets: regular expressions of the kernels whose outputs are rescaled; each matches whole parameter paths.
        input_targets: the same for kernels whose inputs are rescaled.
    """

    targets: tuple[str, ...] = ('.*attention/(key|value)/kernel',)
    input_targets: tuple[str, ...] = ('.*/mlp/wo/kernel',)

    def __post_init__(self) -> None:
        for field in ('targets', 'input_targets'):
            require_patterns(f'Ia3.{field}', getattr(self, field))
            object.__setattr__(self, field, tuple(getattr(self, field)))
        require(bool(self.targets or self.input_targets), 'Ia3.targets', self.targets, 'a regular expression')


@dataclasses.dataclass(frozen=True)
class PromptTuning:
    """Prompt tuning (https://arxiv.org/abs/2104.08691): trained vectors before the encoder's input.

    They begin as embeddings of random tokens. Rows are not packed, and the model is an encoder-decoder.

    Attributes:
        tokens: how many vectors are read.
        rows: how many are stored; PEFT stores twice as many as a model reads. None = as many as `tokens`.
    """

    tokens: int = 20
    rows: int | None = None

    def __post_init__(self) -> None:
        require_count('PromptTuning.tokens', self.tokens)
        enough = self.rows is None or is_count(self.rows, self.tokens)
        require(enough, 'PromptTuning.rows', self.rows, f'an integer of {self.tokens} (PromptTuning.tokens) or more')


@dataclasses.dataclass(frozen=True)
class PrefixTuning:
    """Prefix tuning (https://arxiv.org/abs/2101.00190): trained keys and values in each layer of the decoder.

    Its self-attention reads them before its own. Rows are not packed, and the model is an encoder-decoder.

    Attributes:
        tokens: how many keys and values a layer reads.
        shared: two layers read the same keys and values, as in PEFT for T5: layer i has those of layer 2 i modulo the
            number of layers.
    """

    tokens: int = 20
    shared: bool = False

    def __post_init__(self) -> None:
        require_count('PrefixTuning.tokens', self.tokens)
        require(isinstance(self.shared, bool), 'PrefixTuning.shared', self.shared, 'True or False')


Adapter = Lora | Dora | Ia3 | PromptTuning | PrefixTuning
"""The settings of one adapter of any method."""
METHODS: Mapping[str, type] = {kind.__name__: kind for kind in (Lora, Dora, Ia3, PromptTuning, PrefixTuning)}
UNPACKED = (PromptTuning, PrefixTuning)
"""Methods that need DataConfig.pack=False: what they add belongs to a row, not to an example packed into it."""


def _check_targets(settings: Any) -> None:
    """Requires `targets` to be at least one regular expression, and stores them as a tuple."""
    setting = f'{type(settings).__name__}.targets'
    require_patterns(setting, settings.targets)
    require(len(settings.targets) > 0, setting, settings.targets, 'at least one regular expression')
    object.__setattr__(settings, 'targets', tuple(settings.targets))
