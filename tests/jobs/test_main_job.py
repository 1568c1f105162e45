"""The front door, as a newcomer uses it."""

import json
import re
import shutil
import signal
import time

import pytest

from exajax.report import perfetto
from exajax.train.sinks import history
from exajax.train.sinks.tensorboard import TAGS
from tests.conftest import command
from tests.jobs.processes import FRONT_DOOR, Job, left_over

STEPS = 12


def main_job(run_dir, *flags):
    return (FRONT_DOOR, "--mesh", "128x8", "--run-dir", run_dir, "--metrics-port", 0, *flags)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One main job with few steps, its output and the time to its first line."""
    folder = tmp_path_factory.mktemp("main")
    started_s = time.monotonic()
    with Job(folder / "log", *main_job(folder / "run", "--steps", STEPS)) as job:
        job.wait_for("llama2-70b on mesh 128x8\n", 30)
        first_line_s = time.monotonic() - started_s
        job.process.wait(timeout=400)
    output = (folder / "log").read_text()
    assert job.process.returncode == 0, output
    return folder / "run", output, first_line_s


def test_it_says_first_what_will_be_measured_and_what_simulated(finished):
    _, output, first_line_s = finished
    assert first_line_s < 15  # 5 on an idle machine; tests share theirs
    head = output.split("[1/4]")[0]
    for said in (
        "1,024 devices: data 128 x model 8",
        "128 of 2,048 nodes of 8 x NVIDIA H100",
        "llama2-70b (69 G parameters)",
        "no accelerator, CPU only",
        "measured    llama-tiny",
        "simulated   llama2-70b on 128x8",
        "run folder",
    ):
        assert said in head


def test_run_json_tells_measured_from_simulated(finished):
    run_dir, _, _ = finished
    run = json.loads((run_dir / "run.json").read_text())
    assert run["measured"]["kind"] == "measured"
    assert run["measured"]["where"]["processor"]
    assert run["measured"]["step"] == STEPS
    assert re.fullmatch("[0-9a-f]{64}", run["data"]["sha256"])
    assert run["simulated"]["whole"]["kind"] == "simulated"
    assert run["simulated"]["whole"]["fits"]
    assert run["simulated_twin"]["kind"] == "simulated"
    assert run["seeds"] == {"parameters": 0, "data_order": 0}
    assert run["versions"]["jax"]
    pair = run["comparison"]
    expected = pair["simulated"]["step_time_s"] / pair["measured"]["p50_s"] - 1
    assert pair["error"] == pytest.approx(expected)


def test_the_curve_starts_on_the_smallest_mesh_that_fits_and_has_four_points_at_most(finished):
    run_dir, _, _ = finished
    curve = json.loads((run_dir / "run.json").read_text())["simulated"]["curve"]
    devices = [point["devices"] for point in curve]
    assert devices == sorted(devices)
    assert devices[-1] == 1024
    assert 2 <= len(devices) <= 4
    assert all(point["fits"] for point in curve)
    # 12 bytes a parameter on one node of eight are already more than an H100 has.
    assert devices[0] > 8


def test_the_run_leaves_logs_that_open(finished):
    run_dir, _, _ = finished
    records = history.read(run_dir / "metrics.jsonl")
    assert [r["step"] for r in records if "loss" in r] == list(range(1, STEPS + 1))
    page = (run_dir / "report.html").read_text()
    assert page.count("<svg") == 4
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)
    assert (run_dir / "scaling.png").read_bytes()[:4] == b"\x89PNG"
    scalars = tensorboard_scalars(run_dir / "tensorboard")
    # No peak is known, no images are there, and no step was bad.
    absent = {TAGS[name] for name in ("mfu", "validation_accuracy", "bad_steps")}
    assert {*TAGS.values()} - absent <= set(scalars["train"])
    simulated = scalars["scaling/simulated-llama2-70b"]
    assert simulated["scaling/efficiency"][0] == pytest.approx(1.0)
    assert len(simulated["scaling/tokens_per_s"]) >= 2
    assert len(scalars["scaling/measured-llama-tiny"]["scaling/tokens_per_s"]) == 1


def test_one_trace_holds_both_simulated_steps_and_the_measured_one(finished):
    run_dir, output, _ = finished
    assert "ui.perfetto.dev" in output
    events = perfetto.read(run_dir / perfetto.NAME)["traceEvents"]
    names = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    assert names == {
        1: "simulated: llama2-70b on 128x8 of dgx-h100",
        2: "simulated: llama-tiny on 2x2 of local",
        3: "measured: llama-tiny on 2x2 of this machine",
    }
    found = {
        pid: {e["name"] for e in events if e["ph"] == "X" and e["pid"] == pid} for pid in names
    }
    # The small model runs the instructions that were simulated for it, so they have the same names.
    assert {"mlp matmul", "attention matmul"} <= found[2] & found[3]
    run = json.loads((run_dir / "run.json").read_text())
    for pid, result in {1: run["simulated"]["whole"], 2: run["simulated_twin"]}.items():
        lasts_us = sum(
            e["dur"] for e in events if e["pid"] == pid and e.get("tid") == 2 and e["ph"] == "X"
        )
        assert lasts_us == pytest.approx(1e6 * result["variability"]["nominal_s"], rel=1e-5)
    timed = [r["step"] for r in history.read(run_dir / "metrics.jsonl") if "step_time_s" in r]
    assert {6, 7}.isdisjoint(timed)  # step 6 was traced, and 7 started behind it


def tensorboard_scalars(folder):
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    events = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    return {
        run: {tag: [event.value for event in events.Scalars(run, tag)] for tag in tags["scalars"]}
        for run, tags in events.Runs().items()
    }


@pytest.mark.slow
def test_the_same_command_goes_on(finished):
    run_dir, _, _ = finished
    with Job(run_dir.parent / "again", *main_job(run_dir, "--steps", STEPS + 3)) as job:
        job.process.wait(timeout=400)
    output = (run_dir.parent / "again").read_text()
    assert job.process.returncode == 0, output
    assert f"goes on from the checkpoint of step {STEPS}: 3 steps to go" in output
    assert "this machine was measured before" in output
    run = json.loads((run_dir / "run.json").read_text())
    assert run["measured"]["step"] == STEPS + 3
    assert run["measured"]["resumed_from"] == STEPS


@pytest.mark.parametrize(
    ("stage", "steps"),
    [
        ("[1/4]", 30),
        pytest.param("s/step", STEPS + 40, marks=pytest.mark.slow),
        pytest.param("[3/4]", STEPS + 3, marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_ends_everything_in_ten_seconds(tmp_path, finished, stage, steps):
    run_dir = tmp_path / "run"
    if stage != "[1/4]":  # what comes before the stage is done
        shutil.copytree(finished[0], run_dir)
    with Job(tmp_path / "log", *main_job(run_dir, "--steps", steps)) as job:
        job.wait_for(stage, 240)
        time.sleep(1.0)
        assert job.signal(signal.SIGINT) < 10
        assert job.process.returncode == 130
    assert not left_over(run_dir)
    assert json.loads((run_dir / "run.json").read_text())["job"]


def test_bad_input_is_one_line_with_the_field_and_writes_nothing(tmp_path):
    for name, content in {"binary": b"a\0b" * 999, "empty": b"", "text": b"word " * 9999}.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "run.json").write_text('{"job": {')
    (tmp_path / "other").mkdir()
    job = {"recipe": {"model": {"name": "llama2-7b"}}}
    (tmp_path / "other" / "run.json").write_text(json.dumps({"job": job}))
    before = sorted(tmp_path.rglob("*"))
    cases = {
        "--mesh: the size of 'model'": ("--mesh", "128x"),
        "--mesh: the size of 'data'": ("--mesh", "0x8"),
        "--mesh: unknown axis 'banana'": ("--mesh", "banana=4"),
        "--mesh: model=16 does not divide the 8 KV heads": ("--mesh", "64x16"),
        "--mesh: 65536 devices are more than": ("--mesh", "8192x8"),
        "--mesh: 12 devices are not whole nodes of 8": ("--mesh", "3x4"),
        "--learning-rate: 'nan' is no such number": ("--learning-rate", "nan"),
        "--metrics-port: '70000' is no such number": ("--metrics-port", "70000"),
        "did you mean 'llama2-70b'": ("--model", "lama2-70b"),
        "choose one of alps, aurora, dgx-a100": ("--cluster", "dgx"),
        "--global-batch: 100": ("--global-batch", "100"),
        "nowhere does not exist": ("--data", tmp_path / "nowhere"),
        "empty is not text: empty": ("--data", tmp_path / "empty"),
        "binary is not text": ("--data", tmp_path / "binary"),
        "--run-dir: cannot write": ("--run-dir", "/proc/run"),
        "text is not a folder": ("--run-dir", tmp_path / "text"),
        "run.json is damaged": ("--run-dir", tmp_path / "damaged"),
        "its recipe.model.name is 'llama2-7b'": ("--run-dir", tmp_path / "other"),
        "--steps: 'ten' is no such number": ("--steps", "ten"),
    }
    for says, (flag, value) in cases.items():
        flags = {"--mesh": "128x8", "--run-dir": tmp_path / "run"} | {flag: value}
        pairs = [part for pair in flags.items() for part in pair]
        result = command(FRONT_DOOR, *pairs, cwd=tmp_path)
        assert result.returncode == 2, (says, result)
        assert says in result.stderr
        assert "error: " in result.stderr
        assert result.stderr.count("\n") == 1
        assert result.stdout == ""
        assert sorted(tmp_path.rglob("*")) == before, says
