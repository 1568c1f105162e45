"""Predictions against published steps: what is told of each source, and of bad tables."""

import csv
import json

import pytest

from exajax import published
from exajax.commands.validate import TABLES
from exajax.simulate import validation
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


def test_rows_that_a_stack_was_fitted_on_are_told_and_not_counted(result):
    [sc21] = [s for s in result["sources"] if "2104.04473" in s["source"]]
    fitted = [r for r in result["rows"] if r["source"] == sc21["source"]]
    fitted = [row["row_id"] for row in fitted if row["used_for_calibration"]]
    assert "sc21-t1-1.7B" in fitted
    assert sc21["calibrated"] == len(fitted)
    assert sc21["expressed"] == sc21["rows"] == 22


def test_the_null_model_is_what_it_says():
    # On the table that its efficiency is from it is right on average of efficiencies.
    rows = published.read_table(TABLES / "megatron_sc21.csv")
    first = [validation.check(row) for row in rows if "-t1-" in row.row_id]
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
    ("column", "text"), [("layers", "many"), ("num_gpus", "-8"), ("derived_iter_s", "inf")]
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
        validation.check(published.read_table(table(tmp_path / f"{i}.csv", **changes))[1])
        for i, changes in enumerate(({}, {"cluster": ""}))
    )
    assert built.predicted_s == pytest.approx(named.predicted_s, rel=1e-6)
