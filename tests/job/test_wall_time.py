"""The end of a job's allocation, and the time to save before it."""

import os
import stat
import time

import pytest

from exajax import InputError
from exajax.job import wall_time
from exajax.job.environment import WALL_TIME_ENDS
from exajax.job.events import EventLog, read_events
from tests.conftest import command
from tests.jobs.processes import SMALL

QSTAT_OUTPUT = """Job Id: 4711.polaris-pbs
    Job_Name = train
    resources_used.walltime = 00:10:00
    job_state = R
    stime = {began}
    Resource_List.walltime = 01:30:00
"""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("1:30", 90),
        ("90:00", 5400),
        ("02:00:30", 7230),
        ("100:59:59", 363_599),
        ("0.5", 0.5),
        ("0:0:1.5", 1.5),
        ("1-0", 86_400),
        ("0-23:59", 86_340),
        ("2-03:04:05", 183_845),
    ],
)
def test_times_are_read_as_batch_systems_write_them(text, seconds):
    assert wall_time.parse_wall_time(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "1h",
            "-5",
            "0",
            "1:2:3:4",
            "nan",
            "1e3",
            "0:00",
            "1.5:00",
            "\uff11\uff10",
            "1-",
            "-1:00",
        ),
        *("99:99:99", "1:60", "0:60:00", "1:00:60", "1:00:99.5", "1-24", "1-00:60", "1-00:00:60"),
    ],
)
def test_other_texts_are_no_times(text):
    with pytest.raises(InputError, match="wall_time"):
        wall_time.parse_wall_time(text)


def test_the_option_takes_precedence_over_slurm():
    slurm = {"SLURM_JOB_END_TIME": "2000"}
    assert wall_time.allocation_end(slurm) == (2000, "Slurm")
    assert wall_time.allocation_end(slurm | {WALL_TIME_ENDS.name: "1000.5"}) == (
        1000.5,
        "the job's own limit",
    )
    assert wall_time.allocation_end({}) is None
    assert wall_time.allocation_end({"SLURM_JOB_END_TIME": "Unknown"}) is None


def qstat(folder, output):
    """A PBS environment whose `qstat` knows one job."""
    script = folder / "qstat"
    script.write_text(f"#!/bin/sh\n[ \"$*\" = '-f 4711' ] || exit 1\ncat <<E\n{output}E\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return {"PBS_JOBID": "4711", "PATH": f"{folder}:{os.environ['PATH']}"}


def test_the_end_under_pbs_is_the_start_plus_the_wall_time(tmp_path):
    began = time.time() // 1 - 600
    env = qstat(tmp_path, QSTAT_OUTPUT.format(began=time.ctime(began)))
    assert wall_time.allocation_end(env) == (began + 5400, "PBS")


def test_pbs_without_times_has_no_end(tmp_path):
    assert wall_time.allocation_end(qstat(tmp_path, "Job Id: 4711\n")) is None
    assert wall_time.allocation_end({"PBS_JOBID": "4711", "PATH": str(tmp_path / "none")}) is None


def test_the_save_time_follows_from_the_runs_events(tmp_path):
    log = EventLog(tmp_path, 0, "worker", 1)
    for seconds in (3.0, 20.0, 4.0):
        log.write("checkpoint-saved", step=1, seconds=seconds)
    assert wall_time.save_time_s(read_events(tmp_path)) == 40
    steps = [{"time": t, "event": "phase", "phase": "step", "host": 0} for t in (0, 2, 4)]
    assert wall_time.save_time_s(steps) == 10
    assert wall_time.save_time_s([]) == 0


def test_slow_checkpoints_are_saved_earlier_than_the_option_says(tmp_path, monkeypatch):
    monkeypatch.setenv(WALL_TIME_ENDS.name, str(time.time() + 50))
    assert wall_time.WallTime(tmp_path, 30).due() is None
    EventLog(tmp_path, 0, "worker", 1).write("checkpoint-saved", step=1, seconds=30.0)
    assert "wall time (the job's own limit) ends in" in wall_time.WallTime(tmp_path, 30).due()


def test_by_default_a_short_allocation_trains_for_three_quarters(tmp_path, monkeypatch):
    monkeypatch.setenv(WALL_TIME_ENDS.name, str(time.time() + 2))
    clock = wall_time.WallTime(tmp_path, None)
    assert clock.due() is None
    time.sleep(1.6)
    assert clock.due()


def test_a_wall_time_without_time_to_train_is_refused(tmp_path):
    job = ("train", "--model", SMALL, "--mesh=1x1", "--run-dir", tmp_path / "run")
    for flags, output in {
        ("--wall-time=60", "--save-before-end=60"): "--wall-time: 60 is over before",
        ("--wall-time=soon",): "--wall-time: 'soon' is not a time",
        ("--save-before-end=0",): "--save-before-end: '0' is no such number",
    }.items():
        refused = command(*job, *flags)
        assert refused.returncode == 2
        assert output in refused.stderr
        assert refused.stderr.count("\n") == 1
        assert not (tmp_path / "run").exists()


def test_an_event_without_its_required_fields_is_left_out_with_a_message(tmp_path):
    about = '{"time": 1.7e9, "attempt": 1, "host": 0, "event": '
    lines = [
        '"checkpoint-saved", "step": 1, "seconds": 2.0}',
        '"checkpoint-saved", "step": 2}',
        '"attempt", "members": []}',
        '"phase", "phase": "step"}',
    ]
    (tmp_path / "events").mkdir()
    written = "".join(f"{about}{line}\n" for line in lines)
    (tmp_path / "events" / "0-worker.jsonl").write_text(written)
    problems = []
    assert wall_time.save_time_s(read_events(tmp_path, problems.append)) == 4.0
    assert ["3 lines are no events" in line for line in problems] == [True]
