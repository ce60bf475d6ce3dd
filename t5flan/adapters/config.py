"""The settings of an adapter: their base class, and the methods by name. Standard library only.

A method is one file in `adapters/methods/`. It holds a frozen dataclass that extends `Adapter`, whose fields are gin
bindings (`Lora.rank = 16`), and whose name is that of the file: `PrefixTuning` is in prefix_tuning.py. The file is
imported when a gin file or a checkpoint names the method, because it imports JAX.
"""

import abc
import dataclasses
import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from t5flan.config.checks import require, require_patterns

QUERY_AND_VALUE = ('.*attention/(query|value)/kernel',)


@dataclasses.dataclass(frozen=True)
class Adapter(abc.ABC):
    """Base class of the settings of an adapter: `RunConfig.adapter = @Lora()` chooses a method.

    An invalid value raises a `UserError` at construction.

    Attributes:
        packed: whether rows may be packed. It is False where what the method adds belongs to a row, not to an example
            packed into it; such a method needs DataConfig.pack=False.
    """

    packed: ClassVar[bool] = True
    IN_WORDS: ClassVar[str] = 'an adapter such as @Lora()'

    @property
    def mergeable(self) -> bool:
        """Whether the kernels of the base can hold the adapter."""
        return False

    @abc.abstractmethod
    def adapt(self, model: Any, scope: Any) -> Any:
        """The model with a new adapter; the arrays of its base are the given ones.

        Args:
            model: a `models.model.Model`.
            scope: its position, a `models.parameters.Scope`: the adapter's parameters are created there.

        Raises:
            UserError: the settings do not fit the model.
        """

    @staticmethod
    def by_row(model: Any, adapted: Mapping[int, Any]) -> Any:
        """The model with several adapters of which each row of a batch has one; its modules are `choice.Chooser`s.

        Methods whose projections have `terms` do not need it. Adapters of other methods that lack it cannot be chosen
        by row.

        Args:
            model: the base, perhaps with adapters of other methods.
            adapted: number of the adapter -> the base with that adapter alone.
        """
        raise NotImplementedError

    def in_step(self, model: Any, key: Any) -> Any:
        """The model whose loss a training step minimises, a function of the adapted model; by default the model itself.

        Args:
            key: a `jax.Array`, another one in each step.
        """
        return model

    def penalty(self, model: Any) -> Any:
        """What training adds to the loss per token, a `jax.Array` float32 []; None adds nothing."""
        return None

    def wrap_optimizer(self, optimizer: Any, steps: int) -> Any:
        """The `optax.GradientTransformation` of a run; its state is saved. By default the given one.

        Args:
            optimizer: the one of OptimizerConfig, over the nested dict of the adapter's parameters.
            steps: the steps of the run.

        Raises:
            UserError: the settings do not fit the steps.
        """
        return optimizer


_FILES = {
    ''.join(word.capitalize() for word in file.name.split('_')): f'{__package__}.methods.{file.name}'
    for file in pkgutil.iter_modules([str(Path(__file__).parent / 'methods')])
}
"""'PrefixTuning' -> the module that has it."""


class _Methods(Mapping[str, type[Adapter]]):
    """Name -> class; looking one up imports its file."""

    def __getitem__(self, name: str) -> type[Adapter]:
        kind: type[Adapter] = getattr(importlib.import_module(_FILES[name]), name)
        return kind

    def __contains__(self, name: object) -> bool:
        return name in _FILES

    def __iter__(self) -> Iterator[str]:
        return iter(_FILES)

    def __len__(self) -> int:
        return len(_FILES)


METHODS: Mapping[str, type[Adapter]] = _Methods()
"""Every method: 'Lora' -> the class of its settings, which is imported when it is looked up."""


def check_targets(settings: Any) -> None:
    """Requires `targets` to be at least one regular expression, and stores them as a tuple."""
    setting = f'{type(settings).__name__}.targets'
    require_patterns(setting, settings.targets)
    require(len(settings.targets) > 0, setting, settings.targets, 'at least one regular expression')
    object.__setattr__(settings, 'targets', tuple(settings.targets))
