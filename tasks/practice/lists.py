"""Lists of words, numbers and letters: copy, reverse, sort, pick, count, look up, edit."""

import random
from collections.abc import Callable, Sequence

from t5flan.tasks.practice.instance import Instance, Skill, pick
from t5flan.tasks.practice.words import LETTERS, SHORT_WORDS, WORDS

NUMBERS = tuple(map(str, range(10, 100)))
PLACES = ('first', 'second', 'third', 'fourth')


def _draw_list(
    items: Sequence[str], least: int, most: int, answer: Callable[[list[str]], str], ordered: bool = True
) -> Callable[[random.Random], Instance]:
    """Makes a generator of lists; with ordered=False, lists of the same items are one instance."""

    def draw(rng: random.Random) -> Instance:
        chosen = pick(rng, items, least, most)
        key = ' '.join(chosen if ordered else sorted(chosen))
        return Instance(key, {'items': ' '.join(chosen)}, answer(chosen))

    return draw


def draw_nth_word(rng: random.Random) -> Instance:
    """The second, third or fourth word of a list."""
    words = pick(rng, WORDS, 4, 5)
    place = rng.randint(1, 3)
    items, nth = ' '.join(words), PLACES[place]
    return Instance(f'{nth} {items}', {'items': items, 'nth': nth}, words[place])


def draw_member(rng: random.Random) -> Instance:
    """Whether a word is in a list; half of the time it is."""
    words = pick(rng, WORDS, 4, 5)
    inside = rng.random() < 0.5
    word = rng.choice(words[:-1]) if inside else words.pop()
    if inside:
        words.pop()
    items = ' '.join(words)
    return Instance(f'{word} in {items}', {'word': word, 'items': items}, 'yes' if inside else 'no')


def draw_dedupe(rng: random.Random) -> Instance:
    """A list with one or two repeated words; each is kept once, in the order of first appearance."""
    words = pick(rng, WORDS, 2, 3)
    for _ in range(rng.randint(1, 2)):
        place = rng.randint(1, len(words))
        words.insert(place, rng.choice(words[:place]))
    items = ' '.join(words)
    return Instance(items, {'items': items}, ' '.join(dict.fromkeys(words)))


def draw_append_letter(rng: random.Random) -> Instance:
    """A row of letters with one more at the end."""
    letters = pick(rng, LETTERS, 3, 4)
    letter, items = rng.choice(LETTERS), ' '.join(letters)
    return Instance(f'{items}+{letter}', {'items': items, 'letter': letter}, f'{items} {letter}')


def draw_remove_letter(rng: random.Random) -> Instance:
    """A row of letters with one removed."""
    letters = pick(rng, LETTERS, 3, 3)
    letter, items = rng.choice(letters), ' '.join(letters)
    left = ' '.join(other for other in letters if other != letter)
    return Instance(f'{items}-{letter}', {'items': items, 'letter': letter}, left)


def draw_replace_letter(rng: random.Random) -> Instance:
    """A row of letters with one replaced."""
    *letters, new = pick(rng, LETTERS, 4, 4)
    old, items = rng.choice(letters), ' '.join(letters)
    answer = ' '.join(new if letter == old else letter for letter in letters)
    return Instance(f'{items}:{old}:{new}', {'items': items, 'old': old, 'new': new}, answer)


def draw_spell(rng: random.Random) -> Instance:
    """Two short words, letter by letter."""
    words = rng.sample(SHORT_WORDS, 2)
    return Instance('+'.join(words), {'first': words[0], 'second': words[1]}, ' '.join(''.join(words)))


def _reverse(items: list[str]) -> str:
    return ' '.join(reversed(items))


def _capital(items: list[str]) -> str:
    return ' '.join([items[0].upper(), *items[1:]])


SKILLS = (
    Skill('copy_words', 'lists', _draw_list(WORDS, 2, 4, ' '.join)),
    Skill('copy_numbers', 'lists', _draw_list(NUMBERS, 2, 4, ' '.join)),
    Skill('reverse_words', 'lists', _draw_list(WORDS, 2, 4, _reverse)),
    Skill('sort_words', 'lists', _draw_list(WORDS, 2, 4, lambda items: ' '.join(sorted(items)), ordered=False),
          rate=1.5),
    Skill('sort_numbers', 'lists', _draw_list(NUMBERS, 2, 4, lambda items: ' '.join(sorted(items)), ordered=False)),
    Skill('sort_numbers_down', 'lists',
          _draw_list(NUMBERS, 2, 4, lambda items: ' '.join(sorted(items, reverse=True)), ordered=False)),
    Skill('largest', 'lists', _draw_list(NUMBERS, 3, 4, max, ordered=False), rate=0.5),
    Skill('smallest', 'lists', _draw_list(NUMBERS, 3, 4, min, ordered=False), rate=0.5),
    Skill('first_word', 'lists', _draw_list(WORDS, 3, 5, lambda items: items[0]), rate=0.5),
    Skill('last_word', 'lists', _draw_list(WORDS, 3, 5, lambda items: items[-1])),
    Skill('nth_word', 'lists', draw_nth_word),
    Skill('count_words', 'lists', _draw_list(WORDS, 2, 6, lambda items: str(len(items)), ordered=False)),
    Skill('member', 'lists', draw_member, rate=1.5),
    Skill('dedupe', 'lists', draw_dedupe, rate=1.5),
    Skill('append_letter', 'letters', draw_append_letter),
    Skill('remove_letter', 'letters', draw_remove_letter, rate=1.5),
    Skill('replace_letter', 'letters', draw_replace_letter, rate=1.5),
    Skill('capital', 'letters', _draw_list(LETTERS, 3, 4, _capital), rate=0.5),
    Skill('spell', 'letters', draw_spell, space=len(SHORT_WORDS) * (len(SHORT_WORDS) - 1)),
    Skill('sort_words_down', 'lists',
          _draw_list(WORDS, 2, 4, lambda items: ' '.join(sorted(items, reverse=True)), ordered=False), trained=False),
    Skill('reverse_numbers', 'lists', _draw_list(NUMBERS, 2, 4, _reverse), trained=False),
    Skill('first_number', 'lists', _draw_list(NUMBERS, 2, 4, lambda items: items[0]), trained=False),
    Skill('last_letter', 'letters', _draw_list(LETTERS, 3, 4, lambda items: items[-1]), trained=False),
)  # fmt: skip
