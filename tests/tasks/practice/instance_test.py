"""tasks/practice/instance.py: the side of the split that an instance is on."""

import random

import pytest

from t5flan.tasks.practice.instance import Instance, Skill, digest, draw_instance, is_held_out, pick


def _numbers(rng: random.Random) -> Instance:
    number = rng.randrange(1000)
    return Instance(str(number), {'number': str(number)}, str(number), pinned=number < 20)


SKILL = Skill('numbers', 'test', _numbers, held_share=0.2)


def test_digest_is_fixed():
    """SHA-256 of the text, big-endian: the split of every practice task depends on it."""
    assert digest('abc') == 0xBA7816BF8F01CFEA


def test_the_held_out_share_is_as_set_without_pinned_instances():
    instances = [Instance(str(number), {}, '', pinned=number < 200) for number in range(10_000)]
    held = [is_held_out(SKILL, instance) for instance in instances]
    assert not any(held[:200])
    assert 0.18 < sum(held[200:]) / 9800 < 0.22


@pytest.mark.parametrize('split, held', [('train', False), ('validation', True), ('test_wordings', True)])
def test_draws_are_on_the_side_of_the_split(split, held):
    rng = random.Random(0)
    drawn = [draw_instance(SKILL, split, rng) for _ in range(300)]
    assert {is_held_out(SKILL, instance) for instance in drawn} == {held}


def test_nothing_to_draw_is_an_error():
    skill = Skill('numbers', 'test', lambda rng: Instance('1', {}, '1', pinned=True))
    with pytest.raises(AssertionError, match='numbers: no instance for split validation'):
        draw_instance(skill, 'validation', random.Random(0))


def test_pick_takes_different_items():
    rng = random.Random(0)
    drawn = [pick(rng, 'abcdef', 2, 4) for _ in range(200)]
    assert {len(items) for items in drawn} == {2, 3, 4}
    assert all(len(set(items)) == len(items) for items in drawn)
