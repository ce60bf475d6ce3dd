"""Removes what repeats in a corpus: boilerplate, copies of whole texts or of their paragraphs, and copied passages.

    deduplicate(['crawl/*.jsonl'], 'crawl_once.jsonl', cuts=Cuts(boilerplate=100, substring=200))

The steps, in this order, each over the texts that the one before left:

1. `Cuts.boilerplate`: lines that many texts have are cut from all of them.
2. Exact copies (regardless of white space) and near copies (see near_duplicates.py) of an earlier text are removed.
   With `Cuts.compare` these are copies of paragraphs or lines, and each text gets back those that are left.
3. `Cuts.substring`: passages that occurred before are cut (see passages.py).

The inputs are read once for each step and once for writing, so no text stays in memory.
"""

import array
import collections
import contextlib
import dataclasses
import math
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from typing import IO, Any

import numpy as np

from t5flan.corpora.near_duplicates import NearStore, Rules, exact_repeats
from t5flan.corpora.passages import Boilerplate, RepeatedPassages
from t5flan.corpora.texts import (
    PARTS,
    SHOWN,
    ReportFile,
    Text,
    check_output,
    match_inputs,
    read_texts,
    split_text,
    write_row,
)
from t5flan.corpora.words import hash_ngrams, hash_words
from t5flan.data.randomness import stable_hash
from t5flan.errors import UserError
from t5flan.files import open_whole
from t5flan.files.partial import partial_folder

_NEW = -1


@dataclasses.dataclass(frozen=True)
class Cuts:
    """What is compared, and what is cut out of texts.

    Raises:
        UserError: a value is out of range.
    """

    compare: str = 'text'
    """What is removed if it is a copy: a whole 'text', or a 'paragraph' or 'line' of it."""
    min_length: int = 0
    """Characters; shorter texts, paragraphs and lines are never removed."""
    boilerplate: int = 0
    """Lines that at least this many texts have are cut; 0 cuts none."""
    substring: int = 0
    """Passages of at least this many characters that occurred before are cut; 0 cuts none."""
    memory: float = 2.0
    """GiB that the search for passages may sort at once; with less, it reads the inputs more often."""

    def __post_init__(self) -> None:
        if self.compare not in PARTS:
            raise UserError(f'--compare={self.compare} is not one of {", ".join(PARTS)}. Set --compare.')
        if self.min_length < 0:
            raise UserError(f'--min_length={self.min_length} must be at least 0. Set --min_length.')
        if self.boilerplate < 0 or self.boilerplate == 1:
            raise UserError(f'--boilerplate={self.boilerplate} must be 0 (off) or at least 2. Set --boilerplate.')
        if self.substring and self.substring < 10:
            raise UserError(f'--substring={self.substring} must be 0 (off) or at least 10. Set --substring.')
        if not 0 < self.memory < math.inf:
            raise UserError(f'--memory={self.memory} must be a number above 0. Set --memory.')


def deduplicate(
    patterns: Sequence[str],
    output: str,
    field: str = 'text',
    unit: str = 'document',
    rules: Rules | None = None,
    cuts: Cuts | None = None,
    report_file: str | None = None,
) -> dict[str, Any]:
    """Writes the texts without what repeats to `output`, a .jsonl file, with the other fields of their rows.

    Args:
        patterns: paths or globs of files of text and rows, in order.
        field: the key of the text in rows; 'question.text' is the key 'text' of the object 'question'.
        unit: what is one text in a .txt file: 'document', 'paragraph' or 'line'.
        report_file: where the report is written; its list 'removed' then has no more than 100 in memory.

    Returns:
        {'texts', 'kept', 'exact', 'near', 'characters', 'characters_kept', 'rules', 'cuts', 'removed': [{'text', 'why':
        'exact' or 'near', 'of', 'similarity', 'begins'}]}; 'text' and 'of' are places such as 'a.jsonl line 3'. With
        cuts, 'texts' counts what is compared, 'documents' and 'documents_kept' count rows, and 'boilerplate' and
        'passages' tell what was cut.

    Raises:
        UserError: an input is missing or malformed, or the output is not a .jsonl file or is an input.
    """
    paths = match_inputs(patterns, unit)
    check_output(output, paths, report_file)
    with contextlib.ExitStack() as stack:
        in_bucket = '://' in output
        scratch: Any = tempfile.TemporaryDirectory() if in_bucket else partial_folder(pathlib.Path(output))
        folder = os.fspath(stack.enter_context(scratch))
        corpus = _Corpus(paths, field, unit, rules or Rules(), cuts or Cuts(), folder)
        file = stack.enter_context(open_whole(output, 'wb'))
        listed = stack.enter_context(ReportFile(report_file)) if report_file else None
        return corpus.write(file, listed)


class _Corpus:
    """The texts of files and what is decided about each; reading them again applies the decisions."""

    def __init__(self, paths: Sequence[str], field: str, unit: str, rules: Rules, cuts: Cuts, scratch: str) -> None:
        self._paths, self._field, self._unit, self._rules, self._cuts = paths, field, unit, rules, cuts
        self._boilerplate: Boilerplate | None = None
        if cuts.boilerplate:
            texts = lambda: (text.text for text in read_texts(paths, field, unit))
            self._boilerplate = Boilerplate(texts, cuts.boilerplate, cuts.min_length)
        self._characters = 0
        self._compare(scratch)

    def _texts(self) -> Iterator[tuple[Text, str]]:
        """(text, what is left of it) after boilerplate has been cut."""
        if self._boilerplate is not None:
            self._boilerplate.restart()
        for text in read_texts(self._paths, self._field, self._unit):
            yield text, text.text if self._boilerplate is None else self._boilerplate.cut(text.text)

    def _compare(self, scratch: str) -> None:
        """Decides which texts, or which parts of texts, are copies of which."""
        rules, least = self._rules, self._cuts.min_length
        near = NearStore(scratch, rules) if rules.threshold < 1 else None
        keys = array.array('Q')
        none = np.zeros(0, np.uint64)
        for _, left in self._texts():
            for part in split_text(left, self._cuts.compare):
                plain = ' '.join(part.split())
                is_compared = len(plain) >= least and (bool(plain) or self._cuts.compare == 'text')
                # What is not compared has a key of its own: no copy has it.
                keys.append(stable_hash(plain if is_compared else f'\0{len(keys)}'))
                if near is not None:
                    near.add(hash_ngrams(hash_words(part), rules.ngram) if is_compared else none)
                self._characters += len(part)
        self._of = exact_repeats(np.frombuffer(keys, np.uint64)) if keys else np.zeros(0, np.int64)
        self._is_exact = self._of != np.arange(len(self._of))
        self._similarity = np.ones(len(self._of), np.float32)
        found = near.find_repeats(self._is_exact) if near is not None else {}
        copies = self._of.copy()
        self._of[~self._is_exact] = _NEW
        for text, (of, alike) in found.items():
            self._of[text], self._similarity[text] = of, alike
        # An exact copy of a text that was removed repeats what that text repeats.
        others = np.flatnonzero(self._is_exact)
        others = others[self._of[copies[others]] != _NEW]
        self._similarity[others] = self._similarity[copies[others]]
        self._of[others], self._is_exact[others] = self._of[copies[others]], False

    def _left(
        self, report: dict[str, Any] | None = None, listed: ReportFile | None = None
    ) -> Iterator[tuple[Text, str]]:
        """(text, what is left of it) without copies; counts and lists them in the report."""
        is_original = np.zeros(len(self._of), bool)
        is_original[self._of[self._of != _NEW]] = True
        places: dict[int, str] = {}
        number = -1
        for text, left in self._texts():
            kept = []
            parts = split_text(left, self._cuts.compare)
            for place, part in enumerate(parts, 1):
                number += 1
                where = text.where if self._cuts.compare == 'text' else f'{text.where} {self._cuts.compare} {place}'
                if is_original[number]:
                    places[number] = where
                of = int(self._of[number])
                if of == _NEW:
                    kept.append(part)
                elif report is not None:
                    why = 'exact' if self._is_exact[number] else 'near'
                    alike = round(float(self._similarity[number]), 3)
                    found = {'text': where, 'why': why, 'of': places[of], 'similarity': alike, 'begins': part[:80]}
                    report[why] += 1
                    if listed is None or len(report['removed']) < SHOWN:
                        report['removed'].append(found)
                    if listed is not None:
                        listed.add(found)
            if report is not None:
                report['texts'] += len(parts)
                report['kept'] += len(kept)
                report['documents'] += 1
                report['characters'] += len(text.text)
            if kept:
                whole = ''.join(kept)
                yield text, whole if len(kept) == len(parts) else whole.strip('\n')

    def write(self, file: IO[bytes], listed: ReportFile | None) -> dict[str, Any]:
        """Writes what is left of the texts; returns the report."""
        counts = ('texts', 'kept', 'exact', 'near', 'characters', 'characters_kept', 'documents', 'documents_kept')
        settings = {'rules': dataclasses.asdict(self._rules), 'cuts': dataclasses.asdict(self._cuts)}
        report: dict[str, Any] = {**dict.fromkeys(counts, 0), **settings, 'removed': []}
        passages: RepeatedPassages | None = None
        if self._cuts.substring:
            left_texts = lambda: (left for _, left in self._left())
            memory = int(self._cuts.memory * 2**30)
            passages = RepeatedPassages(left_texts, self._cuts.substring, self._characters, memory)
        cut: collections.Counter[str] = collections.Counter()
        shown: list[dict[str, Any]] = []
        for text, left in self._left(report, listed):
            if passages is not None:
                left, spans = passages.cut(left)
                cut['passages'] += len(spans)
                cut['characters'] += sum(map(len, spans))
                for span in spans[: max(0, SHOWN - len(shown))]:
                    shown.append({'text': text.where, 'characters': len(span), 'begins': span[:80]})
            if left.strip() or left == text.text:
                report['documents_kept'] += 1
                report['characters_kept'] += len(left)
                write_row(file, text, self._field, left)
        if self._boilerplate is not None:
            lines, characters = self._boilerplate.lines, self._boilerplate.characters
            report['boilerplate'] = {
                'lines': lines,
                'characters': characters,
                'most': self._boilerplate.most(SHOWN),
            }
        if passages is not None:
            report['passages'] = {'passages': cut['passages'], 'characters': cut['characters'], 'first': shown}
        if listed is not None:
            listed.finish(report)
        return report
