"""Where time went, in histories of events whose every second is known, and in any others."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exajax.job import goodput
from exajax.job.events import EventLog
from exajax.job.goodput import CAUSES, Goodput, total
from exajax.train.loop import PHASES
from tests.conftest import command
from tests.jobs.processes import SMALL


def phases(host, attempt, *turns):
    """Events of a worker: (time, phase, step) each."""
    about = {"role": "worker", "event": "phase", "host": host, "attempt": attempt}
    return [about | {"time": t, "phase": phase, "step": step} for t, phase, step in turns]


def said(t, event, host=0, **facts):
    return {"time": t, "role": "supervisor", "event": event, "host": host, "attempt": 0, **facts}


def begin(t, number, members=(0, 1)):
    return said(t, "attempt", attempt=number, members=list(members))


def seconds(events):
    """Returns what is not zero."""
    found = total(sorted(events, key=lambda event: event["time"]))
    parts = {"useful": found.useful_s, **found.lost_s, "away": found.away_s}
    return {name: value for name, value in parts.items() if value}


START = ((1, "start", 0), (3, "compile", 0), (8, "restore", 0), (10, "step", 1))

STRAIGHT = [
    said(0, "job", job="a"),
    begin(0.5, 1),
    *phases(0, 1, *START, (12, "step", 2), (14, "evaluate", 2), (15, "step", 3)),
    *phases(0, 1, (17, "callback", 3), (18, "checkpoint", 3), (21, "end", 3)),
    *phases(1, 1, (1, "start", 0), (4, "compile", 0), (12, "step", 1), (18, "checkpoint", 3)),
    said(22, "worker-ended", host=1, code=0),
    said(22, "worker-ended", code=0),
    said(23, "stopped", code=0),
]


def test_a_run_that_nothing_disturbed():
    assert seconds(STRAIGHT) == {
        "useful": 6, "compile": 5, "start": 5, "evaluation": 1, "checkpoint": 3, "other": 3,
    }  # fmt: skip
    found = total(STRAIGHT)
    assert found.wall_s == 23
    assert found.ratio == 6 / 23
    assert (found.steps, found.replayed_steps) == (3, 0)


KILLED = [
    said(0, "job", job="a"),
    begin(0.5, 1),
    *phases(0, 1, *START, (12, "step", 2), (14, "step", 3), (16, "step", 4)),
    said(17, "worker-ended", host=1, code=137),
    said(17.5, "fault", kind="killed"),
    said(18, "worker-ended", code=134),
    begin(20, 2),
    *phases(0, 2, (21, "start", 0), (23, "compile", 0), (24, "restore", 0), (26, "step", 3)),
    *phases(0, 2, (28, "step", 4), (30, "end", 4)),
    said(31, "stopped", code=0),
]


def test_a_kill_costs_the_step_it_cut_off_the_restart_and_the_steps_made_again():
    assert seconds(KILLED) == {
        "useful": 6 + 2,
        "recomputed": 1 + 2,  # step 4 was cut off behind one second, step 3 is made again
        "compile": 5 + 1,
        "start": 5,
        "restart": 4 + 2 + 2,  # from 17 to 23 less nothing, and to the first step
        "other": 1,
    }
    assert total(KILLED).replayed_steps == 1


def test_what_hung_is_stalled_but_for_the_length_of_a_step():
    hung = [event for event in KILLED if event["time"] < 17]
    late = [event | {"time": event["time"] + 30} for event in KILLED if event["time"] >= 17]
    stuck = {"role": "worker", "host": 1, "attempt": 1, "event": "stuck", "time": 46.5}
    found = seconds([*hung, stuck, *late])
    assert found["recomputed"] == 2 + 2
    assert found["stalled"] == 31 - 2
    assert found["useful"] == 8


def test_a_first_compile_that_hangs_is_stalled_if_it_was_reported():
    events = [said(0, "job", job="a"), begin(1, 1), *phases(0, 1, (1, "start", 0))]
    events += [*phases(0, 1, (2, "compile", 0)), said(9, "fault"), said(10, "stopped", code=1)]
    assert seconds(events) == {"start": 2, "compile": 7, "restart": 1}
    stuck = {"role": "worker", "host": 0, "attempt": 1, "event": "stuck", "time": 9}
    assert seconds([*events, stuck]) == {"start": 2, "stalled": 7, "restart": 1}


def test_a_fault_that_an_attempt_outlives_costs_nothing_by_itself():
    assert seconds([*STRAIGHT, said(13, "fault", kind="slow-disk")]) == seconds(STRAIGHT)


def test_a_roll_back_is_a_restart_and_an_audit_is_not():
    events = [said(0, "job", job="a"), begin(1, 1), *phases(0, 1, (1, "start", 0), (2, "step", 1))]
    events += phases(0, 1, (3, "step", 2), (4, "audit", 2), (6, "restore", 2), (9, "step", 2))
    events += [*phases(0, 1, (10, "step", 3), (11, "end", 3)), said(12, "stopped", code=0)]
    assert seconds(events) == {"start": 2, "useful": 3, "recomputed": 1, "restart": 3, "other": 3}


def test_the_first_member_speaks_also_when_host_0_is_lost():
    alone = [begin(30.5, 2, [1]), *phases(1, 2, (31, "start", 0), (32, "step", 4))]
    alone += [*phases(1, 2, (36, "end", 4)), said(37, "stopped", code=0, host=1)]
    found = seconds([event for event in KILLED if event["time"] < 19] + alone)
    assert found["useful"] == 6 + 4


def test_the_night_between_two_jobs_is_not_lost():
    later = [event | {"time": event["time"] + 1000} for event in KILLED]
    second = [event | ({"job": "b"} if event["event"] == "job" else {}) for event in later]
    found = total([*KILLED, *second])
    assert found.away_s == 1000 - 31
    assert found.wall_s == 2 * 31
    assert found.start_s == 2 * 5  # somebody gave a command
    assert found.useful_s == 8  # the second job makes nothing new
    # The same job: a supervisor that was killed has been started again.
    assert total([*KILLED, *later]).away_s == 0


def test_processes_without_supervisors_are_jobs_of_their_own():
    plain = [*phases(0, 0, *START, (12, "step", 2), (14, "end", 2))]
    again = [event | {"time": event["time"] + 100} for event in plain]
    found = total([*plain, *again])
    assert (found.useful_s, found.recomputed_s, found.away_s) == (4, 4, 101 - 14)
    assert found.wall_s == 26


def test_no_event_is_no_time():
    assert total([]).ratio is None
    assert total([]).describe() == "goodput: no event was written"


def test_a_line_says_the_largest_losses_first():
    line = total(KILLED).describe()
    assert line == (
        "goodput 25.8% of 31.0 s: useful 8.0 s, restart 8.0 s, compile 6.0 s, start 5.0 s, "
        "recomputed 3.0 s, other 1.0 s; 1 steps made again"
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
    found = total(events)
    assert min(found.useful_s, found.away_s, *found.lost_s.values()) >= 0
    own = [event["time"] for event in events if event["role"] != "chaos"]
    extent = own[-1] - own[0] if own else 0
    assert found.wall_s + found.away_s == pytest.approx(extent)


@given(histories, st.integers(0, 60))
def test_a_history_without_its_tail_never_shows_more_that_was_useful(events, left):
    cut, whole = total(events[:left]), total(events)
    assert cut.useful_s <= whole.useful_s + 1e-9
    assert cut.steps <= whole.steps


def test_an_event_that_was_cut_short_is_left_out(tmp_path):
    log = EventLog(tmp_path, 0, "worker", 1)
    for phase, step in (("start", 0), ("step", 1), ("step", 2), ("end", 2)):
        log.write("phase", phase=phase, step=step)
    log.close()
    (file,) = (tmp_path / "events").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    found = goodput.account(tmp_path)
    assert (found.steps, found.other_s) == (1, 0)


def test_causes_are_all_that_wall_time_is_lost_to():
    fields = {name for name in Goodput.__dataclass_fields__ if name.endswith("_s")}
    assert fields == {f"{name}_s" for name in (*CAUSES, "useful", "away")}


def test_a_real_run_adds_up_and_says_so(tmp_path, text):
    job = ("--model", SMALL, "--mesh=1x1", "--precision=fp32", "--data", text, "--steps=6")
    done = command("train", *job, "--run-dir", tmp_path / "run", "--metrics-port=0", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["goodput"]
    assert found["steps"] == 6
    assert 0 < found["useful_s"] < found["wall_s"]
    assert found["compile_s"] > 0
    assert found["start_s"] > 0
    parts = sum(found[f"{cause}_s"] for cause in ("useful", *CAUSES))
    assert parts == pytest.approx(found["wall_s"])
    table = command("goodput", "--run-dir", tmp_path / "run")
    assert "useful" in table.stdout
    assert "compile" in table.stdout
    again = json.loads(command("goodput", "--run-dir", tmp_path / "run", "--json").stdout)
    assert again["steps"] == 6
    assert again["useful_s"] == pytest.approx(found["useful_s"])


def test_a_folder_without_events_is_refused(tmp_path):
    refused = command("goodput", "--run-dir", tmp_path)
    assert refused.returncode == 2
    assert "--run-dir" in refused.stderr
