"""How often loops run, where the compiler says it and where it has lost count."""

import jax
import jax.numpy as jnp
import pytest

from exajax.program import hlo, operations

PEELED = """
HloModule step, is_scheduled=true

%fused_compare (i: s32[]) -> pred[] {
  %i = s32[] parameter(0)
  %limit = s32[] constant(LIMIT)
  ROOT %below = pred[] compare(%i, %limit), direction=DIRECTION
}

%fused_add (i.1: s32[]) -> s32[] {
  %i.1 = s32[] parameter(0)
  %one = s32[] constant(STEP)
  ROOT %next = s32[] add(%i.1, %one)
}

%condition (state: (s32[], f32[64,64])) -> pred[] {
  %state = (s32[], f32[64,64]{1,0}) parameter(0)
  %counter = s32[] get-tuple-element(%state), index=0
  ROOT %goes_on = pred[] fusion(%counter), kind=kLoop, calls=%fused_compare
}

%body (state.1: (s32[], f32[64,64])) -> (s32[], f32[64,64]) {
  %state.1 = (s32[], f32[64,64]{1,0}) parameter(0)
  %counter.1 = s32[] get-tuple-element(%state.1), index=0
  %kept = s32[] copy(%counter.1)
  %x = f32[64,64]{1,0} get-tuple-element(%state.1), index=1
  %y = f32[64,64]{1,0} dot(%x, %x), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %following = s32[] fusion(%kept), kind=kLoop, calls=%fused_add
  ROOT %made = (s32[], f32[64,64]{1,0}) tuple(%following, %y)
}

ENTRY %main (x.1: f32[64,64], n: s32[]) -> (s32[], f32[64,64]) {
  %x.1 = f32[64,64]{1,0} parameter(0)
  %n = s32[] parameter(1)
  %first = s32[] constant(START)
  %begin = s32[] copy(FIRST)
  %start = (s32[], f32[64,64]{1,0}) tuple(%begin, %x.1)
  ROOT %loop = (s32[], f32[64,64]{1,0}) while(%start), condition=%condition, body=%body, \
backend_config={"known_induction_variable":{"tuple_index":"0"}}
}
"""
"""A loop whose first trip was taken out of it: its counter does not begin at 0, and its length is
written down nowhere. As XLA's GPU compiler leaves the one over micro-batches."""


def program(start=1, limit=4, step=1, direction="LT", first="%first"):
    text = PEELED
    values = {"START": start, "LIMIT": limit, "STEP": step, "DIRECTION": direction, "FIRST": first}
    for name, value in values.items():
        text = text.replace(name, str(value))
    return operations.read_program(hlo.parse(text), {"data": 1})


@pytest.mark.parametrize(
    ("given", "trips"),
    [
        ({}, 3),
        ({"start": 0, "limit": 7, "step": 2}, 4),
        ({"start": 5, "limit": 0, "step": -1, "direction": "GT"}, 5),
        ({"limit": 1}, 0),
        ({"limit": 4, "direction": "LE"}, 4),
    ],
)
def test_a_loop_without_a_known_length_runs_as_often_as_its_counter_says(given, trips):
    read = program(**given)
    assert operations.unknown_loops(read) == []
    assert operations.total_flops(read) == trips * 2 * 64**3


def test_a_loop_whose_counter_begins_with_an_argument_is_of_unknown_length():
    read = program(first="%n")
    assert operations.unknown_loops(read) == ["loop"]
    assert operations.total_flops(read) == 2 * 64**3


def test_a_loop_that_never_ends_is_of_unknown_length():
    assert operations.unknown_loops(program(step=0)) == ["loop"]


def test_a_loop_that_goes_by_its_data_is_of_unknown_length():
    def until_small(x):
        return jax.lax.while_loop(lambda x: x.sum() > 1, lambda x: x @ x, x)

    compiled = jax.jit(until_small).lower(jax.ShapeDtypeStruct((64, 64), jnp.float32)).compile()
    read = operations.read_program(hlo.parse(compiled.as_text()), {"data": 1})
    assert len(operations.unknown_loops(read)) == 1
