"""Removes training examples that overlap with evaluation sets, by the n-grams that they share.

    decontaminate(['train.jsonl'], 'clean.jsonl', [evaluation_files('gsm8k_test.jsonl')])

As in GPT-3 (Brown et al., arXiv:2005.14165, appendix C), a training example overlaps if it has an n-gram of 13 words of
an evaluation example, regardless of case and punctuation; an evaluation text of 8 to 12 words counts as one n-gram, and
a shorter one is too common to tell. The n-grams of the evaluation sets are in memory, 16 bytes each; the training
examples are read one by one.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from t5flan.corpora.texts import SHOWN, ReportFile, Text, check_output, match_inputs, read_texts, write_row
from t5flan.corpora.words import hash_ngrams, hash_words, words_of
from t5flan.data.records.fields import find_field
from t5flan.data.records.rows import is_plain_text, read_rows
from t5flan.data.records.text_files import match_texts
from t5flan.errors import UserError
from t5flan.files import open_whole

_MOST_BITS = 28  # of a table of bytes
_END = np.array([0x6A09E667F3BCC908], np.uint64)  # after each text, so that no n-gram goes from one to the next

Example = tuple[str, list[str]]
"""The place of an example, and its texts."""


class Evaluation(NamedTuple):
    """An evaluation set: its name in the report, its examples, the flag that gave it, and its files."""

    name: str
    examples: Iterable[Example]
    setting: str = '--evaluation'
    files: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Overlap:
    """What counts as overlap.

    Raises:
        UserError: a value is out of range.
    """

    ngram: int = 13
    """Words of an n-gram; characters in scripts without spaces."""
    min_words: int = 8
    """Words that an evaluation text of fewer than `ngram` words needs to count as one n-gram."""
    share: float = 0.0
    """Share of the n-grams of an evaluation example that a training example must have; 0: a single one is enough."""
    frequent: int = 0
    """N-grams that more than this many training examples have do not count (GPT-3: 10); 0: all count."""

    def __post_init__(self) -> None:
        if self.ngram < 1 or not 1 <= self.min_words <= self.ngram:
            given = f'--ngram={self.ngram} --min_words={self.min_words}'
            raise UserError(f'{given} must be at least 1, min_words at most ngram. Set --ngram or --min_words.')
        if not 0 <= self.share <= 1:
            raise UserError(f'--share={self.share} must be from 0 to 1. Set --share.')
        if self.frequent < 0:
            raise UserError(f'--frequent={self.frequent} must be at least 0. Set --frequent.')


def evaluation_files(pattern: str, fields: Sequence[str] = ()) -> Evaluation:
    """The rows or texts of a path or glob as an evaluation set.

    Raises:
        UserError: it matches no file of text or rows.
    """
    paths = match_texts(pattern, '--evaluation')
    read = lambda: ((text.where, texts) for text, texts in _read(paths, fields, 'paragraph', '--evaluation_fields'))
    return Evaluation(pattern, read(), files=paths)


def texts_in(value: Any) -> Iterator[str]:
    """All texts of a row, at any depth."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from texts_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from texts_in(inner)


def decontaminate(
    patterns: Sequence[str],
    output: str,
    evaluations: Sequence[Evaluation],
    *,
    fields: Sequence[str] = (),
    unit: str = 'document',
    overlap: Overlap | None = None,
    report_file: str | None = None,
) -> dict[str, Any]:
    """Writes the training examples that overlap with no evaluation set to `output`, a .jsonl file.

    Args:
        patterns: paths or globs of the training files, text or rows.
        fields: the fields of training rows to compare; () compares all texts of a row, at any depth.
        unit: what is one example in a .txt file: 'document', 'paragraph' or 'line'.
        report_file: where the report is written; its list 'removed' then has no more than 100 in memory.

    Returns:
        {'examples', 'kept', 'overlap', 'evaluations': {name: {'examples', 'too_short': examples without a text that is
        long enough, 'found': those that overlap with training examples, 'share': found / examples, 'removed': training
        examples, 'matches': [{'text', 'of', 'ngrams': number in common, 'ngram': one of them}]}}, 'removed': the
        matches, each with its 'evaluation'}.

    Raises:
        UserError: an input is missing or malformed, an evaluation set has no text that is long enough, or the output is
            not a .jsonl file or is an input.
    """
    overlap = overlap or Overlap()
    paths = match_inputs(patterns, unit)
    check_output(output, [*paths, *(file for evaluation in evaluations for file in evaluation.files)], report_file)
    index = _Index(evaluations, overlap)
    read = lambda: _read(paths, fields, unit, '--fields')
    if overlap.frequent:
        index.leave_out_frequent((texts for _, texts in read()), overlap.frequent)
    report: dict[str, Any] = {'examples': 0, 'kept': 0, 'overlap': dataclasses.asdict(overlap)}
    report |= {'evaluations': index.report, 'removed': []}
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open_whole(output, 'wb'))
        listed = stack.enter_context(ReportFile(report_file)) if report_file else None
        for text, texts in read():
            report['examples'] += 1
            matches = index.find(text.where, texts)
            if not matches:
                report['kept'] += 1
                write_row(file, text, '', text.text)
            for match in matches:
                if listed is None or len(report['removed']) < SHOWN:
                    report['removed'].append(match)
                if listed is not None:
                    listed.add(match)
        index.finish()
        if listed is not None:
            listed.finish(report)
    return report


def _read(paths: Sequence[str], fields: Sequence[str], unit: str, setting: str) -> Iterator[tuple[Text, list[str]]]:
    """(example, the texts of it that are compared)."""
    for path in paths:
        if is_plain_text(path):
            yield from ((text, [text.text]) for text in read_texts([path], 'text', unit))
            continue
        for row in read_rows(path):
            values = [find_field(row.value, field, row.where, setting) for field in fields] or row.value
            yield Text(row.where, row.value, ''), list(texts_in(values))


class _Index:
    """The n-grams of evaluation sets; finds those of training examples among them.

    The examples of all sets are numbered through. `keys_K` has each n-gram of each example, sorted; `owners_K` has the
    number of that example.
    """

    def __init__(self, evaluations: Sequence[Evaluation], overlap: Overlap) -> None:
        self._overlap = overlap
        self.report: dict[str, dict[str, Any]] = {}
        self._places: list[str] = []
        sizes: set[int] = set()
        names, keys, owners, counts = [], [], [], []
        for evaluation in evaluations:
            if evaluation.name in self.report:
                raise UserError(f'{evaluation.setting}={evaluation.name} is given twice. Remove one.')
            entry: dict[str, Any] = {
                'examples': 0,
                'too_short': 0,
                'found': 0,
                'share': 0.0,
                'removed': 0,
                'matches': [],
            }
            self.report[evaluation.name] = entry
            for where, texts in evaluation.examples:
                words = [words_W for words_W in map(hash_words, texts) if len(words_W) >= overlap.min_words]
                sizes |= {min(len(words_W), overlap.ngram) for words_W in words}
                found = [hash_ngrams(words_W, overlap.ngram) for words_W in words]
                own = np.unique(np.concatenate([np.zeros(0, np.uint64), *found]))
                entry['examples'] += 1
                entry['too_short'] += not len(own)
                keys.append(own)
                owners.append(np.full(len(own), len(self._places)))
                counts.append(len(own))
                self._places.append(where)
                names.append(evaluation.name)
            if entry['examples'] == entry['too_short']:
                raise UserError(
                    f'{evaluation.setting}={evaluation.name} has no text of {overlap.min_words} or more words in '
                    f'{entry["examples"]:,} examples. Set another file or task, or a smaller --min_words.'
                )
        self._sizes, self._names, self._counts = sorted(sizes), names, np.array(counts)
        keys_K, owners_K = np.concatenate(keys), np.concatenate(owners)
        order_K = np.argsort(keys_K, kind='stable')
        self._keys, self._owners = keys_K[order_K], owners_K[order_K]
        # Most n-grams are in no set: a table of the hashes' first bits saves searching for them.
        self._shift = np.uint64(64 - min(_MOST_BITS, len(keys_K).bit_length() + 4))
        self._is_possible = np.zeros(2 ** (64 - int(self._shift)), bool)
        self._is_possible[self._keys >> self._shift] = True
        self._is_found = np.zeros(len(names), bool)

    def _matches(self, texts: Iterable[str]) -> Iterator[tuple[int, int, int]]:
        """(number of the n-gram, its first word, its words) of each n-gram in common; each text ends with `_END`."""
        words_W = np.concatenate([part_W for text in texts for part_W in (hash_words(text), _END)] or [_END])
        for size in self._sizes:
            if size >= len(words_W):
                break
            hashes_G = hash_ngrams(words_W, size)
            at_H = np.flatnonzero(self._is_possible[hashes_G >> self._shift])
            numbers_H = np.minimum(np.searchsorted(self._keys, hashes_G[at_H]), len(self._keys) - 1)
            is_found_H = self._keys[numbers_H] == hashes_G[at_H]
            for number, at in zip(numbers_H[is_found_H].tolist(), at_H[is_found_H].tolist(), strict=True):
                yield number, at, size

    def leave_out_frequent(self, examples: Iterable[list[str]], most: int) -> None:
        """Leaves out the n-grams that more than `most` training examples have."""
        counts_K = np.zeros(len(self._keys), np.int64)
        for texts in examples:
            counts_K[list({number for number, _, _ in self._matches(texts)})] += 1
        first_K = np.searchsorted(self._keys, self._keys)  # a key is counted where it first stands
        is_kept_K = counts_K[first_K] <= most
        self._keys, self._owners = self._keys[is_kept_K], self._owners[is_kept_K]
        if not len(self._keys):
            raise UserError(f'--frequent={most} leaves no n-gram of the evaluation sets. Set a larger --frequent.')

    def find(self, where: str, texts: Sequence[str]) -> list[dict[str, Any]]:
        """The most similar example of each evaluation set with which a training example overlaps."""
        shared: dict[int, tuple[int, int]] = {}
        for number, at, size in self._matches(texts):
            shared.setdefault(number, (at, size))
        if not shared:
            return []
        numbers = np.array(list(shared))
        ends = np.searchsorted(self._keys, self._keys[numbers], 'right')
        owners, common = np.unique(
            np.concatenate([self._owners[start:end] for start, end in zip(numbers, ends, strict=True)]),
            return_counts=True,
        )
        is_enough = common >= np.maximum(1, self._overlap.share * self._counts[owners] - 1e-9)
        self._is_found[owners[is_enough]] = True
        best: dict[str, tuple[int, int]] = {}
        for owner, count in zip(owners[is_enough].tolist(), common[is_enough].tolist(), strict=True):
            if count > best.get(self._names[owner], (0, 0))[0]:
                best[self._names[owner]] = (count, owner)
        found = []
        for name, (count, owner) in best.items():
            of = zip(shared.values(), numbers.tolist(), ends.tolist(), strict=True)
            at, size = next(span for span, start, end in of if owner in self._owners[start:end])
            words = [word for text in texts for word in (*words_of(text), '')]
            ngram = ' '.join(words[at : at + size])
            match = {'text': where, 'of': self._places[owner], 'ngrams': count, 'ngram': ngram}
            entry = self.report[name]
            entry['removed'] += 1
            if len(entry['matches']) < SHOWN:
                entry['matches'].append(match)
            found.append({'evaluation': name, **match})
        return found

    def finish(self) -> None:
        """Counts the evaluation examples that were found."""
        for name, is_found in zip(self._names, self._is_found.tolist(), strict=True):
            self.report[name]['found'] += is_found
        for entry in self.report.values():
            entry['share'] = entry['found'] / entry['examples']
