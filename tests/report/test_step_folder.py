"""`exajax simulate --out`: a simulated step as files."""

import csv
import json
import subprocess
import sys

import pytest

from exajax.report import perfetto, step_table
from exajax.report.step_folder import FILES
from exajax.simulate import step_report
from tests.conftest import command

STEP = ("simulate", "--model", "llama-tiny", "--mesh", "4x2", "--precision", "bf16")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders of the same step, and what was printed with each."""
    parent = tmp_path_factory.mktemp("out")
    printed = {}
    for name, flags in {"text": (), "json": ("--json",)}.items():
        result = command(*STEP, "--out", parent / "new" / name, *flags)
        assert result.returncode == 0, result.stderr
        printed[name] = result.stdout
    return parent / "new", printed


def test_the_files_are_there_and_the_text_says_so(folders):
    folder, printed = folders
    for name in ("text", "json"):
        assert {path.name for path in (folder / name).iterdir()} == set(FILES)
    assert ", ".join(FILES) in printed["text"]
    assert "ui.perfetto.dev" in printed["text"]
    assert printed["json"].count("\n") == 1
    assert (folder / "json" / "prediction.json").read_text() == printed["json"]
    assert (folder / "json" / "roofline.png").read_bytes()[:4] == b"\x89PNG"


def test_the_same_step_is_the_same_bytes(folders):
    folder, _ = folders
    for name in FILES:
        assert (folder / "text" / name).read_bytes() == (folder / "json" / name).read_bytes()


def test_trace_table_and_prediction_agree_on_the_step_time(folders):
    folder, printed = folders
    result = json.loads(printed["json"])
    step_time_s = result["variability"]["nominal_s"]
    stragglers_s = result["breakdown_s"]["stragglers"]
    assert step_time_s + stragglers_s == pytest.approx(result["step_time_s"])
    with (folder / "json" / "roofline.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(float(row["seconds"]) for row in rows) == pytest.approx(step_time_s)
    assert sum(row["seconds"] for row in result["roofline"]) == pytest.approx(step_time_s)
    assert {row["bound"] for row in rows} >= {"launch", "communication"}
    lost = [float(row["lost_s"]) for row in rows]
    assert lost == sorted(lost, reverse=True)
    report = step_report.parse(printed["json"])
    assert report.to_json() == result
    cells = step_table.cells(report.roofline)
    assert sum(row["total"] for row in cells.values()) == pytest.approx(step_time_s, rel=0.05)
    events = perfetto.read(folder / "json" / perfetto.NAME)["traceEvents"]
    names = {event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {"simulated: llama-tiny on 4x2 of dgx-h100"}
    lasts_us = sum(e["dur"] for e in events if e["ph"] == "X" and e["tid"] == 2)
    assert lasts_us == pytest.approx(1e6 * step_time_s, rel=1e-6)


def test_parts_of_the_model_are_told_apart_forward_and_backward(folders):
    _, printed = folders
    rows = json.loads(printed["json"])["roofline"]
    found = {(row["part"], row["direction"]) for row in rows}
    for part in ("attention", "mlp"):
        assert {(part, "forward"), (part, "backward")} <= found
    assert ("attention", "recompute") in found
    assert "optimizer" in {row["part"] for row in rows}
    for words in ("forward", "recompute", "backward", "exposed", "lost most"):
        assert words in printed["text"]


def test_the_spread_of_the_step_is_in_the_result(folders):
    _, printed = folders
    result = json.loads(printed["json"])
    spread = result["variability"]
    assert spread["kind"] == "simulated"
    assert result["step_time_s"] == spread["p50_s"]
    assert spread["nominal_s"] < spread["p50_s"] < spread["p95_s"] < spread["p99_s"]
    assert 0 < spread["compute_sigma"] < spread["network_sigma"] < 1
    assert all(spread["source"].values())


def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_compiled(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path, says in {
        tmp_path / "file": "is not a folder",
        tmp_path / "file" / "below": "cannot write to",
        "/proc/step": "cannot write to",
    }.items():
        result = command(*STEP, "--out", path, timeout_s=60)
        assert result.returncode == 2
        assert result.stderr.startswith("exajax: error: --out: ")
        assert says in result.stderr
        assert result.stderr.count("\n") == 1
        assert result.stdout == ""
    assert (tmp_path / "file").read_text() == "mine"


def test_a_prediction_without_a_folder_waits_for_no_plots():
    code = "import sys, exajax.cli.simulate; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
