"""Reading a program: one recorded from the TPU compiler, cut down to one of each kind of instruction."""

from pathlib import Path

import pytest

from t5flan.compiling import hlo

PROGRAM = (Path(__file__).parent / 'program.hlo').read_text(encoding='utf-8')


def test_a_loop_runs_as_often_as_its_condition_says():
    module = hlo.parse(PROGRAM)
    assert module.executions() == {'main': 1.0, 'body': 3.0}


def test_the_trip_count_that_xla_found_is_preferred():
    known = 'body=%body, backend_config={"known_trip_count":{"n":"5"}}'
    assert hlo.parse(PROGRAM.replace('body=%body', known)).executions()['body'] == 5.0


def test_nested_loops_multiply_and_calls_count():
    text = PROGRAM.replace('%layer =', '%inner = (s32[]) while(%carry), condition=%condition, body=%other\n  %layer =')
    other = '%other (p: s32[]) -> s32[] {\n  ROOT %c = s32[] call(%p), to_apply=%called\n}\n\n'
    called = '%called (q: s32[]) -> s32[] {\n  ROOT %q = s32[] parameter(0)\n}\n\n'
    counts = hlo.parse(text.replace('%body (', called + other + '%body (', 1)).executions()
    assert counts == {'main': 1.0, 'body': 3.0, 'other': 9.0, 'called': 9.0}


def test_shapes_operands_and_memory_are_read():
    module = hlo.parse(PROGRAM)
    start = module.computations['main']['collective-permute-start.1']
    assert start.opcode == 'collective-permute-start' and start.operands == ('g',)
    assert [array.bytes for array in start.arrays] == [8192.0, 8192.0, 4.0]
    assert [array.in_memory for array in start.arrays] == [False, False, False]
    carry = module.computations['body']['carry']
    assert [array.sizes for array in carry.arrays] == [(), (3, 64, 64), (1, 16, 64)]
    assert module.computations['body']['stack'].arrays[0].in_memory


def test_a_text_without_a_program_is_an_error():
    with pytest.raises(ValueError, match='no ENTRY'):
        hlo.parse('HloModule nothing')
