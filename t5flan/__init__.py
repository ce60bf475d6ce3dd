"""t5flan: from text to an instruction-following model, with the same code on one CPU and on a TPU pod.

From Python, `t5flan.load(FOLDER)` reads a checkpoint folder and returns a `LanguageModel`. From the shell, see
`t5flan --help`. Importing this package does not import JAX or TensorFlow.
"""

from typing import TYPE_CHECKING, Any

from t5flan import moved
from t5flan.version import __version__

if TYPE_CHECKING:
    from t5flan.language_model import load

__all__ = ['__version__', 'load']

moved.install()


def __getattr__(name: str) -> Any:
    """Imports `load` on first use, because it imports JAX."""
    if name == 'load':
        from t5flan.language_model import load

        return load
    raise AttributeError(f"module 't5flan' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
