"""A training that is broken again and again comes to the end of one that is not."""

import json
import signal

import pytest

from tests.conftest import command
from tests.jobs.processes import Job, left_over, wait_until

MODEL = """
name = "small"
family = "llama"
layers = 2
width = 32
heads = 2
kv_heads = 2
ffn = 64
vocab = 256
seq = 32
"""

FAULTS = """
[[fault]]
kind = "kill"
phase = "commit"
target = 1

[[fault]]
kind = "bit-flip"
step = 25

[[fault]]
kind = "terminate"
step = 45

[[fault]]
kind = "slow-disk"
target = 0
step = 62
duration_s = 2

[[fault]]
kind = "kill"
target = "parent"
step = 85
"""


@pytest.fixture(scope="module")
def flags(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("model") / "small.toml"
    path.write_text(MODEL)
    recipe = ("--model", path, "--mesh", "2x1", "--precision", "fp32", "--global-batch", 4)
    return (*recipe, "--data", text, "--hosts", 2, "--steps", 110, "--save-every", 10)


def test_five_faults_of_different_kinds_change_no_bit(flags, tmp_path):
    schedule = tmp_path / "faults.toml"
    schedule.write_text(FAULTS)
    run_dir = tmp_path / "run"
    done = command(
        "chaos", *flags, "--faults", schedule, "--run-dir", run_dir, "--json", timeout_s=500
    )
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads(done.stdout)
    assert report["survived"]
    assert report["end_state_identical"]
    assert report["samples_missing"] == report["samples_repeated"] == 0
    assert not report["orphans"]
    assert not report["half_checkpoints"]
    assert not report["stale_locks"]
    assert not report["not_injected"]
    assert not left_over(run_dir)
    kinds = [fault["kind"] for fault in report["faults"]]
    assert sorted(kinds) == ["bit-flip", "kill", "kill", "slow-disk", "terminate"]
    assert all(fault["in_time"] for fault in report["faults"]), report["faults"]
    assert all(fault["recovered_s"] > 0 for fault in report["faults"])
    assert report["faults"][0]["committing"]
    assert report["starts"] == 2
    assert 0 < report["replayed_steps"] < 110
    assert 0 < report["goodput"] < 1


@pytest.mark.slow
def test_ctrl_c_ends_everything(flags, tmp_path):
    run_dir = tmp_path / "run"
    args = ("chaos", *flags, "--kills", 3, "--run-dir", run_dir)
    with Job(tmp_path / "log", *args) as job:
        wait_until(lambda: len(left_over(run_dir)) >= 4, 60)
        job.signal(signal.SIGINT)
        assert job.process.returncode == 130, job.log.read_text()[-3000:]
    assert not left_over(run_dir)


@pytest.mark.slow
def test_a_killed_chaos_leaves_nothing_running(flags, tmp_path):
    run_dir = tmp_path / "run"
    with Job(tmp_path / "log", "chaos", *flags, "--kills", 3, "--run-dir", run_dir) as job:
        wait_until(lambda: len(left_over(run_dir)) >= 4, 60)
        job.signal(signal.SIGKILL)
        wait_until(lambda: not left_over(run_dir), 10)


def test_bad_input_is_refused_before_anything_is_written(flags, tmp_path):
    schedule = tmp_path / "faults.toml"
    schedule.write_text("[[fault]]\nkind = 'kill'\nat_s = 1\ntarget = 5\n")
    cases = {
        "--kills: nothing says what to break": (),
        "--kills: --faults says already what to break": ("--kills", 1, "--faults", schedule),
        "--kills: '0' is no such number": ("--kills", 0),
        "no host 5 among 2": ("--faults", schedule),
        "--faults: nowhere.toml: cannot be read": ("--faults", "nowhere.toml"),
        "--mesh: unknown axis": ("--kills", 3, "--mesh", "banana=2"),
    }
    for says, given in cases.items():
        done = command("chaos", *flags, "--run-dir", tmp_path / "run", *given)
        assert done.returncode == 2, done
        assert says in done.stderr
        assert done.stderr.count("\n") == 1
        assert not (tmp_path / "run").exists()
