"""Two host processes, one job: what it promises, resume, Ctrl-C, and no process left behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from exajax.resilience.control import Control
from tests.conftest import command
from tests.jobs.processes import FRONT_DOOR, SMALL, Job, left_over, wait_until

JOB = ("--model", SMALL, "--mesh", "2x2", "--precision", "fp32")


def train(run_dir, text, steps, *extra):
    flags = (*JOB, "--hosts", 2, "--data", text, "--steps", steps, "--run-dir", run_dir)
    return command("train", *flags, "--metrics-port", 0, "--save-every", 4, *extra)


def train_json(run_dir, text, steps):
    result = train(run_dir, text, steps, "--json")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1
    # What Gloo, absl and XLA write of every process is in its log.
    assert not re.search(r"Gloo|absl|cudart", result.stderr), result.stderr
    assert "Gloo" in (run_dir / "logs" / "host-1.log").read_text()
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


def endless(run_dir, text, *extra):
    flags = (*JOB, "--hosts", 2, "--data", text, "--run-dir", run_dir, "--metrics-port", 0)
    log = run_dir.with_name("log")
    return Job(log, "train", *flags, "--steps", 100_000, "--save-every", 4, *extra)


def test_ctrl_c_leaves_a_run_that_goes_on(straight, tmp_path, text):
    run_dir = tmp_path / "run"
    with endless(run_dir, text) as job:
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


def saved(run_dir):
    """Returns the steps of the checkpoints that are there."""
    folder = run_dir / "checkpoints"
    return [int(p.name) for p in folder.iterdir() if p.name.isdigit()] if folder.exists() else []


def test_no_process_outlives_a_killed_parent_and_the_run_goes_on(tmp_path, text):
    run_dir = tmp_path / "run"
    with endless(run_dir, text) as job:
        job.wait_for("s/step")
        assert len(left_over(run_dir)) == 5  # a parent, two supervisors, two that train
        wait_until(lambda: max(saved(run_dir), default=0) >= 4, 60)  # old ones are pruned
        job.signal(signal.SIGKILL)
        wait_until(lambda: not left_over(run_dir), 30)
    newest = max(saved(run_dir))
    result = train_json(run_dir, text, newest + 8)
    assert 4 <= result["resumed_from"] <= newest
    assert len(result["losses"]) == result["step"] == newest + 8


@pytest.mark.slow
def test_without_restarts_the_end_of_one_host_ends_the_job(tmp_path, text):
    run_dir = tmp_path / "run"
    with endless(run_dir, text, "--restarts", 0) as job:
        job.wait_for("s/step")
        os.kill(Control(run_dir).worker(1).pid, signal.SIGKILL)
        job.process.wait(timeout=20)
        assert job.process.returncode == 1
        assert "gives up: the process of host 1 ended with 137" in job.log.read_text()
        assert not left_over(run_dir)


@pytest.mark.slow
def test_an_error_of_one_host_ends_the_job(straight, tmp_path, text):
    run_dir = tmp_path / "run"
    shutil.copytree(straight[0], run_dir)
    target = run_dir / "prometheus" / "host-0.json"
    target.unlink(missing_ok=True)
    target.mkdir(parents=True)  # nothing a user does; host 0 alone writes it
    started_s = time.monotonic()
    result = train(run_dir, text, 20, "--restarts", 1)
    assert time.monotonic() - started_s < 60
    assert result.returncode == 1
    assert "IsADirectoryError" in result.stderr
    assert not left_over(run_dir)


def test_two_jobs_do_not_share_a_folder(tmp_path, text):
    run_dir = tmp_path / "run"
    with endless(run_dir, text) as job:
        wait_until(lambda: Control(run_dir).worker(0) is not None, 60)
        result = train(run_dir, text, 10)
        assert result.returncode == 2
        assert "is in use by a running job" in result.stderr
        job.wait_for("s/step")  # the first one was not hurt


def test_bad_input_of_a_local_job_writes_nothing(tmp_path, text):
    for flags in (("--cluster", "nope"), ("--metrics-port", 99_999), ("--save-every", 0)):
        result = command(
            "train", *JOB, "--hosts", 2, "--data", text, "--run-dir", tmp_path / "run", *flags
        )
        assert result.returncode == 2, result
        assert flags[0] in result.stderr
        assert result.stderr.count("\n") == 1
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("mesh", "hosts", "code"), [("1x1", (), 1), ("2x1", ("--hosts", 2), 2)])
def test_a_job_whose_hosts_are_all_drained_names_the_files(mesh, hosts, code, tmp_path):
    control = tmp_path / "run" / ".job"
    control.mkdir(parents=True)
    files = {f"drain-{n}" for n in range(hosts[1] if hosts else 1)}
    for name in files:
        (control / name).touch()
    flags = ("--mesh", mesh, "--model", SMALL, *hosts, "--run-dir", tmp_path / "run")
    result = command("train", *flags, timeout_s=60)
    assert result.returncode == code, result
    assert result.stderr.count("\n") == 1
    assert "drained" in result.stderr
    assert "remove" in result.stderr
    assert files <= {path.name for path in control.iterdir()}


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    flags = ("--mesh", "1x8", "--model", "llama2-70b", "--run-dir", tmp_path / "run")
    result = command("train", *flags)
    assert result.returncode == 2
    assert "compiling the step of llama2-70b" in result.stdout
    assert "--mesh: a device needs" in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_prefix_that_cannot_be_started_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("EXAJAX_HOST_PREFIX", "/none/at {host}")
    flags = ("--mesh", "2x1", "--hosts", 2, "--model", SMALL, "--run-dir", tmp_path / "run")
    result = command("train", *flags)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert "EXAJAX_HOST_PREFIX: cannot start /none/at: No such file or directory" in line
    assert not (tmp_path / "run").exists()


def test_a_hundred_steps_learn_more_than_how_often_each_byte_is(tmp_path):
    flags = ("--mesh", "1x1", "--model", SMALL, "--precision", "fp32")
    result = command(
        "train", *flags, "--learning-rate", 3e-3, "--run-dir", tmp_path / "run", "--json"
    )
    done = json.loads(result.stdout)
    assert done["step"] == 100
    assert done["validation_loss"] < done["unigram_entropy"]
    assert done["below_unigram_entropy"]


@pytest.mark.slow
def test_two_processes_learn_to_tell_digits_apart(tmp_path):
    flags = ("--mesh", "2x2", "--hosts", 2, "--precision", "fp32", "--global-batch", 64)
    rate = ("--learning-rate", 1e-3, "--label-smoothing", 0.1, "--metrics-port", 0)
    where = ("--steps", 60, "--run-dir", tmp_path / "run", "--json")
    result = command("train", "--model", "vit-tiny", *flags, *rate, *where)
    assert result.returncode == 0, result.stderr
    done = json.loads(result.stdout)
    assert done["data"]["held_out_images"] == 179
    assert done["validation_loss"] < done["unigram_entropy"]
    assert done["validation_accuracy"] > 0.25  # of ten classes
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert records[-1]["validation_accuracy"] == done["validation_accuracy"]


def test_images_that_cannot_be_trained_on_are_refused_before_any_process_starts(tmp_path):
    images = np.zeros((40, 8, 8))
    images[13] = np.nan
    np.savez(tmp_path / "bad.npz", images=images, labels=np.arange(40) % 10)
    flags = ("--model", "vit-tiny", "--mesh", "2x2", "--run-dir", tmp_path / "run")
    result = command("train", *flags, "--hosts", 2, "--data", tmp_path / "bad.npz")
    assert result.returncode == 2
    assert "--data" in result.stderr
    assert "bad.npz: image 13" in result.stderr
    assert not (tmp_path / "run").exists()


def mpiexec(*flags):
    beside = Path(sys.executable).with_name("mpiexec")
    program = str(beside) if beside.exists() else shutil.which("mpiexec")
    assert program, "the test extra installs mpich"
    return subprocess.run(
        [program, "-n", "2", sys.executable, str(FRONT_DOOR), *map(str, flags)],
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_mpiexec_starts_one_job(tmp_path, text):
    flags = (*JOB, "--data", text, "--steps", 4, "--run-dir", tmp_path / "run", "--json")
    result = mpiexec(*flags)
    assert result.returncode == 0, result.stderr[-3000:]
    done = json.loads(result.stdout)
    assert done["step"] == 4
    assert done["devices"] == {"count": 4, "processes": 2, "kind": "cpu"}
    assert "mpi4py" in done["provenance"]["launcher"]
    assert not left_over(tmp_path / "run")


def test_bad_input_under_mpiexec_ends_at_once_with_one_line(straight, text):
    started_s = time.monotonic()
    result = mpiexec(*JOB, "--data", text, "--run-dir", straight[0], "--seed", 7)
    assert time.monotonic() - started_s < 30
    assert result.returncode == 2
    assert result.stderr.count("exajax: error: --run-dir") == 1
