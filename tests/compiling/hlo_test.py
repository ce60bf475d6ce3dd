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


UNROLLED = (
    PROGRAM.replace('constant(3)', 'constant(8)')
    .replace('tuple(%i, %stack', 'tuple(%second, %stack')
    .replace(
        '  ROOT %next',
        '  %one = s32[] constant(1)\n  %first = s32[] add(%i, %one)\n  %second = s32[] add(%one, %first)\n  ROOT %next',
    )
)


def test_a_loop_whose_body_has_two_turns_runs_half_as_often():
    assert hlo.parse(UNROLLED).executions() == {'main': 1.0, 'body': 4.0}
    assert hlo.parse(UNROLLED.replace('constant(8)', 'constant(7)')).executions()['body'] == 4.0


def test_a_counter_may_start_above_zero():
    start = '%two = s32[] constant(2)\n  %begin = s32[] copy(%two)\n  '
    begin = start + '%given = (s32[], f32[3,64,64]) tuple(%begin, %g)\n  '
    text = UNROLLED.replace('%loop =', begin + '%loop =').replace('while(%state)', 'while(%given)')
    assert hlo.parse(text).executions()['body'] == 3.0


def test_arrays_take_whole_tiles():
    module = hlo.parse(PROGRAM)
    (array,) = module.computations['fused_product']['param_0.2'].arrays
    assert (array.text, array.sizes, array.padded) == ('bf16[4,8,16,1]', (4, 8, 16, 1), (4, 8, 128, 1))
    assert array.padded_bytes == 8 * array.bytes == 4 * 8 * 128 * 2
    carry = module.computations['body']['carry']
    assert carry.arrays_of_elements == (1, 1, 1) and module.computations['body']['shard'].index == 2


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
