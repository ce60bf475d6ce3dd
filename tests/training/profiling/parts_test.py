"""Seconds by part: they add up to the time that has passed, also where operations overlap or are nested."""

import pytest

from t5flan.training.profiling.parts import (
    DATA,
    OTHER_PROGRAMS,
    REST,
    WAITING,
    Event,
    instruction_parts,
    part_of,
    seconds_by_part,
)

HLO = """
  %dot.3 = f32[8,8]{1,0} dot(%a, %b), metadata={op_name="jit(train_step)/jvp(projection)/dot_general" stack_frame_id=7}
  ROOT %fusion.1 = f32[8]{0} fusion(%c), kind=kLoop, metadata={op_name="jit(train_step)/optimizer/mul"}
  copy.4 = f32[8]{0} copy(%c)
"""


@pytest.mark.parametrize(
    'op_name, part',
    [
        ('jit(train_step)/transpose(jvp(attention))/dot_general', 'attention'),
        ('jit(train_step)/jvp()/while/body/checkpoint/projection/dot_general', 'projections'),
        ('jit(train_step)/jvp(loss)/while/body/projection/dot_general', 'head and loss'),
        ('jit(train_step)/optimizer/sqrt', 'optimizer'),
        ('jit(train_step)/add', REST),
        ('jit(my_loss)/add', REST),
    ],
)
def test_the_part_is_the_named_scope(op_name, part):
    assert part_of(op_name) == part


def test_instructions_have_the_part_of_their_metadata():
    assert instruction_parts(HLO) == {'dot.3': 'projections', 'fusion.1': 'optimizer'}


def events(*rows):
    return [Event(lane, start * 1e9, end * 1e9, name, program) for lane, start, end, name, program in rows]


@pytest.mark.parametrize(
    'rows, expected',
    [
        ([], {WAITING: 10}),
        ([('a', 2, 5, 'dot.3', 'p')], {WAITING: 7, 'projections': 3}),
        ([('a', -2, 5, 'dot.3', 'p'), ('a', 9, 12, 'fusion.1', 'p')], {WAITING: 4, 'projections': 5, 'optimizer': 1}),
        ([('a', 0, 10, 'dot.3', 'p'), ('b', 0, 4, 'fusion.1', 'p')], {'projections': 8, 'optimizer': 2}),  # overlap
        ([('a', 0, 10, 'copy.4', 'p'), ('a', 2, 4, 'dot.3', 'p')], {REST: 8, 'projections': 2}),  # nested
        ([('a', 0, 10, 'while.2', 'p'), ('b', 2, 4, 'dot.3', 'p')], {WAITING: 8, 'projections': 2}),
        ([('host', 0, 4, DATA, ''), ('a', 3, 5, 'dot.3', 'p')], {DATA: 3, 'projections': 2, WAITING: 5}),
        ([('a', 0, 4, 'dot.3', 'other')], {OTHER_PROGRAMS: 4, WAITING: 6}),
        ([('a', 0, 6, 'copy.4', 'p'), ('a', 1, 3, 'dot.3', 'p'), ('a', 3, 6, 'fusion.1', 'p')],
         {REST: 1, 'projections': 2, 'optimizer': 3, WAITING: 4}),
    ],
)  # fmt: skip
def test_every_moment_is_counted_once(rows, expected):
    found = seconds_by_part(events(*rows), instruction_parts(HLO), 'p', 0.0, 10e9)
    assert found == pytest.approx(expected)
    assert sum(found.values()) == pytest.approx(10)
