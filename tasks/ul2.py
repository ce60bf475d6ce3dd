"""UL2's mixture of denoisers (arXiv:2205.05131) for every corpus, with one task per denoiser.

The corpus stdlib_docs has the mixture stdlib_docs_ul2 of the tasks stdlib_docs_ul2_r_3_15, … and stdlib_docs_ul2_s, so
that each denoiser has its own rate, lengths and loss. denoisers.json defines 'ul2' (seven denoisers in equal parts) and
'u_palm' (arXiv:2210.11399, section 3.1: half S, a quarter R, a quarter X, for a model that was a decoder before);
DataConfig.denoisers replaces them or adds others in gin. With a vocabulary that has none of their mode tokens, the
denoisers of denoisers.json train without.
"""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from t5flan.data.corpus_config import Denoiser
from t5flan.data.mixtures import definitions
from t5flan.data.preprocessing.examples import ExampleFn
from t5flan.errors import UserError

_TABLE = Path(__file__).parent / 'denoisers.json'


@dataclasses.dataclass
class _Corpus:
    """A corpus and its registered mixtures of denoisers."""

    source: Any
    functions: Sequence[ExampleFn]
    mixtures: dict[str, tuple[Denoiser, ...]] = dataclasses.field(default_factory=dict)


_corpora: dict[str, _Corpus] = {}
_given: dict[str, tuple[Denoiser, ...]] = {}


@functools.cache
def denoisers() -> dict[str, tuple[Denoiser, ...]]:
    """Mixture -> its denoisers, from denoisers.json."""
    table = json.loads(_TABLE.read_text('utf-8'))
    return {name: tuple(Denoiser(**row) for row in rows) for name, rows in table.items()}


def register_corpus(name: str, source: Any, functions: Sequence[ExampleFn]) -> None:
    """Registers the mixtures of a corpus.

    Args:
        functions: preprocessors that turn a record of the source into tokens, 'targets'.
    """
    _corpora[name] = _Corpus(source, tuple(functions))
    _update(name)


def register(given: Mapping[str, Sequence[Denoiser]]) -> None:
    """Registers mixtures of denoisers for every corpus: the `given` ones, and those of denoisers.json.

    Raises:
        UserError: a name belongs to another task or mixture.
    """
    before = dict(_given)
    _given.clear()
    _given.update({name: tuple(parts) for name, parts in given.items()})
    try:
        for corpus in _corpora:
            _update(corpus)
    except UserError:
        _given.clear()
        _given.update(before)  # else the next corpus would fail on the refused mixture
        raise


def _update(corpus: str) -> None:
    """Registers the mixtures of a corpus that are new or have changed."""
    for mixture, parts in {**denoisers(), **_given}.items():
        if _corpora[corpus].mixtures.get(mixture) != parts:
            _register(corpus, mixture, parts)


def _register(corpus: str, mixture: str, parts: tuple[Denoiser, ...]) -> None:
    from t5flan.data.preprocessing.denoisers import denoise

    known = _corpora[corpus]
    name = f'{corpus}_{mixture}'
    if mixture in known.mixtures:  # its previous version
        definitions.remove_mixture(name)
        for old in known.mixtures.pop(mixture):
            definitions.remove_task(f'{name}_{old.name}')
    names = definitions.task_names() | definitions.mixture_names()
    if taken := {name, *(f'{name}_{one.name}' for one in parts)} & names:
        raise UserError(
            f"DataConfig.denoisers['{mixture}']: {min(taken)} is another task or mixture. Set another name."
        )
    optional = tuple(sorted({one.mode_token for one in parts})) if denoisers().get(mixture) == parts else ()
    for one in parts:
        functions = [*known.functions, denoise.bind(denoiser=one, optional_modes=optional)]
        definitions.add_task(f'{name}_{one.name}', known.source, functions)
    definitions.add_mixture(name, [(f'{name}_{one.name}', one.rate) for one in parts if one.rate > 0])
    known.mixtures[mixture] = parts
