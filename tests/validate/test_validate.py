"""Predictions against published steps: what is told of each source, and of bad tables."""

import csv
import json

import pytest

from exajax.machine.software_of_rows import TABLES
from exajax.validate import step_times, tables
from tests.conftest import command


@pytest.fixture(scope="module")
def result():
    done = command("validate", "--json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_row_is_told_with_its_error_or_a_reason(result):
    rows = [row for path in TABLES.glob("*.csv") for row in csv.DictReader(path.open())]
    assert sorted(row["row_id"] for row in result["rows"]) == sorted(r["row_id"] for r in rows)
    for row in result["rows"]:
        assert (row["error"] is None) == bool(row["reason"])
        if row["error"] is not None:
            error = row["predicted_s"] / row["measured_s"] - 1
            assert row["error"] == pytest.approx(error)


def test_no_source_is_worse_than_the_null_model(result):
    told = [source for source in result["sources"] if source["mape"] is not None]
    assert len(told) >= 5
    for source in told:
        assert source["mape"] < source["null_mape"], source


def test_rows_that_a_software_profile_was_fitted_on_are_told_and_not_counted(result):
    [sc21] = [s for s in result["sources"] if "2104.04473" in s["source"]]
    fitted = [r for r in result["rows"] if r["source"] == sc21["source"]]
    fitted = [row["row_id"] for row in fitted if row["used_for_calibration"]]
    assert "sc21-t1-1.7B" in fitted
    assert sc21["calibrated"] == len(fitted)
    assert sc21["expressed"] == sc21["rows"] == 22


def test_the_null_model_is_what_it_says():
    # On the table that its efficiency is from it is right on average of efficiencies.
    rows = tables.read_table(TABLES / "megatron_sc21.csv")
    first = [step_times.check(row) for row in rows if "-t1-" in row.row_id]
    reached = [one.null_s / one.row.measured_s for one in first]
    assert sum(reached) / len(reached) == pytest.approx(1.0, abs=1e-3)


def table(path, **changes):
    rows = list(csv.DictReader((TABLES / "korthikanti2022.csv").open()))
    rows[1] |= changes
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize(
    ("column", "text"),
    [
        ("layers", "many"),
        ("num_gpus", "-8"),
        ("derived_iter_s", "inf"),
        ("measured_value", "quick"),
    ],
)
def test_nonsense_in_a_table_is_named_by_row_and_column(tmp_path, column, text):
    done = command("validate", "--table", table(tmp_path / "t.csv", **{column: text}))
    assert done.returncode == 2
    assert f"row kor-t5-22B-selsp, column {column}: {text!r}" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_table_without_a_column_is_named(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("source,row_id\na,b\n")
    done = command("validate", "--table", path)
    assert done.returncode == 2
    assert "no column 'layers'" in done.stderr


def test_a_chip_that_nothing_is_known_of_is_a_reason(tmp_path):
    path = table(tmp_path / "t.csv", cluster="", chip="abacus")
    done = command("validate", "--table", path, "--rows")
    assert done.returncode == 0
    assert "not predicted: chip: unknown chip 'abacus'" in done.stdout


def test_a_machine_without_a_name_is_built_from_its_chip_and_network(tmp_path):
    # The same node as the named machine has: the network is not used.
    named, built = (
        step_times.check(tables.read_table(table(tmp_path / f"{i}.csv", **changes))[1])
        for i, changes in enumerate(({}, {"cluster": ""}))
    )
    assert built.predicted_s == pytest.approx(named.predicted_s, rel=1e-6)


def test_a_step_faster_than_the_peak_of_its_devices_is_a_reason(tmp_path):
    path = table(tmp_path / "t.csv", derived_iter_s="0.001")
    checked = step_times.check(tables.read_table(path)[1])
    assert checked.error is None
    assert "at the peak of its devices its products alone take" in checked.reason


@pytest.mark.parametrize(("name", "begins"), [("v.png", b"\x89PNG"), ("v.svg", b"<?xml")])
def test_the_plot_is_of_the_kind_that_its_name_says(tmp_path, name, begins):
    done = command("validate", "--json", "--plot", tmp_path / name)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / name).read_bytes().startswith(begins)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    if name == "v.svg":
        text = (tmp_path / name).read_text()
        assert "Narayanan" in text
        assert "published step, seconds" in text


@pytest.mark.parametrize("name", ["v.pdf", "none/v.png", "."])
def test_a_plot_that_cannot_be_written_is_refused_before_any_work(tmp_path, name):
    done = command("validate", "--table", tmp_path / "none.csv", "--plot", tmp_path / name)
    assert done.returncode == 2
    assert "--plot: " in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_compiled_engine_compiles_a_program_once_and_says_what_it_cannot(tmp_path):
    rows = list(csv.DictReader((TABLES / "dgxc_jax_h100.csv").open()))[:1]
    small = {"model": "small", "params_B": "", "layers": "8", "hidden": "128", "heads": "16"}
    small |= {"kv_heads": "8", "ffn": "384", "vocab": "256", "seq": "128", "num_gpus": "8"}
    small |= {"dp": "1", "fsdp": "8", "micro_batch": "1", "global_batch": "8"}
    small |= {"recompute_policy": "none", "dtype": "bf16"}
    uneven = {"row_id": "c", "fsdp": "2", "pp": "4", "layers": "6"}
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        for changes in ({"row_id": "a"}, {"row_id": "b", "model": "called otherwise"}, uneven):
            writer.writerow(rows[0] | small | changes)
    done = command("validate", "--engine", "compiled", "--table", path, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    first, second, third = result["rows"]
    assert result["engine"] == "compiled"
    assert 0 < first["predicted_s"] == second["predicted_s"]
    assert "pipe=4 does not divide the 6 layers" in third["reason"]
    assert done.stderr.count("parameters on fsdp=8") == 1


def test_published_memory_is_predicted_by_kind():
    done = command("validate", "--json", "--table", "meshes/published/korthikanti2022.csv")
    found = json.loads(done.stdout)
    by_kind = {one["kind"]: one for one in found["memory_sources"]}
    assert by_kind["state"]["expressed"] == 4
    assert by_kind["state"]["largest_error"] < 0.03
    assert by_kind["activations"]["expressed"] == 8
    assert by_kind["activations"]["largest_error"] < 0.03
    assert all(one["predicted_bytes"] for one in found["memory_rows"])


def test_nonsense_in_a_figure_of_memory_is_named(tmp_path):
    path = table(
        tmp_path / "t.csv", measured_metric="peak_memory", unit="GiB", measured_value="much"
    )
    done = command("validate", "--table", path)
    assert done.returncode == 2
    assert "column measured_value: 'much'" in done.stderr


def test_the_software_of_every_source_and_what_is_unvalidated_are_printed(tmp_path):
    changes = {"source": r"A user's $\frac$ run", "chip": "gh200", "cluster": "alps", "pp": ""}
    path, plot = table(tmp_path / "t.csv", **changes), tmp_path / "t.svg"
    done = command("validate", "--table", path, "--rows", "--plot", plot)
    assert done.returncode == 0, done.stderr
    assert "software megatron-2021: Korthikanti" in done.stdout
    assert r"software nemo-2024: A user's $\frac$ run" in done.stdout
    assert "assumed: the software of A user's" in done.stdout
    [unvalidated] = [line for line in done.stdout.splitlines() if line.startswith("unvalidated")]
    assert unvalidated.endswith("chip gh200, software nemo-2024")
    [row] = [line for line in done.stdout.splitlines() if line.startswith("kor-t5-22B-selsp ")]
    assert "pp = 1" in row
    assert r"A user's $\frac$ run" in plot.read_text()


def test_sources_and_rows_say_software_and_what_is_assumed(result):
    for one in [*result["rows"], *result["memory_rows"]]:
        assert one["software"]
        assert isinstance(one["assumed"], list)
        assert one["unvalidated"] == []
    assert all(source["software"] for source in result["sources"])
