"""t5flan: text to a model that follows instructions, on one CPU or on a TPU pod, with the same code.

From Python: `t5flan.load(FOLDER)` reads a checkpoint folder and gives a `LanguageModel`. From the shell: `t5flan --help`.
Importing this package imports nothing heavy.
"""

from t5flan import moved
from t5flan.version import __version__

__all__ = ['__version__', 'load']

moved.install()


def __getattr__(name: str):
    """Imports `load` when it is first asked for: it pulls in JAX."""
    if name == 'load':
        from t5flan.language_model import load

        return load
    raise AttributeError(f"module 't5flan' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
