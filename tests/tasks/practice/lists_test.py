"""tasks/practice/lists.py: each answer is recomputed from the text."""

import re
from collections import Counter

import pytest

from t5flan.tasks.practice import tasks as practice


def rows(name: str):
    """Input before the list, the list, the answer's items."""
    for split in ('train', 'validation', 'test_wordings'):
        for i in range(200):
            example = practice.make_example(f'practice_{name}', split, i)
            question, _, items = example['inputs'].rpartition(': ')
            yield question, items.split(), example['answer'].split()


@pytest.mark.parametrize('name', ['copy_words', 'copy_numbers'])
def test_copy(name):
    assert all(answer == items for _, items, answer in rows(name))


@pytest.mark.parametrize('name', ['reverse_words', 'reverse_numbers'])
def test_reverse(name):
    for _, items, answer in rows(name):
        assert len(answer) == len(items) and all(answer[-1 - i] == item for i, item in enumerate(items))


@pytest.mark.parametrize('name', ['sort_words', 'sort_words_down', 'sort_numbers', 'sort_numbers_down'])
def test_sort(name):
    down = name.endswith('down')
    for _, items, answer in rows(name):
        assert Counter(items) == Counter(answer)
        values = [int(item) if item.isdigit() else item for item in answer]
        pairs = zip(values, values[1:], strict=False)
        assert all(one > two if down else one < two for one, two in pairs)


@pytest.mark.parametrize('name, sign', [('largest', 1), ('smallest', -1)])
def test_extremes(name, sign):
    for _, items, (answer,) in rows(name):
        assert answer in items and all(sign * int(answer) >= sign * int(item) for item in items)


@pytest.mark.parametrize(
    'name, place', [('first_word', 0), ('last_word', -1), ('first_number', 0), ('last_letter', -1)]
)
def test_ends(name, place):
    assert all(answer == [items[place]] for _, items, answer in rows(name))


def test_nth():
    for question, items, answer in rows('nth_word'):
        (place,) = [i for i, word in enumerate(('first', 'second', 'third', 'fourth')) if word in question]
        assert answer == [items[place]]


def test_count():
    assert all(int(answer[0]) == len(items) == len(set(items)) for _, items, answer in rows('count_words'))


def test_member_is_balanced():
    answers = Counter()
    for question, items, (answer,) in rows('member'):
        word = re.search(r'(?:Is|if)(?: the word)? (\w+)', question)[1]
        assert answer == ('yes' if word in items else 'no')
        answers[answer] += 1
    assert 0.4 < answers['yes'] / answers.total() < 0.6


def test_dedupe():
    for _, items, answer in rows('dedupe'):
        assert len(set(answer)) == len(answer) < len(items) and set(answer) == set(items)
        assert [items.index(word) for word in answer] == sorted(items.index(word) for word in answer)


def letters_in(question: str) -> list[str]:
    return [word for word in question.split() if len(word) == 1 and word != 'a']


def test_letter_edits():
    for question, items, answer in rows('append_letter'):
        assert (
            answer[:-1] == items and answer[-1] in (*letters_in(question), 'a') and f' {answer[-1]} ' in f'{question} '
        )
    for question, items, answer in rows('remove_letter'):
        (gone,) = set(items) - set(answer)
        assert f' {gone} ' in f'{question} ' and [letter for letter in items if letter != gone] == answer
    for question, items, answer in rows('replace_letter'):
        ((old, new),) = [(a, b) for a, b in zip(items, answer, strict=True) if a != b]
        assert re.search(rf'\b{old}\b.*\b{new}\b', question) or re.search(rf'Write {new} for {old}', question)


def test_capital_and_spell():
    for _, items, answer in rows('capital'):
        assert answer[0].isupper() and [letter.lower() for letter in answer] == items and answer[1:] == items[1:]
    for split in ('train', 'validation', 'test_wordings'):
        for i in range(200):
            example = practice.make_example('practice_spell', split, i)
            assert (
                ''.join(re.findall(r'\w+', example['inputs']))
                .replace('and', '')
                .endswith(example['answer'].replace(' ', ''))
            )
            assert all(len(letter) == 1 for letter in example['answer'].split())
