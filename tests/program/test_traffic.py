"""Bytes of single operations, on modules as the compiler writes them."""

import pytest

from exajax.program import hlo, operations


def read(entry, computations="", mesh=None):
    """Reads a module of an entry computation's body and the computations that it calls."""
    text = f"HloModule m\n\n{computations}\n\nENTRY %main (a: f32[]) -> f32[] {{\n{entry}\n}}\n"
    return operations.read_program(hlo.parse(text), mesh or {"data": 1})


def moved_by(entry, computations=""):
    """Returns the bytes of the only operation of a module."""
    (op,) = read(entry, computations)
    return op.bytes


STACK, LAYER = 80 * 1024 * 4, 1024 * 4

FUSED_UPDATE = """
%fused (p0: f32[80,1024], p1: bf16[1024], p2: s32[]) -> f32[80,1024] {
  %p0 = f32[80,1024]{1,0} parameter(0)
  %p1 = bf16[1024]{0} parameter(1)
  %p2 = s32[] parameter(2)
  %zero = s32[] constant(0)
  %wide = f32[1024]{0} convert(%p1)
  %row = f32[1,1024]{1,0} bitcast(%wide)
  ROOT %dus = f32[80,1024]{1,0} dynamic-update-slice(%p0, %row, %p2, %zero)
}"""


def test_an_update_in_place_reads_what_is_new_and_writes_its_place():
    entry = """
  %stack = f32[80,1024]{1,0} parameter(0)
  %new = bf16[1024]{0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %f = f32[80,1024]{1,0} fusion(%stack, %new, %i), kind=kLoop, calls=%fused"""
    assert moved_by(entry, FUSED_UPDATE) == LAYER // 2 + LAYER + 4


def test_an_update_of_what_a_fusion_has_made_itself_writes_all_of_it():
    fused = FUSED_UPDATE.replace(
        "dynamic-update-slice(%p0,", "dynamic-update-slice(%made,"
    ).replace("  %zero", "  %made = f32[80,1024]{1,0} negate(%p0)\n  %zero")
    entry = """
  %stack = f32[80,1024]{1,0} parameter(0)
  %new = bf16[1024]{0} parameter(1)
  %i = s32[] parameter(2)
  ROOT %f = f32[80,1024]{1,0} fusion(%stack, %new, %i), kind=kLoop, calls=%fused"""
    assert moved_by(entry, fused) == 2 * STACK + LAYER // 2 + 4


@pytest.mark.parametrize("behind", ["convert", "negate"])
def test_a_slice_of_a_stack_is_read_alone_whatever_is_done_to_the_stack_before(behind):
    fused = f"""
%fused (p0: f32[80,1024], p1: s32[]) -> bf16[1024] {{
  %p0 = f32[80,1024]{{1,0}} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %other = bf16[80,1024]{{1,0}} {behind}(%p0)
  %slice = bf16[1,1024]{{1,0}} dynamic-slice(%other, %p1, %zero), dynamic_slice_sizes={{1,1024}}
  ROOT %row = bf16[1024]{{0}} bitcast(%slice)
}}"""
    entry = """
  %stack = f32[80,1024]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %f = bf16[1024]{0} fusion(%stack, %i), kind=kLoop, calls=%fused"""
    assert moved_by(entry, fused) == LAYER + LAYER // 2 + 4


def test_an_array_that_is_sliced_and_also_read_whole_is_read_whole():
    fused = """
%fused (p0: f32[80,1024], p1: s32[]) -> (f32[1,1024], f32[80,1024]) {
  %p0 = f32[80,1024]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,1024]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,1024}
  %all = f32[80,1024]{1,0} negate(%p0)
  ROOT %both = (f32[1,1024]{1,0}, f32[80,1024]{1,0}) tuple(%slice, %all)
}"""
    entry = """
  %stack = f32[80,1024]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %f = (f32[1,1024]{1,0}, f32[80,1024]{1,0}) fusion(%stack, %i), kind=kLoop, calls=%fused"""
    # Several results are all written.
    assert moved_by(entry, fused) == 2 * STACK + LAYER + 4


def test_a_reduction_reads_all_and_writes_the_sums():
    fused = """
%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}

%fused (p0: bf16[80,1024]) -> f32[80] {
  %p0 = bf16[80,1024]{1,0} parameter(0)
  %wide = f32[80,1024]{1,0} convert(%p0)
  %zero = f32[] constant(0)
  ROOT %sum = f32[80]{0} reduce(%wide, %zero), dimensions={1}, to_apply=%add
}"""
    entry = """
  %x = bf16[80,1024]{1,0} parameter(0)
  ROOT %f = f32[80]{0} fusion(%x), kind=kInput, calls=%fused"""
    assert moved_by(entry, fused) == STACK // 2 + 80 * 4


def test_a_look_up_reads_the_rows_that_are_looked_up():
    fused = """
%fused (p0: bf16[32000,1024], p1: s32[64,1]) -> bf16[64,1024] {
  %p0 = bf16[32000,1024]{1,0} parameter(0)
  %p1 = s32[64,1]{1,0} parameter(1)
  ROOT %g = bf16[64,1024]{1,0} gather(%p0, %p1), offset_dims={1}, slice_sizes={1,1024}
}"""
    entry = """
  %table = bf16[32000,1024]{1,0} parameter(0)
  %tokens = s32[64,1]{1,0} parameter(1)
  ROOT %f = bf16[64,1024]{1,0} fusion(%table, %tokens), kind=kLoop, calls=%fused"""
    assert moved_by(entry, fused) == 2 * 2 * 64 * 1024 + 64 * 4


SCATTER = """scatter(%table, %tokens, %rows), update_window_dims={1}, to_apply=%add"""
ADD = """
%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %s = f32[] add(%x, %y)
}"""


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_of_a_look_up_are_added_to_their_rows_alone(fused):
    arrays = """
  %table = f32[32000,1024]{1,0} parameter(0)
  %tokens = s32[64,1]{1,0} parameter(1)
  %rows = f32[64,1024]{1,0} parameter(2)"""
    scatter = f"\n  ROOT %s = f32[32000,1024]{{1,0}} {SCATTER}"
    head = "\n%fused (a: f32[], b: s32[], c: f32[]) -> f32[] {"
    computations = ADD + (f"{head}{arrays}{scatter}\n}}" if fused else "")
    call = "\n  ROOT %f = f32[32000,1024]{1,0} fusion(%table, %tokens, %rows), calls=%fused"
    rows = 64 * 1024 * 4
    # The new rows are read, and the table's are read and written; and places, in the fusion.
    places = 64 * 4 if fused else 0
    assert moved_by(arrays + (call if fused else scatter), computations) == 3 * rows + places


def test_a_copy_and_a_started_copy_move_the_same():
    array = "  %x = f32[80,1024]{1,0} parameter(0)\n"
    copy = "  ROOT %c = f32[80,1024]{0,1} copy(%x)"
    started = (
        "  %s = (f32[80,1024]{1,0}, f32[80,1024]{1,0}, u32[]) copy-start(%x)\n"
        "  ROOT %d = f32[80,1024]{1,0} copy-done(%s)"
    )
    assert moved_by(array + copy) == moved_by(array + started) == 2 * STACK


def test_an_array_that_is_used_twice_is_read_once():
    array = "  %x = f32[80,1024]{1,0} parameter(0)\n"
    square = "  ROOT %c = f32[80,1024]{1,0} multiply(%x, %x)"
    assert moved_by(array + square) == 2 * STACK


def test_the_scratch_of_a_call_is_not_counted():
    entry = """
  %x = f32[80,1024]{1,0} parameter(0)
  %c = (f32[80,1024]{1,0}, s8[4194304]{0}) custom-call(%x), custom_call_target="TopK"
  ROOT %r = f32[80,1024]{1,0} get-tuple-element(%c), index=0"""
    assert moved_by(entry) == 2 * STACK


TO_HOST = """
%update (p0: f32[80,1024], p1: f32[1,1024], p2: s32[], p3: s32[]) -> f32[80,1024] {
  %p0 = f32[80,1024]{1,0:S(5)} parameter(0)
  %p1 = f32[1,1024]{1,0} parameter(1)
  %p2 = s32[] parameter(2)
  %p3 = s32[] parameter(3)
  ROOT %dus = f32[80,1024]{1,0:S(5)} dynamic-update-slice(%p0, %p1, %p2, %p3)
}

%slice (p0: f32[80,1024], p1: s32[], p2: s32[]) -> f32[1,1024] {
  %p0 = f32[80,1024]{1,0:S(5)} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = s32[] parameter(2)
  ROOT %ds = f32[1,1024]{1,0} dynamic-slice(%p0, %p1, %p2), dynamic_slice_sizes={1,1024}
}"""


def test_what_goes_to_the_host_and_comes_back_crosses_its_bus_once():
    entry = """
  %stack = f32[80,1024]{1,0:S(5)} custom-call(), custom_call_target="AllocateBuffer"
  %row = f32[1,1024]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %put = ((f32[80,1024]{1,0:S(5)}, f32[1,1024]{1,0}, s32[], s32[]), f32[80,1024]{1,0:S(5)}, u32[]) \
fusion-start(%stack, %row, %i, %i), kind=kCustom, calls=%update
  %kept = f32[80,1024]{1,0:S(5)} fusion-done(%put)
  %get = ((f32[80,1024]{1,0:S(5)}, s32[], s32[]), f32[1,1024]{1,0}, u32[]) \
fusion-start(%kept, %i, %i), kind=kCustom, calls=%slice
  %back = f32[1,1024]{1,0} fusion-done(%get)
  ROOT %again = f32[80,1024]{1,0} copy(%kept)"""
    program = read(entry, TO_HOST)
    assert [(op.kind, op.name, op.bytes, op.start) for op in program] == [
        ("host-copy-start", "put", LAYER, ""),
        ("host-copy-done", "kept", 0, "put"),
        ("host-copy-start", "get", LAYER, ""),
        ("host-copy-done", "back", 0, "get"),
        ("host-copy", "again", STACK, ""),
    ]


def test_work_that_is_started_is_counted_where_it_is_started():
    computations = """
%gemm (p0: f32[64,32], p1: f32[32,16]) -> f32[64,16] {
  %p0 = f32[64,32]{1,0} parameter(0)
  %p1 = f32[32,16]{1,0} parameter(1)
  ROOT %dot = f32[64,16]{1,0} dot(%p0, %p1), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%wrapped (q0: f32[64,32], q1: f32[32,16]) -> f32[64,16] {
  %q0 = f32[64,32]{1,0} parameter(0)
  %q1 = f32[32,16]{1,0} parameter(1)
  ROOT %f = f32[64,16]{1,0} fusion(%q0, %q1), kind=kCustom, calls=%gemm
}"""
    shape = "((f32[64,32]{1,0}, f32[32,16]{1,0}), f32[64,16]{1,0}, u32[])"
    for start, calls in (("fusion-start", "gemm"), ("async-start", "wrapped")):
        entry = f"""
  %x = f32[64,32]{{1,0}} parameter(0)
  %y = f32[32,16]{{1,0}} parameter(1)
  %s = {shape} {start}(%x, %y), kind=kCustom, calls=%{calls}
  ROOT %d = f32[64,16]{{1,0}} {start.replace("start", "done")}(%s)"""
        (op,) = read(entry, computations)
        assert (op.kind, op.flops) == ("matmul", 2 * 64 * 32 * 16)
        assert op.bytes == 4 * (64 * 32 + 32 * 16 + 64 * 16)


def test_what_the_reader_does_not_know_is_listed_and_counted_by_its_bytes():
    entry = """
  %x = f32[80,1024]{1,0} parameter(0)
  ROOT %c = f32[80,1024]{1,0} frobnicate(%x), of={1}"""
    (op,) = read(entry)
    assert (op.kind, op.bytes) == ("unpriced", 2 * STACK)
    call = entry.replace("frobnicate(%x)", 'custom-call(%x), custom_call_target="mine"')
    assert [(op.kind, op.bytes) for op in read(call)] == [("unpriced", 2 * STACK)]


def test_what_only_tells_the_compiler_something_costs_nothing():
    entry = """
  %x = f32[80,1024]{1,0} parameter(0)
  ROOT %c = f32[80,1024]{1,0} custom-call(%x), custom_call_target="Sharding", metadata={}"""
    assert read(entry) == ()


@pytest.mark.parametrize(
    ("entry", "kind", "sent", "axes"),
    [
        (
            "(f32[8]{0}, f32[8]{0}) all-to-all(%x, %x), channel_id=1, replica_groups={{0,1},{2,3}}",
            "all-to-all",
            2 * 32,
            "model",
        ),
        (
            "f32[8]{0} collective-broadcast(%x), channel_id=1, replica_groups={{0,2},{1,3}}",
            "collective-broadcast",
            32,
            "data",
        ),
        (
            "f32[8]{0} ragged-all-to-all(%x, %room, %n, %n, %n, %n), channel_id=1, "
            "replica_groups={{0,1,2,3}}",
            "all-to-all",
            32,
            "data+model",
        ),
        (
            "f32[8]{0} all-reduce(%x), channel_id=1, replica_groups=[2,2]<=[2,2]T(1,0), "
            "use_global_device_ids=true, to_apply=%add",
            "all-reduce",
            32,
            "data",
        ),
        (
            "f32[8]{0} collective-permute(%x), channel_id=1, "
            "source_target_pairs={{0,0},{1,1},{2,3},{3,2}}",
            "collective-permute",
            32,
            "model",
        ),
        (
            "(f32[8]{0}, f32[16]{0}) all-gather-start(%x), channel_id=1, dimensions={0}, "
            "replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_1'}",
            "all-gather",
            64,
            "model",
        ),
    ],
)
def test_collectives_of_every_form_are_read(entry, kind, sent, axes):
    arrays = """
  %x = f32[8]{0} parameter(0)
  %room = f32[64]{0} parameter(1)
  %n = s32[4]{0} parameter(2)
"""
    (op,) = read(f"{arrays}  ROOT %c = {entry}", ADD, {"data": 2, "model": 2})
    assert op.collective
    assert (op.collective.kind, op.collective.bytes, op.collective.axes) == (kind, sent, axes)
