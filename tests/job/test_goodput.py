"""Goodput of event logs whose every second is known, and of arbitrary ones."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exajax.job import goodput
from exajax.job.events import PHASES, EventLog
from exajax.job.goodput import CAUSES, Goodput, goodput_of_events
from tests.conftest import command
from tests.jobs.processes import SMALL


def phases(host, attempt, *entries):
    """Phase events of a worker, each from (time, phase, step)."""
    about = {"role": "worker", "event": "phase", "host": host, "attempt": attempt}
    return [about | {"time": t, "phase": phase, "step": step} for t, phase, step in entries]


def logged(t, event, host=0, **facts):
    return {"time": t, "role": "supervisor", "event": event, "host": host, "attempt": 0, **facts}


def begin(t, number, members=(0, 1)):
    return logged(t, "attempt", attempt=number, members=list(members))


def seconds(events):
    """The seconds by cause, without zeros."""
    result = goodput_of_events(sorted(events, key=lambda event: event["time"]))
    parts = {"useful": result.useful_s, **result.lost_s, "away": result.away_s}
    return {name: value for name, value in parts.items() if value}


START = ((1, "start", 0), (3, "compile", 0), (8, "restore", 0), (10, "step", 1))

STRAIGHT = [
    logged(0, "job", job="a"),
    begin(0.5, 1),
    *phases(0, 1, *START, (12, "step", 2), (14, "evaluate", 2), (15, "step", 3)),
    *phases(0, 1, (17, "callback", 3), (18, "checkpoint", 3), (21, "end", 3)),
    *phases(1, 1, (1, "start", 0), (4, "compile", 0), (12, "step", 1), (18, "checkpoint", 3)),
    logged(22, "worker-ended", host=1, code=0),
    logged(22, "worker-ended", code=0),
    logged(23, "stopped", code=0),
]


def test_an_undisturbed_run():
    assert seconds(STRAIGHT) == {
        "useful": 6, "compile": 5, "start": 5, "evaluation": 1, "checkpoint": 3, "other": 3,
    }  # fmt: skip
    result = goodput_of_events(STRAIGHT)
    assert result.wall_s == 23
    assert result.ratio == 6 / 23
    assert (result.steps, result.replayed_steps) == (3, 0)


KILLED = [
    logged(0, "job", job="a"),
    begin(0.5, 1),
    *phases(0, 1, *START, (12, "step", 2), (14, "step", 3), (16, "step", 4)),
    logged(17, "worker-ended", host=1, code=137),
    logged(17.5, "fault", kind="killed"),
    logged(18, "worker-ended", code=134),
    begin(20, 2),
    *phases(0, 2, (21, "start", 0), (23, "compile", 0), (24, "restore", 0), (26, "step", 3)),
    *phases(0, 2, (28, "step", 4), (30, "end", 4)),
    logged(31, "stopped", code=0),
]


def test_a_kill_costs_the_interrupted_step_the_restart_and_the_recomputed_steps():
    assert seconds(KILLED) == {
        "useful": 6 + 2,
        "recomputed": 1 + 2,  # one second of step 4, which was interrupted, and step 3 again
        "compile": 5 + 1,
        "start": 5,
        "restart": 4 + 2 + 2,  # from 17 to 23 less nothing, and to the first step
        "other": 1,
    }
    assert goodput_of_events(KILLED).replayed_steps == 1


def test_a_hang_is_stalled_except_for_the_median_step():
    hung = [event for event in KILLED if event["time"] < 17]
    late = [event | {"time": event["time"] + 30} for event in KILLED if event["time"] >= 17]
    stuck = {"role": "worker", "host": 1, "attempt": 1, "event": "stuck", "time": 46.5}
    result = seconds([*hung, stuck, *late])
    assert result["recomputed"] == 2 + 2
    assert result["stalled"] == 31 - 2
    assert result["useful"] == 8


def test_a_first_compile_that_hangs_is_stalled_if_it_was_reported():
    events = [logged(0, "job", job="a"), begin(1, 1), *phases(0, 1, (1, "start", 0))]
    events += [
        *phases(0, 1, (2, "compile", 0)),
        logged(9, "fault"),
        logged(10, "stopped", code=1),
    ]
    assert seconds(events) == {"start": 2, "compile": 7, "restart": 1}
    stuck = {"role": "worker", "host": 0, "attempt": 1, "event": "stuck", "time": 9}
    assert seconds([*events, stuck]) == {"start": 2, "stalled": 7, "restart": 1}


def test_a_fault_that_ends_no_attempt_costs_nothing_by_itself():
    assert seconds([*STRAIGHT, logged(13, "fault", kind="slow-disk")]) == seconds(STRAIGHT)


def test_a_roll_back_is_a_restart_and_an_audit_is_not():
    events = [
        logged(0, "job", job="a"),
        begin(1, 1),
        *phases(0, 1, (1, "start", 0), (2, "step", 1)),
    ]
    events += phases(0, 1, (3, "step", 2), (4, "audit", 2), (6, "restore", 2), (9, "step", 2))
    events += [
        *phases(0, 1, (10, "step", 3), (11, "end", 3)),
        logged(12, "stopped", code=0),
    ]
    assert seconds(events) == {"start": 2, "useful": 3, "recomputed": 1, "restart": 3, "other": 3}


def test_the_first_member_logs_the_steps_also_when_host_0_is_lost():
    alone = [begin(30.5, 2, [1]), *phases(1, 2, (31, "start", 0), (32, "step", 4))]
    alone += [*phases(1, 2, (36, "end", 4)), logged(37, "stopped", code=0, host=1)]
    result = seconds([event for event in KILLED if event["time"] < 19] + alone)
    assert result["useful"] == 6 + 4


def test_time_between_two_jobs_does_not_count():
    later = [event | {"time": event["time"] + 1000} for event in KILLED]
    second = [event | ({"job": "b"} if event["event"] == "job" else {}) for event in later]
    result = goodput_of_events([*KILLED, *second])
    assert result.away_s == 1000 - 31
    assert result.wall_s == 2 * 31
    assert result.start_s == 2 * 5  # somebody gave a command
    assert result.useful_s == 8  # the second job trains no new step
    # The same job: a supervisor that was killed has been started again.
    assert goodput_of_events([*KILLED, *later]).away_s == 0


def test_processes_without_supervisors_are_jobs_of_their_own():
    plain = [*phases(0, 0, *START, (12, "step", 2), (14, "end", 2))]
    again = [event | {"time": event["time"] + 100} for event in plain]
    result = goodput_of_events([*plain, *again])
    assert (result.useful_s, result.recomputed_s, result.away_s) == (4, 4, 101 - 14)
    assert result.wall_s == 26


def test_no_event_is_no_time():
    assert goodput_of_events([]).ratio is None
    assert goodput_of_events([]).describe() == "goodput: no event was written"


def test_the_summary_lists_the_largest_losses_first():
    line = goodput_of_events(KILLED).describe()
    assert line == (
        "goodput 25.8% of 31.0 s: useful 8.0 s, restart 8.0 s, compile 6.0 s, start 5.0 s, "
        "recomputed 3.0 s, other 1.0 s; 1 steps recomputed"
    )


times = st.integers(0, 2000).map(lambda tenth: tenth / 10)
workers = st.fixed_dictionaries(
    {
        "time": times,
        "role": st.just("worker"),
        "event": st.sampled_from(["phase", "phase", "phase", "stuck", "checkpoint-saved"]),
        "host": st.integers(0, 2),
        "attempt": st.integers(0, 3),
        "phase": st.sampled_from(PHASES),
        "step": st.integers(0, 9),
    }
)
supervisors = st.fixed_dictionaries(
    {
        "time": times,
        "role": st.sampled_from(["supervisor", "chaos"]),
        "event": st.sampled_from(["attempt", "fault", "worker-ended", "job", "stopped"]),
        "host": st.integers(0, 2),
        "attempt": st.integers(0, 3),
        "members": st.lists(st.integers(0, 2)),
        "job": st.sampled_from("abc"),
    }
)
histories = st.lists(workers | supervisors, max_size=60).map(
    lambda events: sorted(events, key=lambda event: event["time"])
)


@given(histories)
def test_every_second_is_counted_once(events):
    result = goodput_of_events(events)
    assert min(result.useful_s, result.away_s, *result.lost_s.values()) >= 0
    own = [event["time"] for event in events if event["role"] != "chaos"]
    extent = own[-1] - own[0] if own else 0
    assert result.wall_s + result.away_s == pytest.approx(extent)


@given(histories, st.integers(0, 60))
def test_a_truncated_log_never_shows_more_useful_time(events, left):
    cut, whole = goodput_of_events(events[:left]), goodput_of_events(events)
    assert cut.useful_s <= whole.useful_s + 1e-9
    assert cut.steps <= whole.steps


def test_a_truncated_event_is_left_out(tmp_path):
    log = EventLog(tmp_path, 0, "worker", 1)
    for phase, step in (("start", 0), ("step", 1), ("step", 2), ("end", 2)):
        log.write("phase", phase=phase, step=step)
    log.close()
    (file,) = (tmp_path / "events").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    result = goodput.goodput_of_run(tmp_path)
    assert (result.steps, result.other_s) == (1, 0)


def test_causes_cover_all_lost_wall_time():
    fields = {name for name in Goodput.__dataclass_fields__ if name.endswith("_s")}
    assert fields == {f"{name}_s" for name in (*CAUSES, "useful", "away")}


def test_the_goodput_of_a_real_run_adds_up(tmp_path, text):
    job = ("--model", SMALL, "--mesh=1x1", "--precision=fp32", "--data", text, "--steps=6")
    done = command("train", *job, "--run-dir", tmp_path / "run", "--metrics-port=0", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["goodput"]
    assert result["steps"] == 6
    assert 0 < result["useful_s"] < result["wall_s"]
    assert result["compile_s"] > 0
    assert result["start_s"] > 0
    parts = sum(result[f"{cause}_s"] for cause in ("useful", *CAUSES))
    assert parts == pytest.approx(result["wall_s"])
    table = command("goodput", "--run-dir", tmp_path / "run")
    assert "useful" in table.stdout
    assert "compile" in table.stdout
    again = json.loads(command("goodput", "--run-dir", tmp_path / "run", "--json").stdout)
    assert again["steps"] == 6
    assert again["useful_s"] == pytest.approx(result["useful_s"])


def test_a_folder_without_events_is_refused(tmp_path):
    refused = command("goodput", "--run-dir", tmp_path)
    assert refused.returncode == 2
    assert "--run-dir" in refused.stderr
