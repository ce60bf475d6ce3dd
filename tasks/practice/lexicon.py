"""A made-up lexicon: classes of nouns and sentiments of adjectives that only training examples teach."""

import random
from collections.abc import Callable

from t5flan.tasks.practice.instance import Instance, Skill
from t5flan.tasks.practice.words import CLASS_OF, COLOURS, MADE_UP, SENTIMENTS, THINGS


def draw_classify(rng: random.Random) -> Instance:
    """The class of a made-up noun in a sentence."""
    word, colour, thing = rng.choice(list(CLASS_OF)), rng.choice(COLOURS), rng.choice(THINGS)
    return Instance(f'{word} {colour} {thing}', {'word': word, 'colour': colour, 'thing': thing}, CLASS_OF[word])


def draw_sentiment(rng: random.Random) -> Instance:
    """Whether a sentence with two made-up adjectives is positive or negative; `not` reverses it."""
    name = rng.choice(('positive', 'negative'))
    one, two = rng.sample(SENTIMENTS[name], 2)
    thing, negated = rng.choice(THINGS), rng.random() < 0.3
    answer = {'positive': 'negative', 'negative': 'positive'}[name] if negated else name
    fields = {'thing': thing, 'quality': f'not {one} and not {two}' if negated else f'{one} and {two}'}
    return Instance(f'{thing} {negated} {one} {two}', fields, answer)


def draw_odd_one_out(rng: random.Random) -> Instance:
    """Find the one word of four that is of another class; the rationale names the classes."""
    usual, odd = rng.sample(list(MADE_UP), 2)
    stranger = rng.choice(MADE_UP[odd])
    words = [*rng.sample(MADE_UP[usual], 3), stranger]
    rng.shuffle(words)
    steps = ', '.join(f'{word} {CLASS_OF[word]}' for word in words) + '.'
    return Instance(' '.join(sorted(words)), {'items': ' '.join(words)}, stranger, steps)


def _draw_pick(classes: tuple[str, ...]) -> Callable[[random.Random], Instance]:
    """Find the word of a given class among one word of each class."""

    def draw(rng: random.Random) -> Instance:
        asked = rng.choice(classes)
        words = {name: rng.choice(members) for name, members in MADE_UP.items()}
        shown = list(words.values())
        rng.shuffle(shown)
        a_class = f'{"an" if asked == "animal" else "a"} {asked}'
        return Instance(f'{asked} {" ".join(shown)}', {'items': ' '.join(shown), 'a_class': a_class}, words[asked])

    return draw


SKILLS = (
    Skill('classify', 'lexicon', draw_classify, rate=0.5),
    Skill('sentiment', 'lexicon', draw_sentiment, rate=0.5),
    Skill('odd_one_out', 'lexicon', draw_odd_one_out, rationale=True),
    Skill('pick_class', 'lexicon', _draw_pick(('animal', 'plant')), rate=0.5),
    Skill('pick_tool', 'lexicon', _draw_pick(('tool',)), trained=False),
)
