"""Rows of published measurements become recipes, or say why not."""

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exajax.errors import InputError
from exajax.published import read_table
from exajax.published_columns import InexpressibleError
from exajax.published_recipe import layout_of

ROW = {
    "source": "a paper",
    "row_id": "row-1",
    "model": "llama-7b",
    "layers": "32",
    "hidden": "4096",
    "heads": "32",
    "kv_heads": "32",
    "ffn": "11008",
    "seq": "4096",
    "vocab": "32000",
    "num_gpus": "16",
    "dp": "2",
    "fsdp": "8",
    "tp": "1",
    "pp": "1",
    "cp": "1",
    "vpp_interleave": "1",
    "micro_batch": "2",
    "global_batch": "32",
    "derived_iter_s": "0.74",
    "precision": "bf16",
    "recompute_policy": "save_qkv",
    "zero": "hsdp",
    "dtype": "bf16",
    "attention": "flash",
    "mlp": "swiglu",
    "cluster": "dgx-h100",
}


def table(path, *rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ROW)
        writer.writeheader()
        writer.writerows(ROW | row for row in rows)
    return path


def test_a_row_is_a_recipe(tmp_path):
    [row] = read_table(table(tmp_path / "t.csv", {}))
    recipe = row.recipe
    assert row.reason == ""
    assert row.measured_s == 0.74
    assert (recipe.model.family, recipe.model.layers, recipe.model.ffn) == ("llama", 32, 11008)
    assert (recipe.mesh.data, recipe.mesh.fsdp, recipe.zero) == (2, 8, 0)
    assert (recipe.remat, recipe.micro_batch, recipe.micro_batches) == ("save-qkv", 2, 1)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"recompute_policy": ""}, "its recompute policy is unknown"),
        ({"recompute_policy": "some"}, "its recompute policy is some"),
        ({"vocab": ""}, "its vocab is unknown"),
        ({"dtype": "int4"}, "its precision is int4"),
        ({"mlp": ""}, "its feed-forward is unknown"),
        ({"tp": "3"}, "is not its 16 devices"),
        ({"global_batch": "33"}, "--global-batch"),
        ({"derived_iter_s": ""}, "it has no step time"),
    ],
)
def test_a_row_that_cannot_be_expressed_says_why(tmp_path, changes, reason):
    [row] = read_table(table(tmp_path / "t.csv", changes))
    assert reason in row.reason


def test_no_row_is_dropped(tmp_path):
    rows = read_table(table(tmp_path / "t.csv", {}, {"vocab": ""}, {"row_id": "row-3"}))
    assert [row.row_id for row in rows] == ["row-1", "row-1", "row-3"]


def test_what_a_table_leaves_out_can_be_amended(tmp_path):
    path = table(tmp_path / "t.csv", {"recompute_policy": ""})
    [row] = read_table(path, {"row-1": {"recompute_policy": "full"}})
    assert row.recipe.remat == "full"


def test_data_and_fsdp_of_all_devices_are_one_axis_named_twice():
    mesh, zero = layout_of(ROW | {"dp": "16", "fsdp": "16"})
    assert (mesh.data, mesh.fsdp, zero) == (1, 16, 0)


@given(st.lists(st.sampled_from([1, 2, 4]), min_size=5, max_size=5), st.integers(0, 3))
def test_axes_that_multiply_to_the_devices_are_the_mesh(sizes, zero):
    names = ("dp", "fsdp", "tp", "pp", "cp")
    devices = 1
    for size in sizes:
        devices *= size
    columns = {name: str(size) for name, size in zip(names, sizes, strict=True)}
    row = columns | {"num_gpus": str(devices), "zero": str(zero)}
    mesh, level = layout_of(row)
    assert mesh.devices == devices
    assert (mesh.model, mesh.pipe, mesh.context) == tuple(sizes[2:])
    assert level == (zero if mesh.fsdp == 1 else 0)
    with pytest.raises(InexpressibleError, match=r"is not its \d+ devices"):
        layout_of(row | {"num_gpus": str(devices + 1)})


def test_another_file_is_refused_by_what_it_lacks(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="no column 'source'"):
        read_table(path)
    with pytest.raises(InputError, match="cannot read"):
        read_table(tmp_path / "none.csv")
