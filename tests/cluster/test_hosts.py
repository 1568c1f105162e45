"""Two host processes, one job: what it promises, resume, Ctrl-C, and no process left behind."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.processes import FRONT_DOOR, Job, left_over, wait_until
from tests.conftest import command

JOB = ("--model", "llama-tiny", "--mesh", "2x2", "--precision", "fp32", "--seq", 32)


def train(run_dir, text, steps, *extra):
    flags = (*JOB, "--hosts", 2, "--data", text, "--steps", steps, "--run-dir", run_dir)
    return command("train", *flags, "--metrics-port", 0, "--save-every", 4, *extra)


def train_json(run_dir, text, steps):
    result = train(run_dir, text, steps, "--json")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def straight(tmp_path_factory, text):
    """A run of ten steps that nothing disturbed."""
    run_dir = tmp_path_factory.mktemp("straight") / "run"
    return run_dir, train_json(run_dir, text, 10)


def test_two_processes_train_as_one_job(straight):
    run_dir, result = straight
    assert result["kind"] == "measured"
    assert result["step"] == len(result["losses"]) == 10
    assert result["devices"] == {"count": 4, "processes": 2, "kind": "cpu"}
    assert result["losses"][-1] < result["losses"][0]
    assert result["validation_loss"] > 0
    assert result["step_time_s"]["p50"] <= result["step_time_s"]["p95"]
    assert result["resumed_from"] is None
    assert json.loads((run_dir / "run.json").read_text())["train"]["step"] == 10
    assert list((run_dir / "tensorboard" / "train").glob("events*"))
    assert len(list((run_dir / "prometheus").glob("host-*.json"))) == 2
    assert not left_over(run_dir)


def test_a_resumed_job_loses_no_bit(straight, tmp_path, text):
    run_dir = tmp_path / "run"
    train_json(run_dir, text, 6)
    result = train_json(run_dir, text, 10)
    assert result["resumed_from"] == 6
    assert result["losses"] == straight[1]["losses"]
    assert result["validation_loss"] == straight[1]["validation_loss"]


def test_another_job_may_not_use_the_folder(straight, text):
    run_dir, _ = straight
    result = train(run_dir, text, 20, "--seed", 1)
    assert result.returncode == 2
    assert "recipe.seed is 0, this one's is 1" in result.stderr
    assert result.stderr.count("\n") == 1


def test_ctrl_c_leaves_a_run_that_goes_on(straight, tmp_path, text):
    run_dir = tmp_path / "run"
    flags = (*JOB, "--hosts", 2, "--data", text, "--run-dir", run_dir, "--metrics-port", 0)
    job = Job(tmp_path / "log", "train", *flags, "--steps", 100_000)
    job.wait_for("s/step")
    assert job.signal(signal.SIGINT) < 10
    assert job.process.returncode == 130
    assert not left_over(run_dir)
    steps = [json.loads(line)["step"] for line in (run_dir / "metrics.jsonl").open()]
    result = train_json(run_dir, text, steps[-1] + 2)
    assert result["resumed_from"] == steps[-1]
    common = min(10, len(result["losses"]))
    # The schedule falls towards the last step, which is another one here: a rounding apart.
    assert result["losses"][:common] == pytest.approx(straight[1]["losses"][:common], rel=1e-3)


def test_no_process_outlives_a_killed_parent_and_the_run_goes_on(tmp_path, text):
    run_dir = tmp_path / "run"
    flags = (*JOB, "--hosts", 2, "--data", text, "--run-dir", run_dir, "--metrics-port", 0)
    job = Job(tmp_path / "log", "train", *flags, "--steps", 100_000)
    job.wait_for("s/step")
    assert len(left_over(run_dir)) == 3
    job.signal(signal.SIGKILL)
    wait_until(lambda: not left_over(run_dir), 10)
    # What is left is still this job's, and goes on.
    assert train_json(run_dir, text, 10)["step"] >= 10


def test_the_end_of_one_host_ends_the_job(tmp_path, text):
    run_dir = tmp_path / "run"
    flags = (*JOB, "--hosts", 2, "--data", text, "--run-dir", run_dir, "--metrics-port", 0)
    job = Job(tmp_path / "log", "train", *flags, "--steps", 100_000)
    job.wait_for("s/step")
    children = [line for line in left_over(run_dir) if not line.startswith(f"{job.process.pid}:")]
    os.kill(int(children[-1].split(":")[0]), signal.SIGKILL)
    job.process.wait(timeout=20)
    assert job.process.returncode not in (0, 2, 130)
    assert not left_over(run_dir)


def test_mpiexec_starts_one_job(tmp_path, text):
    mpiexec = Path(sys.executable).with_name("mpiexec")
    if not mpiexec.exists():
        found = shutil.which("mpiexec")
        assert found, "the test extra installs mpich"
        mpiexec = Path(found)
    flags = (*JOB, "--data", text, "--steps", 4, "--run-dir", tmp_path / "run", "--json")
    result = subprocess.run(
        [str(mpiexec), "-n", "2", sys.executable, str(FRONT_DOOR), *map(str, flags)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    done = json.loads(result.stdout)
    assert done["step"] == 4
    assert done["devices"] == {"count": 4, "processes": 2, "kind": "cpu"}
    assert "mpi4py" in done["provenance"]["launcher"]
    assert not left_over(tmp_path / "run")
