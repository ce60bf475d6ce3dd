"""Removes texts that repeat an earlier text of a corpus, in one pass.

Exact duplicates have the same words, regardless of white space. Near duplicates share at least a threshold of their
word n-grams (Jaccard similarity), as estimated by MinHash with candidates from locality-sensitive hashing (Broder 1997;
Lee et al., arXiv:2107.06499, who find that models then repeat training text ten times less often). MinHash is
datasketch's.
"""

import dataclasses
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from t5flan.data.corpus_config import TEXT_UNITS
from t5flan.data.randomness import stable_hash
from t5flan.data.records.fields import require_field
from t5flan.data.records.hub import is_dataset
from t5flan.data.records.rows import is_plain_text, plain_text, read_rows
from t5flan.data.records.text_files import match_texts, plain_texts
from t5flan.errors import UserError
from t5flan.files import open_whole

_WHOLE = 2**62  # characters: documents are not cut
_BATCH = 64
# Each Chinese or Japanese character is a word, as there are no spaces.
_WORDS = re.compile(r'[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+')


@dataclasses.dataclass(frozen=True)
class Rules:
    """What counts as a duplicate.

    Raises:
        UserError: a value is out of range.
    """

    threshold: float = 0.8
    """Similarity from which a text is a near duplicate; 1 finds exact duplicates only."""
    ngram: int = 5
    """Words per n-gram."""
    permutations: int = 128
    """Permutations of MinHash; the error of the estimate is about 1 / sqrt(permutations)."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise UserError(f'--threshold={self.threshold} must be above 0 and at most 1. Set --threshold.')
        if self.ngram < 1 or self.permutations < 2:
            given = f'--ngram={self.ngram} --permutations={self.permutations}'
            raise UserError(f'{given} must be at least 1 and 2. Set --ngram or --permutations.')


def deduplicate(
    patterns: Sequence[str], output: str, field: str = 'text', unit: str = 'document', rules: Rules = Rules()
) -> dict[str, Any]:
    """Writes the texts without duplicates to `output`, a .jsonl file, with the other fields of their rows.

    Args:
        patterns: paths or globs of .txt and .jsonl files, in order.
        field: the key of the text in .jsonl files.
        unit: what is one text in a .txt file: 'document', 'paragraph' or 'line'.

    Returns:
        {'texts', 'kept', 'exact', 'near', 'characters', 'characters_kept', 'rules', 'removed': [{'text', 'why': 'exact'
        or 'near', 'of', 'similarity', 'begins'}]}; 'text' and 'of' are places such as 'a.jsonl line 3'.

    Raises:
        UserError: an input is missing or malformed, the output is not a .jsonl file or is an input, or datasketch is
            not installed.
    """
    if unit not in TEXT_UNITS:
        raise UserError(f'--unit={unit} is not one of {", ".join(TEXT_UNITS)}. Set --unit.')
    paths = [path for pattern in patterns for path in match_texts(pattern, '--input')]
    files = [path for path in paths if not is_dataset(path)]
    is_input = os.path.exists(output) and any(os.path.samefile(output, path) for path in files)
    if is_input or not output.endswith('.jsonl'):
        raise UserError(f'--output={output} must be a .jsonl file and not one of the inputs. Set --output.')
    seen = Seen(rules)
    counts = dict.fromkeys(('texts', 'kept', 'exact', 'near', 'characters', 'characters_kept'), 0)
    report: dict[str, Any] = {**counts, 'rules': dataclasses.asdict(rules), 'removed': []}
    with open_whole(output) as file:
        for batch in _batches(_texts(paths, field, unit)):
            repeated = seen.add([(where, row[field]) for where, row in batch])
            for (where, row), found in zip(batch, repeated, strict=True):
                report['texts'] += 1
                report['characters'] += len(row[field])
                if found is None:
                    report['kept'] += 1
                    report['characters_kept'] += len(row[field])
                    file.write(json.dumps(row, ensure_ascii=False) + '\n')
                else:
                    report[found['why']] += 1
                    report['removed'].append({'text': where, **found, 'begins': row[field][:80]})
    return report


class Seen:
    """The texts so far; finds out whether another text repeats one of them."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._exact: dict[int, str] = {}
        self._hashes: dict[str, Any] = {}
        if rules.threshold < 1:
            try:
                from datasketch import MinHash, MinHashLSH
            except ImportError:
                raise UserError("datasketch is missing: pip install 't5flan[dedup]', or set --threshold=1.") from None
            self._bulk = MinHash.bulk
            self._near = MinHashLSH(threshold=rules.threshold, num_perm=rules.permutations)

    def add(self, texts: Sequence[tuple[str, str]]) -> list[dict[str, Any] | None]:
        """For each (place, text) its duplicate, {'why', 'of', 'similarity'}; None if it is new, and then added."""
        if self._rules.threshold < 1:
            shingles = [ngrams(text, self._rules.ngram) for _, text in texts]
            hashes = self._bulk(shingles, num_perm=self._rules.permutations, hashfunc=zlib.crc32)
        else:
            hashes = [None] * len(texts)
        return [self._add(where, text, minhash) for (where, text), minhash in zip(texts, hashes, strict=True)]

    def _add(self, where: str, text: str, minhash: Any) -> dict[str, Any] | None:
        key = stable_hash(' '.join(text.split()))
        if key in self._exact:
            return {'why': 'exact', 'of': self._exact[key], 'similarity': 1.0}
        if minhash is not None:
            alike = [(self._hashes[of].jaccard(minhash), of) for of in self._near.query(minhash)]
            similarity, of = max(alike, default=(0.0, ''))
            if similarity >= self._rules.threshold:
                return {'why': 'near', 'of': of, 'similarity': round(float(similarity), 3)}
            self._near.insert(where, minhash)
            self._hashes[where] = minhash
        self._exact[key] = where
        return None


def ngrams(text: str, size: int) -> list[bytes]:
    """The word n-grams of a text in lower case; a shorter text is one n-gram.

    >>> ngrams('To be, or not', 3)
    [b'to be or', b'be or not']
    """
    words = _WORDS.findall(text.lower())
    starts = range(max(1, len(words) - size + 1))
    return [' '.join(words[start : start + size]).encode('utf-8', 'surrogatepass') for start in starts]


def _texts(paths: Sequence[str], field: str, unit: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of every text."""
    for path in paths:
        if is_plain_text(path):
            for number, (_, _, text) in enumerate(plain_texts(plain_text(path), unit, _WHOLE, named=path), 1):
                yield f'{path} {unit} {number}', {field: text}
            continue
        for row in read_rows(path):
            require_field(row.value, field, row.where, '--field')
            yield row.where, row.value


def _batches(items: Iterator[Any]) -> Iterator[list[Any]]:
    while batch := list(itertools.islice(items, _BATCH)):
        yield batch
