"""Checkpoints of several processes: what befalls one of them, all of them agree on."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from exajax.job.events import read_events
from exajax.job.local_hosts import free_port
from exajax.train.checkpoint.folder import verify
from tests.conftest import REPOSITORY

TIME_S = 240


def start(run_dir, hosts, prefix=(), **options):
    """Starts a job; returns exit codes, what it said, and what it wrote to standard error."""
    run_dir.mkdir(exist_ok=True)
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "tests.train.checkpoint.checkpoint_job",
        str(run_dir),
        str(hosts),
    ]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
    said = json.dumps(options)
    jobs = [
        subprocess.Popen(
            [*prefix, *command, str(host), str(port), said],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=REPOSITORY,
        )
        for host in range(hosts)
    ]
    try:
        outs = [job.communicate(timeout=TIME_S) for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    lines = [line for line in outs[0][0].splitlines() if line.startswith("{")]
    result = json.loads(lines[-1]) if lines else None
    return [job.returncode for job in jobs], result, "".join(err for _, err in outs)


def told(run, name):
    return [event for event in read_events(run) if event["event"] == name]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("healthy")
    codes, result, errors = start(folder, 2, steps=4, save_every=2)
    assert codes == [0, 0], errors
    assert result["resumed_from"] is None
    return folder, result["losses"]


@pytest.mark.jax_surface
def test_two_processes_save_and_one_goes_on(healthy, tmp_path):
    run = shutil.copytree(healthy[0], tmp_path / "run")
    (newest, *_) = verify(run / "checkpoints")
    assert (newest.step, newest.state) == (4, "proven")
    sums = json.loads((run / "checkpoints" / "4" / "checksums.json").read_text())["files"]
    wrote = {part for file in sums for part in file.split("/") if part.startswith("ocdbt.")}
    assert wrote == {"ocdbt.process_0", "ocdbt.process_1"}
    codes, result, errors = start(run, 1, steps=5)
    assert codes == [0], errors
    assert result["resumed_from"] == 4


def test_what_one_process_finds_damaged_all_leave_aside(healthy, tmp_path):
    run = shutil.copytree(healthy[0], tmp_path / "run")
    newest, older = (found.step for found in verify(run / "checkpoints"))
    data = (run / "checkpoints" / str(newest) / "state" / "ocdbt.process_1").glob("d/*")
    max(data, key=lambda path: path.stat().st_size).unlink()
    codes, result, errors = start(run, 2, steps=6)
    assert codes == [0, 0], errors
    assert result["resumed_from"] == older
    (event,) = told(run, "checkpoint-damaged")
    assert event["how"] == "is missing"
    assert "ocdbt.process_1" in event["file"]
    assert errors.count("is damaged") == 1


def test_the_full_disk_of_one_process_fails_a_save_of_all_and_nobody_waits(tmp_path):
    codes, _, errors = start(tmp_path / "run", 2, steps=4, save_every=2, fail=[1, 2])
    assert codes == [0, 0], errors
    (event,) = told(tmp_path / "run", "checkpoint-failed")
    assert event["step"] == 2
    assert event["reason"] == "process 1: No space left on device"
    assert [found.step for found in verify(tmp_path / "run" / "checkpoints")] == [4]


def test_a_process_killed_in_a_commit_leaves_nothing_half(healthy, tmp_path):
    run = shutil.copytree(healthy[0], tmp_path / "run")
    codes, _, _ = start(run, 1, steps=6, kill=[0, 6])
    assert codes == [9]
    states = {found.step: found.state for found in verify(run / "checkpoints")}
    assert states[6] == "unfinished"
    assert states[4] == "proven"
    codes, result, errors = start(run, 1, steps=6)
    assert codes == [0], errors
    assert result["resumed_from"] == 4
    assert {found.state for found in verify(run / "checkpoints")} == {"proven"}


def test_the_newest_that_all_hosts_have_on_their_own_disks_goes_on(tmp_path):
    run, often = tmp_path / "run", {"local_every": 1, "save_every": 3, "pace_s": 0.4}
    codes, _, errors = start(run, 2, steps=6, fail=[1, 6], **often)
    assert codes == [1, 1]
    assert errors.count("NotSavedError: checkpoint 6, the last one, could not be saved") == 2
    assert "No space left on device" in errors
    assert [found.step for found in verify(run / "checkpoints")] == [3]
    (local,) = (run / "local").iterdir()
    assert sorted(path.name for path in local.iterdir()) == ["4", "5"]
    shutil.rmtree(local / "5" / "host-1")
    codes, result, errors = start(run, 2, steps=6, **often)
    assert codes == [0, 0], errors
    assert result["resumed_from"] == 4
    (event,) = told(run, "restored")
    assert (event["step"], event["tier"]) == (4, "local")


SPACE = ("unshare", "-Urm")


@pytest.mark.skipif(
    shutil.which("unshare") is None
    or subprocess.run([*SPACE, "true"], capture_output=True).returncode != 0,
    reason="no name spaces for users here",
)
def test_a_disk_that_is_really_full_fails_saves_until_there_is_room_again(tmp_path):
    """0.8 MiB of state: one checkpoint has room, a second one has not until the disk grows."""
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    script = """
        cd "$1"; shift
        mount -t tmpfs -o size=1200k tmpfs checkpoints
        "$@"; echo $? > ../first
        ls checkpoints > ../left
        mount -o remount,size=4m checkpoints
        "$@"; code=$?
        ls checkpoints > ../end
        exit $code
    """
    prefix = (*SPACE, "sh", "-c", script, "sh", str(run))
    codes, result, errors = start(run, 1, prefix, steps=3, save_every=1, width=256)
    assert codes == [0], errors
    assert (tmp_path / "first").read_text() == "1\n"
    assert (tmp_path / "left").read_text() == "1\n"
    assert (tmp_path / "end").read_text() == "2\n3\n"
    assert result["resumed_from"] == 1
    failed = {event["step"]: event["reason"] for event in told(run, "checkpoint-failed")}
    assert 3 in failed
    assert all("No space left on device" in reason for reason in failed.values()), failed
    assert "the newest good one is of step 1" in errors
