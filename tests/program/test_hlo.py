import pytest

from exajax.program import hlo

TEXT = """HloModule jit_f, is_scheduled=true, entry_computation_layout={(f32[8,4]{1,0})->f32[8,4]{1,0}}

%fused (param_0: f32[8,4]) -> f32[8,4] {
  %param_0 = f32[8,4]{1,0} parameter(0)
  ROOT %neg.1 = f32[8,4]{1,0} negate(%param_0)
}

%body (arg: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %arg = (s32[], /*index=1*/f32[8,4]{1,0:T(8,128)}) parameter(0)
  %x = f32[8,4]{1,0} get-tuple-element(%arg), index=1
  ROOT %t = (s32[], f32[8,4]{1,0}) tuple(%arg, %x)
}

ENTRY %main.5_spmd (a: f32[8,4]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0), sharding={devices=[2,1]<=[2]}
  %loop = (s32[], f32[8,4]{1,0}) while(%a), condition=%cond, body=%body, metadata={op_name="jit(f)/layers/while" source_file="x"}, backend_config={"known_trip_count":{"n":"12"},"nested":{"a":[1,2]}}
  ROOT %fusion.2 = f32[8,4]{1,0} fusion(%a), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/mlp/neg"}
}
"""


def test_a_module_is_read_with_its_computations_and_schedule():
    module = hlo.parse(TEXT)
    assert module.entry == "main.5_spmd"
    assert set(module.computations) == {"fused", "body", "main.5_spmd"}
    entry = module.computations[module.entry]
    assert [i.opcode for i in entry.instructions] == ["parameter", "while", "fusion"]
    assert entry.root.name == "fusion.2"
    assert entry.root.called("calls") == "fused"
    assert entry.root.op_name == "jit(f)/mlp/neg"
    assert [user.name for user in entry.users["a"]] == ["loop", "fusion.2"]


def test_backend_settings_are_read_from_json():
    loop = hlo.parse(TEXT).computations["main.5_spmd"].by_name["loop"]
    assert loop.backend_config["known_trip_count"]["n"] == "12"
    assert loop.called("body") == "body"


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("f32[8,4]{1,0}", [128]),
        ("bf16[3]{0}", [6]),
        ("pred[10]{0}", [10]),
        ("s4[10]{0}", [5]),
        ("f8e4m3fn[16]{0}", [16]),
        ("c64[2]{0}", [16]),
        ("f32[]", [4]),
        ("token[]", [0]),
        ("((f32[2]{0}, bf16[2]{0}), s32[<=4]{0:T(256)})", [8, 4, 16]),
    ],
)
def test_shapes_have_the_size_they_take(text, sizes):
    assert [shape.bytes for shape in hlo.shapes(text)] == sizes


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="ENTRY"):
        hlo.parse("module @jit_f attributes {}")
