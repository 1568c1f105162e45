"""A real job that saves before its allocation ends."""

import json
import time

import pytest

from exajax.job.events import read_events
from tests.conftest import command
from tests.jobs.processes import SMALL, left_over


@pytest.mark.slow
def test_all_processes_save_the_same_step_before_the_wall_time_ends(tmp_path, text):
    run_dir, wall_time_s = tmp_path / "run", 30
    job = ("--model", SMALL, "--mesh=2x2", "--hosts=2", "--precision=fp32", "--data", text)
    never = ("--steps=100000", "--save-every=100000")
    began_s = time.monotonic()
    ended = command(
        *("train", *job, *never, "--run-dir", run_dir, "--metrics-port=0", "--json"),
        f"--wall-time={wall_time_s}",
    )
    assert time.monotonic() - began_s < wall_time_s
    assert ended.returncode == 130, ended.stderr
    assert "the wall time of --wall-time ends in" in ended.stderr
    assert "give the same command to go on" in ended.stderr
    result = json.loads(ended.stdout)
    assert result["interrupted"]
    (saved,) = [int(p.name) for p in (run_dir / "checkpoints").iterdir() if p.name.isdigit()]
    assert saved == result["step"] > 0
    (preempted,) = [event for event in read_events(run_dir) if event["event"] == "preempted"]
    assert preempted["step"] <= saved
    assert not left_over(run_dir)
