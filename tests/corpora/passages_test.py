"""t5flan/corpora/passages.py: what is cut is what a suffix array says is repeated, and nothing else."""

import random

import numpy as np
import pytest

from t5flan.corpora import passages
from t5flan.corpora.passages import Boilerplate, RepeatedPassages


def repeated_by_suffix_array(texts, length):
    """For each text, whether each character lies in a passage of `length` characters that occurs twice anywhere."""
    joined = ''.join(f'{text}{chr(0xE000 + number)}' for number, text in enumerate(texts))  # ends that never repeat
    suffixes = sorted(range(len(joined)), key=lambda start: joined[start : start + length])
    covered = np.zeros(len(joined), bool)
    for one, other in zip(suffixes, suffixes[1:], strict=False):
        if joined[one : one + length] == joined[other : other + length] and len(joined) - max(one, other) >= length:
            covered[one : one + length] = covered[other : other + length] = True
    cuts = np.cumsum([0, *(len(text) + 1 for text in texts)])
    return [covered[start : end - 1] for start, end in zip(cuts[:-1], cuts[1:], strict=True)]


def seen_before(texts, length):
    """For each text, whether each character lies in a passage that occurred before, in this text or an earlier one."""
    seen, covered = set(), []
    for text in texts:
        covered.append(np.zeros(len(text), bool))
        for start in range(len(text) - length + 1):
            window = text[start : start + length]
            if window in seen:
                covered[-1][start : start + length] = True
            seen.add(window)
    return covered


def random_texts(seed, letters='abcdefghij 東京é😀', count=30):
    rng = random.Random(seed)
    draw = lambda size: ''.join(rng.choices(letters, k=size))
    shared = [draw(rng.randint(5, 40)) for _ in range(6)]
    pieces = lambda: [rng.choice(shared) if rng.random() < 0.4 else draw(rng.randint(0, 30)) for _ in range(5)]
    return [''.join(pieces()) for _ in range(count)]


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('memory', [10**9, 5000])
@pytest.mark.parametrize('block', [2**18, 17])
def test_the_spans_are_those_of_a_suffix_array(monkeypatch, seed, memory, block):
    monkeypatch.setattr(passages, '_BLOCK', block)
    texts, length = random_texts(seed), 12
    found = RepeatedPassages(lambda: texts, length, sum(map(len, texts)), memory)
    assert (found.parts > 1) == (memory < 10**6)
    marked = [np.zeros(len(text), bool) for text in texts]
    for text, mark in zip(texts, marked, strict=True):
        for start, end in found.spans(text):
            assert end - start >= 1
            mark[start:end] = True
    for mark, repeated, before in zip(
        marked, repeated_by_suffix_array(texts, length), seen_before(texts, length), strict=True
    ):
        assert (mark == before).all() and not (mark & ~repeated).any()


def test_the_first_occurrence_stays_and_short_passages_too():
    notice = 'All rights reserved by the publisher.'
    texts = [f'First. {notice}', f'{notice} Second.', f'Third, {notice[:20]}', 'short']
    found = RepeatedPassages(lambda: texts, 30, 200, 10**9)
    assert [found.cut(text) for text in texts] == [
        (texts[0], []),
        (' Second.', [notice]),
        (texts[2], []),
        ('short', []),
    ]


@pytest.mark.parametrize('unit', ['a', 'ab', '- '])
def test_a_run_of_one_character_keeps_its_beginning(unit):
    text = 'x' + unit * 400 + 'y'
    left, cut = RepeatedPassages(lambda: [text], 50, len(text), 10**9).cut(text)
    assert left.startswith('x' + unit * 25) and 50 <= len(left) < 60 and len(cut) == 1


def test_nothing_is_cut_of_texts_without_repeats():
    texts = ['', 'abc', ''.join(map(chr, range(0x4E00, 0x5000)))]
    found = RepeatedPassages(lambda: texts, 10, 600, 10**9)
    assert [found.cut(text)[0] for text in texts] == texts


def test_boilerplate_is_cut_from_every_text(monkeypatch):
    monkeypatch.setattr(passages, '_MERGE', 3)
    texts = [f'Text {number}\n  Accept all cookies \n\n---\nthe end {number % 2}\n' for number in range(5)]
    texts.append('Accept  all cookies\r\nAccept all cookies\nlast')
    found = Boilerplate(lambda: texts, 4)
    assert [found.cut(text) for text in texts] == [
        *(f'Text {number}\n\n---\nthe end {number % 2}\n' for number in range(5)),
        'last',
    ]
    assert found.most(5) == [{'line': 'Accept all cookies', 'times': 7}] and found.lines == 7
    kept = Boilerplate(lambda: texts, 4, min_length=30)
    assert [kept.cut(text) for text in texts] == texts
