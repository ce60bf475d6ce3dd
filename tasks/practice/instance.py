"""Practice skills and their instances: what is held out, and how instances are drawn.

An instance is one question with its answer, before any wording: `47 + 28`, or the list `dog sun cup` to be reversed.
A hash of its `key` decides whether it is held out of training, so that no wording of a held-out question is ever seen.
Results do not depend on Python's `hash()`, the process or the machine.
"""

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

SPLITS = ('train', 'validation', 'test_wordings')
_MAX_DRAWS = 10_000


@dataclass(frozen=True)
class Instance:
    """One question and its answer, without a wording.

    Attributes:
        key: decides the side of the split; equivalent questions (3 + 4, 4 + 3) share a key.
        fields: values for the fields of a wording.
        answer: the right answer.
        rationale: the steps to the answer, ending with a full stop; empty if the skill has none.
        variant: selects a text of wordings that have several (to and from a language).
        pinned: never held out; held-out instances are composed of these (the numbers 0 to 20).
    """

    key: str
    fields: Mapping[str, str]
    answer: str
    rationale: str = ''
    variant: str = ''
    pinned: bool = False


@dataclass(frozen=True)
class Skill:
    """A named generator of instances, for one task, or two if its instances have rationales.

    Attributes:
        name: the task is `practice_NAME`, with rationales `practice_NAME_cot`.
        group: the theme it is listed under.
        draw: makes an instance from a random generator.
        rationale: whether there is also a `_cot` task.
        held_share: the share of keys held out of training.
        trained: False for a task that no training mixture includes.
        rate: its weight in a mixture.
        space: number of distinct keys, for skills with fewer than about a thousand; otherwise None.
    """

    name: str
    group: str
    draw: Callable[[random.Random], Instance]
    rationale: bool = False
    held_share: float = 0.1
    trained: bool = True
    rate: float = 1.0
    space: int | None = field(default=None, compare=False)


def digest(text: str) -> int:
    """A 64-bit hash of a text (SHA-256), the same in every process."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], 'big')


def is_held_out(skill: Skill, instance: Instance) -> bool:
    """Whether an instance is held out of training; it depends only on the skill's name and the instance's key."""
    return not instance.pinned and digest(f'{skill.name}:{instance.key}') < skill.held_share * 2**64


def draw_instance(skill: Skill, split: str, rng: random.Random) -> Instance:
    """Draws until an instance is on the split's side: held out for every split except `train`."""
    wanted = split != 'train'
    for _ in range(_MAX_DRAWS):
        instance = skill.draw(rng)
        if is_held_out(skill, instance) == wanted:
            return instance
    raise AssertionError(f'practice skill {skill.name}: no instance for split {split} in {_MAX_DRAWS} draws')


def pick(rng: random.Random, items: Sequence[str], least: int, most: int) -> list[str]:
    """Between `least` and `most` different items, in random order."""
    return rng.sample(items, rng.randint(least, most))
