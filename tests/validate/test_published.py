"""Rows of published measurements become recipes, or say why not."""

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exajax.errors import InputError
from exajax.machine import software_of_rows
from exajax.machine.published_columns import InexpressibleError
from exajax.validate import memory, step_times
from exajax.validate.row_recipe import layout_of
from exajax.validate.tables import read_table

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
    "ep": "1",
    "params_B": "",
    "measured_metric": "",
    "measured_value": "",
    "unit": "",
    "flops_convention": "",
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
        ({"global_batch": "33"}, "global_batch"),
        ({"derived_iter_s": ""}, "it has no step time"),
        ({"ep": "2"}, "it has ep 2, and its experts are unknown"),
        ({"ep": "3"}, "is not its 16 devices, with or without ep 3"),
        ({"params_B": "47"}, "its dimensions make 6.74 G parameters, and it says 47 G"),
        ({"model": "DeepSeekV3"}, "its attention is latent"),
        ({"model": "qwen3-30b-a3b"}, "it is a mixture, and its experts are unknown"),
        ({"model": "mixtral-8x7b", "hidden": "8192"}, "it is a mixture"),
    ],
)
def test_a_row_that_cannot_be_expressed_says_why(tmp_path, changes, reason):
    [row] = read_table(table(tmp_path / "t.csv", changes))
    assert reason in row.reason


@pytest.mark.parametrize(
    ("metric", "value", "unit", "measured_s"),
    [
        ("iteration_time", "740", "ms", 0.74),
        ("step_time", "0.74", "s", 0.74),
        ("time_per_step", "0.74", "s/step", 0.74),
        # A step has 32 sequences of 4,096 tokens, on 16 devices.
        ("tokens_per_s", "65536", "tokens/s", 2.0),
        ("tokens_per_s_per_gpu", "4096", "tokens/s/GPU", 2.0),
        ("throughput", "4096", "tokens/s/tile", 2.0),
        ("tokens_per_s_per_gpu", "4096", "tokens/s", 2.0),
        ("samples_per_s", "16", "samples/s", 2.0),
        ("sequences_per_s", "16", "sequences/s", 2.0),
        ("sequences_per_s_per_device", "1", "", 2.0),
        ("steps_per_s", "0.5", "steps/s", 2.0),
    ],
)
def test_a_step_follows_from_a_time_or_a_rate(tmp_path, metric, value, unit, measured_s):
    measured = {"measured_metric": metric, "measured_value": value, "unit": unit}
    [row] = read_table(table(tmp_path / "t.csv", measured | {"derived_iter_s": ""}))
    assert row.reason == ""
    assert row.measured_s == pytest.approx(measured_s)
    [row] = read_table(table(tmp_path / "t.csv", measured))
    assert row.measured_s == 0.74


@pytest.mark.parametrize(
    ("metric", "unit", "reason"),
    [
        ("layer_forward_time", "ms", "it measures layer_forward_time in ms"),
        ("startup_init_time", "s", "it measures startup_init_time in s"),
        ("iteration_time", "fortnights", "it measures iteration_time in fortnights"),
        ("tokens_per_s", "tokens/s", "it measures tokens_per_s, and its global_batch is unknown"),
    ],
)
def test_what_is_no_step_time_says_what_it_is(tmp_path, metric, unit, reason):
    measured = {"measured_metric": metric, "measured_value": "50", "unit": unit}
    unknown = {"derived_iter_s": "", "global_batch": ""}
    [row] = read_table(table(tmp_path / "t.csv", measured | unknown))
    assert row.reason == f"it has no step time: {reason}"
    assert row.measured_s is None


PER_TOKEN = 6 * 6_607_077_376
"""FLOPs of a token of `ROW` in its matrices: 32 x (4 x 4,096^2 + 3 x 4,096 x 11,008) parameters in
blocks, and 4,096 x 32,000 in the logits."""

SCORES = 12 * 32 * 4096 * 4096
"""Those of its attention, if none is hidden."""

AGAIN = 2 * 32 * (4 * 4096**2 + 3 * 4096 * 11_008) + SCORES / 3
"""Those of its blocks' forward pass, which `full` recomputes."""


@pytest.mark.parametrize(
    ("changes", "flops_a_token", "says"),
    [
        ({"flops_convention": "palm"}, PER_TOKEN + SCORES, "all scores, nothing recomputed"),
        ({"flops_convention": "causal"}, PER_TOKEN + SCORES / 2, "scores that the mask shows"),
        ({"source": "MaxText at work"}, PER_TOKEN + SCORES, "as its source's own times show"),
        (
            {"flops_convention": "hardware", "recompute_policy": "full"},
            PER_TOKEN + SCORES + AGAIN,
            "and what is recomputed",
        ),
        (
            {"flops_convention": "hardware", "recompute_policy": "selective"},
            PER_TOKEN + SCORES * 4 / 3,
            "and what is recomputed",
        ),
    ],
)
@pytest.mark.parametrize(
    ("metric", "value", "unit", "flops_per_s"),
    [
        ("model_tflops_per_gpu", "400", "TFLOP/s/chip", 400e12),
        ("tflops_per_tile", "400", "TFLOP/s", 400e12),
        ("mfu", "40", "%", 0.4 * 989e12),
        ("mfu", "0.4", "", 0.4 * 989e12),
        ("pflops_per_s", "6.4", "PFLOP/s/GPU", 6.4e15),
    ],
)
def test_a_step_follows_from_the_flops_that_its_source_counts(
    tmp_path, metric, value, unit, flops_per_s, changes, flops_a_token, says
):
    measured = {"measured_metric": metric, "measured_value": value, "unit": unit}
    [row] = read_table(table(tmp_path / "t.csv", measured | {"derived_iter_s": ""} | changes))
    tokens, devices = 32 * 4096, 16
    assert row.reason == ""
    assert row.measured_s == pytest.approx(flops_a_token * tokens / devices / flops_per_s)
    assert says in row.assumed[-1]


def test_rates_of_flops_give_the_times_that_a_paper_derives(tmp_path):
    """Equation 3 of arXiv:2104.04473 was evaluated for the table that ships, row by row."""
    path = software_of_rows.TABLES / "megatron_sc21.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with (tmp_path / "t.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"derived_iter_s": ""} for row in rows)
    pairs = zip(read_table(tmp_path / "t.csv"), rows, strict=True)
    times = [(row.measured_s, float(given["derived_iter_s"])) for row, given in pairs if row.recipe]
    assert len(times) == 22
    assert all(found == pytest.approx(given, rel=1e-4) for found, given in times)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, "which FLOPs count is unknown; give a column flops_convention with causal, palm"),
        ({"flops_convention": "palm", "measured_value": "140"}, "mfu 140 in % is no share"),
        ({"flops_convention": "palm", "unit": "dB"}, "mfu 40 in db is no share of a peak"),
        ({"flops_convention": "palm", "measured_metric": "tflops", "unit": ""}, "of a device or"),
        ({"measured_metric": "hfu"}, "which of its FLOPs count as recomputed is unknown"),
    ],
)
def test_a_rate_of_flops_that_says_too_little_is_no_step_time(tmp_path, changes, reason):
    measured = {"measured_metric": "mfu", "measured_value": "40", "unit": "%"}
    [row] = read_table(table(tmp_path / "t.csv", measured | {"derived_iter_s": ""} | changes))
    assert reason in row.reason
    assert row.measured_s is None


@pytest.mark.parametrize("value", ["-5", "fast", "nan", "0"])
def test_a_rate_that_is_nonsense_is_named(tmp_path, value):
    measured = {"measured_metric": "tokens_per_s", "measured_value": value, "unit": "tokens/s"}
    with pytest.raises(InputError, match=f"row row-1, column measured_value: '{value}'"):
        read_table(table(tmp_path / "t.csv", measured))


BARE = dict.fromkeys(("layers", "hidden", "heads", "kv_heads", "ffn", "vocab", "mlp"), "")


def test_a_model_that_is_known_by_name_brings_what_a_row_leaves_out(tmp_path):
    changes = {"model": "Mixtral 8x7B", "dp": "16", "fsdp": "1", "ep": "8", "zero": "1"}
    [row] = read_table(table(tmp_path / "t.csv", BARE | changes))
    model, mesh = row.recipe.model, row.recipe.mesh
    assert (model.family, model.experts, model.top_k) == ("mixtral", 8, 2)
    assert (model.width, model.kv_heads, model.vocab) == (4096, 8, 32_000)
    assert (mesh.data, mesh.expert) == (2, 8)


def test_fewer_layers_are_the_same_model_and_another_width_is_not(tmp_path):
    named = BARE | {"model": "llama3.1-70b"}
    fewer, narrower = read_table(
        table(tmp_path / "t.csv", named | {"layers": "12"}, named | {"hidden": "4096"})
    )
    assert (fewer.recipe.model.layers, fewer.recipe.model.width) == (12, 8192)
    assert narrower.reason == "its heads is unknown"


def test_a_name_of_one_source_means_nothing_in_another(tmp_path):
    changes = BARE | {"model": "gpt-200B", "seq": "2048", "mlp": "gelu"}
    there, elsewhere = read_table(
        table(tmp_path / "t.csv", changes | {"source": "BLOOM prequel"}, changes)
    )
    assert there.recipe.model.heads == 96
    assert elsewhere.reason == "its heads is unknown"


def test_experts_are_divided_within_data_or_beside_it():
    sizes = {"num_gpus": "16", "fsdp": "1", "tp": "2", "pp": "1", "cp": "1", "ep": "4"}
    within, _ = layout_of(sizes | {"dp": "8"})
    beside, _ = layout_of(sizes | {"dp": "2"})
    assert (within.data, within.expert) == (beside.data, beside.expert) == (2, 4)


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
    with pytest.raises(InputError, match="cannot be read"):
        read_table(tmp_path / "none.csv")


def written(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("mark", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_a_table_is_read_as_spreadsheets_write_it(tmp_path, mark, encoding, newline):
    lines = [mark.join(ROW), mark.join(ROW.values())]
    text = newline.join(lines) + newline
    [row] = read_table(written(tmp_path / "t.csv", text, encoding))
    assert (row.row_id, row.measured_s, row.reason) == ("row-1", 0.74, "")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"layers": "many"}, "row row-1, column layers: 'many' is no number"),
        ({"layers": "1000000"}, "row row-1, column layers: '1000000' is no number above 0 and up"),
        ({"layers": "nan"}, "column layers: 'nan'"),
        ({"layers": "1_0"}, "column layers: '1_0'"),
        ({"hidden": "-8"}, "column hidden: '-8'"),
        ({"hidden": "1e400"}, "column hidden: '1e400'"),
        ({"vocab": "9" * 4400}, "column vocab: "),
        ({"params_B": "big"}, "column params_B: 'big'"),
        ({"num_gpus": "1e30"}, "column num_gpus: '1e30'"),
        ({"dp": "0"}, "column dp: '0'"),
        ({"global_batch": "1e15"}, "column global_batch: '1e15'"),
        ({"derived_iter_s": "0,74"}, "column derived_iter_s: '0,74'"),
        ({"derived_iter_s": "1e-320"}, "column derived_iter_s: '1e-320'"),
        ({"flops_convention": "pal"}, "column flops_convention: is 'pal'; did you mean 'palm'?"),
        ({"software": "nemo-2042"}, "column software: is 'nemo-2042'; did you mean 'nemo-2024'?"),
    ],
)
def test_a_bad_cell_is_named_by_row_and_column(tmp_path, changes, says):
    names = [*ROW, "software"]
    cells = ROW | {"software": ""} | changes
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerow(cells)
    with pytest.raises(InputError) as caught:
        read_table(path)
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"table: {path}: row row-1, ")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "has no column 'source'"),
        (b"\xff\xfes\x00", "cannot be read"),
        (",".join([*ROW, "source"]).encode(), "has two columns 'source'"),
        ((",".join(ROW) + "\na,b\n").encode(), "row b has too few or too many cells"),
        ((",".join(ROW) + "\n" + "x" * 200_000).encode(), "cannot be read: field larger"),
    ],
)
def test_what_is_no_table_says_why(tmp_path, content, says):
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_table(path)
    assert says in str(caught.value)


def test_columns_that_a_row_leaves_empty_are_named(tmp_path):
    empty = dict.fromkeys(("tp", "pp", "cp", "ep", "kv_heads", "mlp", "zero", "attention"), "")
    full, row, named = read_table(
        table(
            tmp_path / "t.csv",
            {"source": "Korthikanti et al."},
            empty | {"params_B": "6.74"},
            BARE | {"model": "llama3-8b"},
        )
    )
    assert full.assumed == ("sequence_parallel = yes",)
    for text in ("tp = 1", "pp = 1", "kv_heads = heads", "zero = 0", "mlp by params_B"):
        assert text in row.assumed
    assert "dp = 1" not in row.assumed
    assert "kv_heads = 8 (of llama3-8b)" in named.assumed
    assert step_times.check(row).to_json()["assumed"] == list(row.assumed)


def test_heads_that_do_not_divide_are_a_reason(tmp_path):
    [row] = read_table(table(tmp_path / "t.csv", {"kv_heads": "5"}))
    assert "its kv_heads 5 not its heads" in row.reason


def software(tmp_path, **changes):
    columns = ROW | {"software": "", "chip": "h100"} | changes
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerow(columns)
    return step_times.check(read_table(path)[0]).to_json()


@pytest.mark.parametrize(
    ("source", "column", "profile", "assumed"),
    [
        ("Korthikanti et al. 2022", "", "megatron-2021", False),
        ("MaxText, a user's run", "", "as-measured", True),
        ("Megatron-LM (a user's run)", "", "nemo-2024", True),
        ("anything", "", "nemo-2024", True),
        ("anything", "torchtitan-2024", "torchtitan-2024", False),
        ("Korthikanti et al. 2022", "as-measured", "as-measured", False),
    ],
)
def test_software_is_the_column_or_by_the_source_or_a_default_that_is_named(
    tmp_path, source, column, profile, assumed
):
    row = software(tmp_path, source=source, software=column)
    assert row["software"] == profile
    named = [text for text in row["assumed"] if text.startswith(f"software = {profile} (default")]
    assert bool(named) == assumed


def test_another_software_has_another_time(tmp_path):
    steps = {
        name: software(tmp_path, software=name)["predicted_s"]
        for name in ("as-measured", "nemo-2024", "torchtitan-2024")
    }
    assert len(set(steps.values())) == 3


@pytest.mark.parametrize(
    ("changes", "unvalidated"),
    [
        ({"source": "MaxText"}, []),
        ({"source": "MaxText", "chip": "gh200", "cluster": "alps"}, ["chip gh200"]),
        ({"source": "x"}, ["software nemo-2024"]),
    ],
)
def test_what_no_measurement_of_the_project_is_of_is_unvalidated(tmp_path, changes, unvalidated):
    assert software(tmp_path, **changes)["unvalidated"] == unvalidated


def test_memory_of_an_unknown_source_is_not_that_of_our_own_program(tmp_path):
    changes = {"source": "Megatron-LM (a user's run)", "model": "llama3.1-8b", "kv_heads": "8"}
    changes |= {"ffn": "14336", "vocab": "131072", "num_gpus": "256", "dp": "256", "fsdp": "1"}
    changes |= {"zero": "1", "global_batch": "512", "derived_iter_s": "", "cluster": "alps"}
    changes |= {"measured_metric": "peak_memory", "measured_value": "87", "unit": "GB"}
    [row] = read_table(table(tmp_path / "t.csv", changes | {"recompute_policy": "none"}))
    found = memory.check(row).to_json()
    assert abs(found["error"]) < 0.15
    assert found["software"] == "nemo-2024"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"fsdp": "1", "dp": "16", "zero": "4"}, "zero = 0 (its '4' is none of 0, 1, 2, 3, hsdp)"),
        ({"attention": "sdpa"}, "attention = fused where the chip has it (its 'sdpa' is none of"),
        ({"sequence_parallel": "maybe"}, "sequence_parallel = yes (its 'maybe' is none of yes, no"),
    ],
)
def test_a_word_that_a_column_does_not_know_is_named_with_what_stands_for_it(
    tmp_path, changes, says
):
    with (tmp_path / "t.csv").open("w", newline="") as file:
        row = ROW | {"sequence_parallel": "yes"} | changes
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row)
    [read] = read_table(tmp_path / "t.csv")
    assert [one for one in read.assumed if one.startswith(says)]
