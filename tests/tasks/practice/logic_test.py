"""tasks/practice/logic.py: answers are those of truth tables over the text."""

import itertools
import re
from collections import Counter

from t5flan.tasks.practice import tasks as practice


def rows(name: str):
    for split in ('train', 'validation', 'test_wordings'):
        for i in range(300):
            yield practice.make_example(f'practice_{name}', split, i)


def verdict(worlds: list[bool]) -> str:
    """The answer, from the conclusion in every world that the premises allow."""
    return 'unknown' if len(set(worlds)) == 2 else 'yes' if worlds[0] else 'no'


def claim(text: str) -> tuple[tuple[str, str], bool]:
    """'Tom sings' -> (('Tom', 'sing'), True); 'Tom does not sing' -> (('Tom', 'sing'), False)."""
    found = re.fullmatch(r'(\w+) does not (\w+)', text)
    if found:
        return found.groups(), False
    name, verb = text.split()
    assert verb.endswith('s')
    return (name, verb[:-1]), True


def test_if_then():
    answers = Counter()
    for example in rows('if_then'):
        text = (
            example['inputs'].replace('We know: ', '').replace('Now ', '').replace('if ', 'If ').replace('When ', 'If ')
        )
        *sentences, question = re.split(r'(?<=\.) ', text)
        rule = next(sentence for sentence in sentences if sentence.startswith('If'))
        (fact,) = [sentence for sentence in sentences if sentence != rule]
        p, q = (claim(part)[0] for part in re.fullmatch(r'If (.*), (?:then )?(.*)\.', rule).groups())
        known, holds = claim(fact.rstrip('.'))
        asked = tuple(re.fullmatch(r'Does (\w+) (\w+)\?', question).groups())
        worlds = []
        for values in itertools.product((True, False), repeat=2):
            world = dict(zip((p, q), values, strict=True))
            if (not world[p] or world[q]) and world[known] == holds:
                worlds.append(world[asked])
        assert verdict(worlds) == example['answer'], example
        answers[example['answer']] += 1
    assert min(answers.values()) > 0.2 * answers.total() and len(answers) == 3


def test_syllogism():
    answers = Counter()
    for example in rows('syllogism'):
        text = example['inputs']
        quantifier, kind, colour = re.search(r'\b([Ee]very|[Nn]o) (\w+) is (\w+)', text).groups()
        owned = (re.search(r'has (?:a|one) (\w+)', text) or re.search(r'the (\w+) of', text))[1]
        assert text.endswith(f'{colour}?')
        # Two facts about the owned thing: whether it is of the kind (known by its name), whether it has the colour.
        worlds = [has for has in (True, False) if owned != kind or has == (quantifier.lower() == 'every')]
        assert verdict(worlds) == example['answer'], example
        answers[example['answer']] += 1
    assert min(answers.values()) > 0.2 * answers.total() and len(answers) == 3


def test_boolean():
    answers = Counter()
    for example in rows('boolean_cot'):
        assert re.fullmatch(r'[TrueFalsndot ()]+', example['instance'])
        assert example['instance'] in example['inputs']
        assert str(eval(example['instance'])) == example['answer']
        steps = example['rationale'].rstrip('.').split(', ')
        assert len(steps) == 2
        for step in steps:
            left, _, right = step.partition(' is ')
            assert str(eval(left)) == right
        answers[example['answer']] += 1
    assert min(answers.values()) > 0.3 * answers.total()
