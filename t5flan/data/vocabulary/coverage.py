"""How a vocabulary writes the languages of a text: tokens per character, and the characters it has no piece for."""

import collections
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from t5flan.data.vocabulary.training import Languages, lines_of, sampling_factors, sizes_of
from t5flan.data.vocabulary.vocabulary import Vocabulary

SAMPLE_BYTES = 1_000_000
"""Text of each language that is measured."""
_BATCH = 1000


def coverage(vocabulary: Vocabulary, texts: Iterable[str]) -> dict[str, float]:
    """How a vocabulary writes texts.

    Returns:
        'tokens_per_character', and 'unknown': the share of characters without a piece, which become the unknown id or,
        with byte fallback, several bytes.
    """
    characters: collections.Counter[str] = collections.Counter()
    tokens, batch = 0, list[str]()
    for text in texts:
        characters.update(text)
        batch.append(text)
        if len(batch) == _BATCH:
            tokens, batch = tokens + sum(map(len, vocabulary.encode_literally(batch))), []
    tokens += sum(map(len, vocabulary.encode_literally(batch))) if batch else 0
    count = max(1, characters.total())
    unknown = sum(number for character, number in characters.items() if vocabulary.lacks(character))
    return {'tokens_per_character': tokens / count, 'unknown': unknown / count}


def report(
    vocabulary: Vocabulary, languages: Languages, fields: Sequence[str], alpha: float, before: Vocabulary | None = None
) -> dict[str, dict[str, Any]]:
    """Describes the training text of each language and how it is written.

    Args:
        vocabulary: the trained one.
        languages: name -> its files.
        fields: as in `train_vocabulary`; `alpha` too.
        before: a vocabulary to compare with.

    Returns:
        {language: {'bytes', 'share', 'after', 'before'}}: the size of its files, its share of the text that the
        vocabulary was trained on, and `coverage` of at most a megabyte of it; 'before' only if given.
    """
    sizes, factors = sizes_of(languages), sampling_factors(languages, alpha)
    taken = {name: sizes[name] * factors[name] for name in languages}
    found: dict[str, dict[str, Any]] = {}
    for name, paths in languages.items():
        sample = list(lines_of(paths, fields, min(1.0, SAMPLE_BYTES / sizes[name])))
        found[name] = {'bytes': sizes[name], 'share': taken[name] / sum(taken.values())}
        found[name]['after'] = coverage(vocabulary, sample)
        if before is not None:
            found[name]['before'] = coverage(before, sample)
    return found


def report_lines(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """`report` as one line per language."""
    lines = []
    for name, one in found.items():
        written = [
            f'{one["after"][what]:{style}}' + (f' (before {one["before"][what]:{style}})' if 'before' in one else '')
            for what, style in (('tokens_per_character', '.3f'), ('unknown', '.3%'))
        ]
        start = f'{name}: {one["share"]:.1%} of the training text'
        lines.append(f'{start}, {written[0]} tokens per character, {written[1]} of the characters have no piece')
    return lines
