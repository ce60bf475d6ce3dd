"""Logic: syllogisms, if-then, and Boolean expressions."""

import random

from t5flan.tasks.practice.instance import Instance, Skill
from t5flan.tasks.practice.words import ANIMALS, COLOURS, NAMES, VEHICLES

VERBS = ('sing', 'run', 'read', 'cook', 'jump', 'paint')


def draw_syllogism(rng: random.Random) -> Instance:
    """Every (or no) A is B, and someone has an A, or something else, about which nothing is known."""
    kind, other = rng.sample(ANIMALS + VEHICLES, 2)
    name, colour = rng.choice(NAMES), rng.choice(COLOURS)
    case = rng.choice(('yes', 'no', 'unknown'))
    quantifier = rng.choice(('Every', 'No')) if case == 'unknown' else {'yes': 'Every', 'no': 'No'}[case]
    owned = other if case == 'unknown' else kind
    fields = {'every': quantifier, 'lower_every': quantifier.lower(), 'kind': kind, 'owned': owned, 'colour': colour,
              'name': name}  # fmt: skip
    return Instance(f'{quantifier} {kind} {colour}; {name} {owned}', fields, case)


def draw_if_then(rng: random.Random) -> Instance:
    """If P then Q, given P, not P, Q or not Q: what follows for the other?"""
    one, two = rng.sample(NAMES, 2)
    verb, deed = rng.sample(VERBS, 2)
    case = rng.choice(('P', 'P', 'not Q', 'not Q', 'not P', 'Q'))
    facts = {
        'P': f'{one} {verb}s',
        'not P': f'{one} does not {verb}',
        'Q': f'{two} {deed}s',
        'not Q': f'{two} does not {deed}',
    }
    asked = f'{two} {deed}' if case.endswith('P') else f'{one} {verb}'
    answer = {'P': 'yes', 'not Q': 'no', 'not P': 'unknown', 'Q': 'unknown'}[case]
    fields = {'p': facts['P'], 'q': facts['Q'], 'fact': facts[case], 'asked': asked}
    return Instance(f'{one} {verb} {two} {deed} {case}', fields, answer)


def draw_boolean(rng: random.Random) -> Instance:
    """Three truth values with two operators, at most two negated; the rationale evaluates from the inside out."""
    while True:
        negated = [rng.random() < 0.4 for _ in range(3)]
        if sum(negated) <= 2:
            break
    values = [rng.random() < 0.5 for _ in range(3)]
    operators = [rng.choice(('and', 'or')) for _ in range(2)]
    left_first = rng.random() < 0.5
    terms = [f'not {value}' if flag else f'{value}' for value, flag in zip(values, negated, strict=True)]
    known = [value != flag for value, flag in zip(values, negated, strict=True)]
    first, second = operators if left_first else reversed(operators)
    inner = known[:2] if left_first else known[1:]
    outer = known[2] if left_first else known[0]
    middle = all(inner) if first == 'and' else any(inner)
    answer = (middle and outer) if second == 'and' else (middle or outer)
    plain = f'{known[0]} {operators[0]} {known[1]}' if left_first else f'{known[1]} {operators[1]} {known[2]}'
    last = f'{middle} {second} {outer}' if left_first else f'{outer} {second} {middle}'
    if left_first:
        expression = f'({terms[0]} {operators[0]} {terms[1]}) {operators[1]} {terms[2]}'
    else:
        expression = f'{terms[0]} {operators[0]} ({terms[1]} {operators[1]} {terms[2]})'
    steps = f'{plain} is {middle}, {last} is {answer}.'
    return Instance(expression, {'expression': expression}, str(answer), steps)


SKILLS = (
    Skill('syllogism', 'logic', draw_syllogism, rate=2.0),
    Skill('if_then', 'logic', draw_if_then, rate=2.0),
    Skill('boolean', 'logic', draw_boolean, rationale=True, space=448),
)
