"""tasks/practice/lexicon.py: the lexicon is consistent, and training shows all of it."""

import re
from collections import Counter

from t5flan.tasks.practice import tasks as practice
from t5flan.tasks.practice.words import CLASS_OF, MADE_UP, SENTIMENTS, WORDS

SENTIMENT_OF = {word: name for name, words in SENTIMENTS.items() for word in words}
OPPOSITE = {'positive': 'negative', 'negative': 'positive'}


def rows(name: str, *splits: str):
    for split in splits or ('train', 'validation', 'test_wordings'):
        for i in range(400):
            yield practice.make_example(f'practice_{name}', split, i)


def test_words_have_one_meaning():
    invented = [word for words in [*MADE_UP.values(), *SENTIMENTS.values()] for word in words]
    assert len(set(invented)) == len(invented)
    assert not set(invented) & set(WORDS) and len(set(WORDS)) == len(WORDS)


def test_classify():
    for example in rows('classify'):
        (word,) = [word for word in dict.fromkeys(re.findall(r'\w+', example['inputs'])) if word in CLASS_OF]
        assert word in MADE_UP[example['answer']]


def test_sentiment():
    for example in rows('sentiment'):
        text = re.sub(r'positive or negative', '', example['inputs'], flags=re.IGNORECASE)
        qualities = re.search(r'is ((?:not )?\w+ and (?:not )?\w+)', text)[1].replace(' and ', ' ')
        judged = re.findall(r'(not )?(\w+)', qualities)
        assert len(judged) == 2
        names = {OPPOSITE[SENTIMENT_OF[word]] if negated else SENTIMENT_OF[word] for negated, word in judged}
        assert names == {example['answer']}


def test_odd_one_out():
    for example in rows('odd_one_out_cot'):
        items = example['inputs'].partition(': ')[2].split()[:4]
        classes = {word: name for name, words in MADE_UP.items() for word in words}
        counts = Counter(classes[word] for word in items)
        assert sorted(counts.values()) == [1, 3]
        assert counts[classes[example['answer']]] == 1 and example['answer'] in items
        assert example['rationale'] == ', '.join(f'{word} {classes[word]}' for word in items) + '.'


def test_pick():
    for name in ('pick_class', 'pick_tool'):
        for example in rows(name):
            question, _, items = example['inputs'].partition(': ')
            (asked,) = re.findall('animal|plant|tool', question)
            assert (asked == 'tool') == (name == 'pick_tool')
            assert [word for word in items.split() if word in MADE_UP[asked]] == [example['answer']]


def test_training_shows_every_word():
    for name, words in (('classify', CLASS_OF), ('sentiment', SENTIMENT_OF), ('odd_one_out', CLASS_OF)):
        shown = {word for example in rows(name, 'train') for word in re.findall(r'\w+', example['inputs'])}
        assert set(words) <= shown
