"""What a practice skill is, which of its instances are held out, and where its random numbers come from.

An instance is one question with its answer, before any wording: `47 + 28`, or the list `dog sun cup` to be reversed.
Its `key` alone decides, by a hash, whether it is trained on or held out, so that no wording of a held-out question is
ever seen. Everything here is the standard library: nothing depends on Python's `hash()`, the process or the machine.
"""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

SPLITS = ('train', 'validation', 'test_wordings')
_MAX_DRAWS = 10_000


@dataclass(frozen=True)
class Instance:
    """One question and its answer, in no wording yet.

    Attributes:
        key: decides the side of the split; two questions with one answer for one reason (3 + 4, 4 + 3) share a key.
        fields: what a wording's braces are filled with.
        answer: computed by code.
        rationale: the steps to the answer, ending with a full stop; empty where the skill has none.
        variant: which text of a wording is used, where wordings have several (to and from a language).
        pinned: never held out, because what is held out must be composable from what is seen (the numbers 0 to 20).
    """

    key: str
    fields: Mapping[str, str]
    answer: str
    rationale: str = ''
    variant: str = ''
    pinned: bool = False


@dataclass(frozen=True)
class Skill:
    """A generator of instances under a name; it makes one task, or two where its instances have rationales.

    Attributes:
        name: the task is `practice_NAME`, with rationales `practice_NAME_cot`.
        group: the theme it is listed under.
        draw: a random generator to an instance.
        rationale: whether a `_cot` task exists too.
        direct: whether the direct task exists.
        held_share: the share of keys held out of training.
        trained: False for a whole task that no training mixture holds.
        rate: its weight in a mixture.
        space: how many distinct keys there are, for skills with fewer than about a thousand; None above.
    """

    name: str
    group: str
    draw: Callable[[random.Random], Instance]
    rationale: bool = False
    direct: bool = True
    held_share: float = 0.1
    trained: bool = True
    rate: float = 1.0
    space: int | None = field(default=None, compare=False)


def digest(text: str) -> int:
    """A 64-bit number from a text, the same in every process (SHA-256)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'big')


def is_held_out(skill: Skill, instance: Instance) -> bool:
    """Whether an instance is kept from training: a function of the skill's name and the instance's key only."""
    return not instance.pinned and digest(f'{skill.name}:{instance.key}') < skill.held_share * 2**64


def draw_instance(skill: Skill, split: str, rng: random.Random) -> Instance:
    """Draws until an instance falls on the split's side: held out for every split but `train`."""
    wanted = split != 'train'
    for _ in range(_MAX_DRAWS):
        instance = skill.draw(rng)
        if is_held_out(skill, instance) == wanted:
            return instance
    raise AssertionError(f'practice skill {skill.name}: no instance for split {split} in {_MAX_DRAWS} draws')


def pick(rng: random.Random, items: Sequence[str], least: int, most: int) -> list[str]:
    """Between `least` and `most` different items, in random order."""
    return rng.sample(items, rng.randint(least, most))
