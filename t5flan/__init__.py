"""t5flan: text to a model that follows instructions, on one CPU or on a TPU pod, with the same code.

From Python: `t5flan.load(FOLDER)` reads a checkpoint folder and gives a `LanguageModel`. From the shell: `t5flan --help`.
Importing this package imports nothing heavy.
"""

from pathlib import Path

__version__ = '0.1.0'
__all__ = ['__version__', 'load']

_CHECKOUT = Path(__file__).resolve().parent.parent
if (_CHECKOUT / 'setup.py').is_file() and (_CHECKOUT / 'tasks' / '__init__.py').is_file():
    # In a wheel tasks/ is installed as t5flan/tasks; in a checkout it lies beside this package. One name for both.
    __path__.append(str(_CHECKOUT))


def __getattr__(name: str):
    """Imports `load` when it is first asked for: it pulls in JAX."""
    if name == 'load':
        from t5flan.language_model import load

        return load
    raise AttributeError(f"module 't5flan' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
