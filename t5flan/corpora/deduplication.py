"""Text without its repetitions: a corpus is read once, and what says the same as something before it is left out.

Exact: the same words, whatever white space is between them. Near: the share of word n-grams that two texts have in common
(Jaccard's) is at least a threshold, as MinHash estimates it; candidates come from locality-sensitive hashing (Broder 1997; Lee et
al., arXiv:2107.06499, who find that models then repeat their training text a tenth as often). MinHash is datasketch's.
"""

import dataclasses
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from t5flan.data.corpus_config import TEXT_UNITS
from t5flan.data.randomness import stable_hash
from t5flan.data.records.text_files import SUFFIXES, json_lines, json_object, match_files, plain_texts, require_field
from t5flan.errors import UserError
from t5flan.files import open_whole

_WHOLE = 2**62  # characters: documents are not cut
_BATCH = 64
# A sign of Chinese or Japanese is a word: they are written without spaces.
_WORDS = re.compile(r'[\u3040-\u30ff\u3400-\u9fff]|[^\W\u3040-\u30ff\u3400-\u9fff]+')


@dataclasses.dataclass(frozen=True)
class Rules:
    """What counts as the same.

    Raises:
        UserError: a value is out of its range.
    """

    threshold: float = 0.8
    """Share of n-grams in common from which a text is a near repetition; 1 takes exact ones alone."""
    ngram: int = 5
    """Words of an n-gram."""
    permutations: int = 128
    """Of MinHash: the estimate is off by about 1 / sqrt(permutations)."""

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise UserError(f'--threshold={self.threshold} must be above 0 and at most 1. Set --threshold.')
        if self.ngram < 1 or self.permutations < 2:
            raise UserError(
                f'--ngram={self.ngram} --permutations={self.permutations}: expected 1 and 2 or more. Set them.'
            )


def deduplicate(
    patterns: Sequence[str], output: str, field: str = 'text', unit: str = 'document', rules: Rules = Rules()
) -> dict[str, Any]:
    """Writes the texts of `patterns` that repeat nothing before them to `output`, a .jsonl, with the other fields of their rows.

    Args:
        patterns: paths or globs of .txt and .jsonl files, in this order.
        unit: what is one text in a .txt file: 'document', 'paragraph' or 'line'.

    Returns:
        {'texts', 'kept', 'exact', 'near', 'characters', 'characters_kept', 'rules', 'removed': [{'text', 'why': 'exact' or 'near',
        'of', 'similarity', 'begins'}]}, 'text' and 'of' being places such as 'a.jsonl line 3'.

    Raises:
        UserError: a file is missing, wrong or the output; datasketch is not installed.
    """
    if unit not in TEXT_UNITS:
        raise UserError(f'--unit={unit} is none of {", ".join(TEXT_UNITS)}. Set --unit.')
    paths = [path for pattern in patterns for path in match_files(pattern, SUFFIXES, '--input')]
    if not output.endswith('.jsonl') or any(
        os.path.exists(output) and os.path.samefile(output, path) for path in paths
    ):
        raise UserError(f'--output={output} must be a .jsonl that is none of the inputs. Set --output.')
    seen = Seen(rules)
    report: dict[str, Any] = {
        'texts': 0,
        'kept': 0,
        'exact': 0,
        'near': 0,
        'characters': 0,
        'characters_kept': 0,
        'rules': dataclasses.asdict(rules),
        'removed': [],
    }
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
    """The texts so far, and whether another repeats one of them."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._exact: dict[int, str] = {}
        self._hashes: dict[str, Any] = {}
        if rules.threshold < 1:
            try:
                from datasketch import MinHash, MinHashLSH
            except ImportError:
                raise UserError(
                    "near duplicates need datasketch: pip install 't5flan[dedup]', or set --threshold=1."
                ) from None
            self._bulk = MinHash.bulk
            self._near = MinHashLSH(threshold=rules.threshold, num_perm=rules.permutations)

    def add(self, texts: Sequence[tuple[str, str]]) -> list[dict[str, Any] | None]:
        """For each (place, text) what it repeats, {'why', 'of', 'similarity'}, or None: it is kept, and later ones may repeat it."""
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
    """The word n-grams of a text, lower case; all of its words where it has fewer.

    >>> ngrams('To be, or not', 3)
    [b'to be or', b'be or not']
    """
    words = _WORDS.findall(text.lower())
    starts = range(max(1, len(words) - size + 1))
    return [' '.join(words[start : start + size]).encode('utf-8', 'surrogatepass') for start in starts]


def _texts(paths: Sequence[str], field: str, unit: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, row) of every text."""
    for path in paths:
        if path.endswith('.jsonl'):
            for number, _, line in json_lines(path):
                where = f'{path} line {number}'
                row = json_object(line, where)
                require_field(row, field, where, '--field')
                yield where, row
        else:
            for number, (_, _, text) in enumerate(plain_texts(path, unit, _WHOLE), 1):
                yield f'{path} {unit} {number}', {field: text}


def _batches(items: Iterator[Any]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
