"""tasks/practice/languages.py: number words are those of num2words, stored in number_words.json."""

import doctest
import json
import re
from pathlib import Path

import pytest

from t5flan.tasks.practice import languages
from t5flan.tasks.practice import tasks as practice
from t5flan.tasks.practice.languages import LANGUAGES, SEEN_PAIRS, UNSEEN_PAIRS

GOLD = {
    language: words.split(' / ')
    for language, words in json.loads((Path(__file__).parent / 'number_words.json').read_text(encoding='utf-8')).items()
    if language != 'source'
}


SPACED = ('Korean', 'Japanese', 'Chinese')  # the tasks separate the parts of their numbers


def gold(language: str, text: str) -> int:
    """The number a word stands for."""
    return GOLD[language].index(text.replace(' ', '') if language in SPACED else text)


def rows(name: str):
    for split in ('train', 'validation', 'test_wordings'):
        for i in range(300):
            yield practice.make_example(f'practice_{name}', split, i)


def test_docstrings():
    results = doctest.testmod(languages)
    assert results.attempted and not results.failed


@pytest.mark.parametrize('language', LANGUAGES)
def test_number_words(language):
    assert len(GOLD[language]) == len(set(GOLD[language])) == 100
    words = [LANGUAGES[language](number) for number in range(100)]
    if language in SPACED:
        words = [word.replace(' ', '') for word in words]
    assert words == GOLD[language]


@pytest.mark.parametrize('language', LANGUAGES)
def test_writing_and_reading(language):
    for example in rows(f'number_{language.lower()}'):
        number = int(example['instance'].split()[1])
        if example['answer'].isdigit():
            assert int(example['answer']) == number and not re.search(r'\d', example['inputs'])
            assert LANGUAGES[language](number) in example['inputs']
        else:
            assert gold(language, example['answer']) == number == int(re.search(r'\d+', example['inputs'])[0])
            assert language in example['inputs']


@pytest.mark.parametrize('name, pairs', [('number_translate', SEEN_PAIRS), ('number_translate_pairs', UNSEEN_PAIRS)])
def test_translation(name, pairs):
    found = set()
    for example in rows(name):
        source, target, number = example['instance'].split()
        found.add((source, target))
        assert LANGUAGES[source](int(number)) in example['inputs'] and gold(target, example['answer']) == int(number)
        assert re.search(f'{source}.*{target}', example['inputs'])
    assert found == set(pairs)


def test_parts_and_pairs_are_covered_by_training():
    """Held-out numbers can be composed: training has 0 to 20 and the tens, and each language as source and target."""
    for language in LANGUAGES:
        task = f'practice_number_{language.lower()}'
        keys = {practice.make_example(task, 'train', i)['instance'] for i in range(4000)}
        parts = [*range(21), *range(30, 100, 10)]
        assert {f'{way} {number}' for way in ('write', 'read') for number in parts} <= keys
        assert {source for source, _ in SEEN_PAIRS} == {target for _, target in SEEN_PAIRS} == set(LANGUAGES)
    assert not set(SEEN_PAIRS) & set(UNSEEN_PAIRS)
