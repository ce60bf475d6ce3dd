"""Which buffers a program holds when it needs the most memory, by hand."""

from t5flan.compiling import hlo
from t5flan.compiling.buffers import Buffers, largest_buffers

TILED = '{2,1,0:T(8,128)}'
STATE = f'(s32[], f32[4,8,100]{TILED})'
PROGRAM = f"""HloModule step, is_scheduled=true

%fused (p0: f32[4,8,100], p1: f32[8,100], p2: s32[]) -> f32[4,8,100] {{
  %p1 = f32[8,100]{{1,0:T(8,128)}} parameter(1)
  %p0 = f32[4,8,100]{TILED} parameter(0)
  %p2 = s32[] parameter(2)
  %row = f32[1,8,100]{TILED} bitcast(%p1)
  ROOT %updated = f32[4,8,100]{TILED} dynamic-update-slice(%p0, %row, %p2)
}}

%body (p: {STATE}) -> {STATE} {{
  %p = {STATE} parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %saved = f32[4,8,100]{TILED} get-tuple-element(%p), index=1
  %wide = f32[8,1000]{{1,0:T(8,128)}} custom-call(%i), custom_call_target="f", metadata={{op_name="while/body/tanh"}}
  %on_chip = f32[8,1000]{{1,0:T(8,128)S(1)}} copy(%wide)
  %narrow = f32[8,100]{{1,0:T(8,128)}} custom-call(%on_chip), custom_call_target="g"
  %next = f32[4,8,100]{TILED} fusion(%saved, %narrow, %i), kind=kLoop, calls=%fused
  %one = s32[] constant(1)
  %more = s32[] add(%i, %one)
  ROOT %out = {STATE} tuple(%more, %next)
}}

%condition (q: {STATE}) -> pred[] {{
  %q = {STATE} parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %bound = s32[] constant(4)
  ROOT %less = pred[] compare(%j, %bound), direction=LT
}}

ENTRY %main (a: f32[8,100]) -> f32[8,100] {{
  %a = f32[8,100]{{1,0:T(8,128)}} parameter(0)
  %early = f32[16,128]{{1,0:T(8,128)}} negate(%a), metadata={{op_name="early"}}
  %zeros = f32[4,8,100]{TILED} broadcast(%early), metadata={{op_name="zeros"}}
  %zero = s32[] constant(0)
  %state = {STATE} tuple(%zero, %zeros)
  %loop = {STATE} while(%state), condition=%condition, body=%body
  %got = f32[4,8,100]{TILED} get-tuple-element(%loop), index=1
  ROOT %sum = f32[8,100]{{1,0:T(8,128)}} reduce(%got), metadata={{op_name="sum"}}
}}
"""


def test_the_peak_is_inside_the_loop_and_counts_padding():
    """The saved rows are updated in place; what is used up before, in on-chip memory or an argument does not count."""
    assert largest_buffers(hlo.parse(PROGRAM)) == [
        Buffers(8 * 1024 * 4, 1, 'f32[8,1000]', 'while/body/tanh'),
        Buffers(4 * 8 * 128 * 4, 1, 'f32[4,8,100]', 'zeros'),
    ]
    assert len(largest_buffers(hlo.parse(PROGRAM), most=1)) == 1


def test_equal_buffers_are_one_row():
    name, wide = '%wide =', next(line for line in PROGRAM.splitlines() if '%wide =' in line)
    twice = PROGRAM.replace(wide, wide + '\n' + wide.replace(name, '%other =')).replace('(%wide)', '(%wide, %other)')
    assert largest_buffers(hlo.parse(twice))[0] == Buffers(2 * 8 * 1024 * 4, 2, 'f32[8,1000]', 'while/body/tanh')
