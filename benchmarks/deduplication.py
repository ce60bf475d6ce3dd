"""Measures `t5flan deduplicate` on texts with planted copies: what it finds beside brute force, time and memory.

    python benchmarks/deduplication.py --quality
    python benchmarks/deduplication.py --documents=10000,40000,100000

`--quality` prints, for 3,000 documents in each of six languages, the share of the near duplicates that are found
(recall) and the share of the found that are near duplicates (precision), against the exact similarity of all pairs.
A copy has 1, 2, 5 or 20 % of its words replaced, other white space, case or punctuation, its last tenth cut, as much
text appended, or shares only boilerplate. The words are random syllables of a language's letters, drawn by Zipf's law.

`--documents` prints CPU seconds, wall-clock seconds, peak memory above that of the imports, and the largest size of the
scratch files, each in a process of its own; without --steps, for near duplicates alone and for all steps. `--json`
writes the results to a file.
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LANGUAGES = ('English', 'Chinese', 'Japanese', 'Hindi', 'Thai', 'Arabic')
KINDS = (
    *('1 %', '2 %', '5 %', '20 %', 'white space', 'case', 'punctuation', 'cut', 'appended', 'boilerplate'),
)  # fmt: skip
_LETTERS = {  # beginnings and ends of syllables
    'English': (['s', 't', 'tr', 'st', *'bcdfghklmnpr'], ['an', 'er', 'on', *'aeiou']),
    'Hindi': ([chr(code) for code in range(0x0915, 0x0939)], ['', 'ा', 'ि', 'ी', 'ु', 'े', 'ो', '्']),
    'Thai': ([chr(code) for code in range(0x0E01, 0x0E20)], ['ะ', 'า', 'ิ', 'ี', 'ุ', 'ู', 'ำ', '่า']),
    'Arabic': ([chr(code) for code in range(0x0628, 0x063A)], ['', 'َ', 'ِ', 'ُ', 'ا', 'و', 'ي']),
    'Chinese': ([chr(code) for code in range(0x4E00, 0x5600)], ['']),
    'Japanese': ([chr(code) for code in (*range(0x3042, 0x3090), *range(0x5B00, 0x5E00))], ['']),
}


class Writer:
    """Writes random texts in a language."""

    def __init__(self, language: str, seed: int) -> None:
        self.rng = random.Random(f'{language} {seed}')
        starts, ends = _LETTERS[language]
        syllable = lambda: self.rng.choice(starts) + self.rng.choice(ends)
        most = 2 if language in ('Chinese', 'Japanese', 'Thai') else 4
        self.words = [''.join(syllable() for _ in range(self.rng.randint(1, most))) for _ in range(20_000)]
        self.weights = np.cumsum(1 / np.arange(10, 10 + len(self.words))).tolist()
        self.space = '' if language in ('Chinese', 'Japanese', 'Thai') else ' '
        self.stop = '。' if language in ('Chinese', 'Japanese') else '. '

    def draw(self, count: int) -> list[str]:
        """`count` words."""
        return self.rng.choices(self.words, cum_weights=self.weights, k=count)

    def join(self, words: Sequence[str], space: str | None = None, stop: str | None = None) -> str:
        """Words as sentences of twelve."""
        space, stop = self.space if space is None else space, self.stop if stop is None else stop
        return stop.join(space.join(words[start : start + 12]) for start in range(0, len(words), 12)) + stop

    def copy(self, words: Sequence[str], kind: str) -> str:
        """A text with a copy of some words."""
        if kind.endswith('%'):
            changed = list(words)
            for place in self.rng.sample(range(len(words)), max(1, round(len(words) * int(kind[:-2]) / 100))):
                changed[place] = self.draw(1)[0]
            return self.join(changed)
        if kind == 'white space':
            return self.join(words, f'{self.space} \n' if self.space else '')
        if kind == 'case':
            return self.join(words).upper()
        if kind == 'punctuation':
            return self.join(words, stop=' — ')
        if kind == 'cut':
            return self.join(words[: -len(words) // 10])
        return self.join([*words, *self.draw(len(words) // 10)])


def planted(language: str, count: int, seed: int = 0) -> Iterator[str]:
    """`count` texts in random order, of which two in five are copies or have boilerplate."""
    writer = Writer(language, seed)
    boilerplate = writer.join(writer.draw(40))
    made = 0
    while made < count:
        group = [writer.draw(writer.rng.randint(60, 300)) for _ in range(60)]
        texts = [writer.join(words) for words in group]
        for place, words in enumerate(group[: 4 * len(KINDS)]):
            kind = KINDS[place % len(KINDS)]
            if kind == 'boilerplate':
                texts[place] = f'{boilerplate}\n\n{texts[place]}\n\n{boilerplate}'
            else:
                texts.append(writer.copy(words, kind))
        writer.rng.shuffle(texts)
        yield from texts[: count - made]
        made += len(texts)


def brute_force(texts: Sequence[str], size: int, threshold: float) -> list[tuple[int, int, float]]:
    """All pairs (earlier, later, similarity) of texts with at least a threshold of common n-grams."""
    import scipy.sparse

    from t5flan.corpora.words import ngrams

    columns: dict[str, int] = {}
    rows = [sorted({columns.setdefault(ngram, len(columns)) for ngram in ngrams(text, size)}) for text in texts]
    sizes = np.array([len(row) for row in rows])
    flat, ends = np.concatenate([np.array(row, np.int64) for row in rows]), np.concatenate([[0], np.cumsum(sizes)])
    matrix = scipy.sparse.csr_matrix((np.ones(len(flat)), flat, ends), (len(rows), len(columns)))
    common = scipy.sparse.triu(matrix @ matrix.T, 1).tocoo()
    alike = common.data / (sizes[common.row] + sizes[common.col] - common.data)
    pairs = zip(common.row.tolist(), common.col.tolist(), alike.tolist(), strict=True)
    return [pair for pair in pairs if pair[2] >= threshold]


def quality(language: str, count: int, seed: int = 0) -> dict[str, Any]:
    """Recall and precision of the near duplicates that are found among planted copies."""
    from t5flan.corpora.near_duplicates import NearStore, Rules, greedy_repeats
    from t5flan.corpora.words import hash_ngrams, hash_words

    rules, texts = Rules(), list(planted(language, count, seed))
    pairs = brute_force(texts, rules.ngram, rules.threshold)
    expected = greedy_repeats(pairs)
    with tempfile.TemporaryDirectory() as folder:
        store = NearStore(folder, rules)
        for text in texts:
            store.add(hash_ngrams(hash_words(text), rules.ngram))
        found = store.find_repeats()
    true = {(of, text) for of, text, _ in pairs}
    right = sum((of, text) in true for text, (of, _) in found.items())
    border = {text for text, (_, alike) in expected.items() if alike < rules.threshold + 0.02}
    return {
        'language': language,
        'documents': count,
        'near duplicates': len(expected),
        'recall': len(found.keys() & expected.keys()) / len(expected),
        'precision': right / len(found),
        'between 0.80 and 0.82': len(border),
        'of these found': len(border & found.keys()),
    }


def measure(count: int, steps: str) -> dict[str, Any]:
    """Time and memory of deduplicating `count` English documents."""
    from t5flan.corpora.deduplication import Cuts, deduplicate

    with tempfile.TemporaryDirectory() as folder:
        path = f'{folder}/texts.jsonl'
        with open(path, 'w', encoding='utf-8') as file:
            file.writelines(json.dumps({'text': text}) + '\n' for text in planted('English', count))
        largest, done = [0], threading.Event()

        def watch() -> None:
            while not done.wait(0.2):
                sizes = [at.stat().st_size for at in Path(folder).glob('.once.jsonl.*.tmp/*') if at.exists()]
                largest[0] = max(largest[0], sum(sizes))

        watcher = threading.Thread(target=watch)
        watcher.start()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        cpu, wall = time.process_time(), time.monotonic()
        cuts = Cuts(boilerplate=50, substring=200, memory=0.5) if steps == 'all' else Cuts()
        report = deduplicate([path], f'{folder}/once.jsonl', cuts=cuts, report_file=f'{folder}/report.json')
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
        done.set()
        watcher.join()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        return {
            'documents': count,
            'steps': steps,
            'MB of text': round(report['characters'] / 1e6, 1),
            'CPU s': round(cpu, 1),
            'wall-clock s': round(wall, 1),
            'memory, MB': round(memory * 1024 / 1e6, 1),
            'scratch, MB': round(largest[0] / 1e6, 1),
            'kept': report['kept'],
        }


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Prints a Markdown table."""
    print('| ' + ' | '.join(rows[0]) + ' |')
    print('|' + ' --- |' * len(rows[0]))
    for row in rows:
        print('| ' + ' | '.join(f'{x:.4f}' if x.__class__ is float and x <= 1 else f'{x}' for x in row.values()) + ' |')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quality', action='store_true')
    parser.add_argument('--documents', default='', help='numbers of documents, separated by commas')
    parser.add_argument('--steps', choices=('near', 'all'), help='near duplicates, or all steps (default: both)')
    parser.add_argument('--json')
    parser.add_argument('--alone', action='store_true', help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.alone:
        print(json.dumps(measure(int(arguments.documents), arguments.steps)))
        return
    results: dict[str, Any] = {}
    if arguments.quality:
        results['quality'] = [quality(language, 3000) for language in LANGUAGES]
        show(results['quality'])
    sizes = [int(number) for number in arguments.documents.split(',') if number]
    for steps in [arguments.steps] if arguments.steps else ['near', 'all']:
        for count in sizes:
            command = [sys.executable, __file__, '--alone', f'--documents={count}', f'--steps={steps}']
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.setdefault('cost', []).append(json.loads(done.stdout.splitlines()[-1]))
            print(f'{count} {steps}: {done.stdout.strip()}', file=sys.stderr)
    if sizes:
        show(results['cost'])
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(results, indent=1))


if __name__ == '__main__':
    main()
