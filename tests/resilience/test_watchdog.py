"""A stuck training process ends itself, and reports where it was stuck."""

import subprocess
import sys
import textwrap
import time

import pytest

from exajax import InputError
from exajax.job.events import PHASES, EventLog, read_events
from exajax.resilience.control import Attempt, Control
from exajax.resilience.deadlines import DEFAULTS_S, FLOOR_S, STEPS, Deadlines
from exajax.resilience.watchdog import STUCK, SUPERSEDED


def process(run_dir, body):
    """Runs a process with a watchdog `watch`, of attempt 3 on host 1, that executes `body`."""
    program = f"""
    import threading, time
    from pathlib import Path
    from exajax.job.events import EventLog
    from exajax.resilience.control import Control
    from exajax.resilience.deadlines import Deadlines
    from exajax.resilience.watchdog import Watchdog
    run_dir = Path({str(run_dir)!r})
    deadlines = Deadlines.parse("step=1,checkpoint=30")
    watch = Watchdog(
        Control(run_dir), 1, 3, deadlines, EventLog(run_dir, 1, "worker", 3), every_step=True
    )
    {body}
    """
    (run_dir / ".job").mkdir(exist_ok=True)
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)])


def test_every_phase_of_training_has_a_deadline():
    assert set(DEFAULTS_S) == {*PHASES, "silent"}


def test_deadlines_survive_a_round_trip_through_text():
    given = Deadlines.parse("step=1.5,silent=30")
    assert Deadlines.parse(str(given)) == given
    assert Deadlines.parse(str(Deadlines.parse(""))) == Deadlines.parse("")


def test_a_stuck_process_dumps_its_stacks_and_ends(tmp_path):
    stuck = process(
        tmp_path, 'watch.progress("step", 1); watch.progress("step", 2); threading.Event().wait()'
    )
    assert stuck.wait(timeout=30) == STUCK
    event = read_events(tmp_path)[-1]
    assert (event["event"], event["phase"], event["step"]) == ("stuck", "step", 2)
    assert 1 < event["waited_s"] < 3
    stacks = (tmp_path / event["stacks"]).read_text()
    assert "threading.py" in stacks
    assert "in <module>" in stacks
    status = Control(tmp_path).worker(1)
    assert (status.phase, status.step, status.turns, status.attempt) == ("step", 2, 2, 3)


def test_a_process_that_makes_progress_is_left_alone(tmp_path):
    steps = "[(watch.progress('step', n), time.sleep(0.1)) for n in range(25)]"
    body = f"{steps}; watch.progress('checkpoint', 25)"
    assert process(tmp_path, body).wait(timeout=30) == 0
    assert [e["step"] for e in read_events(tmp_path) if e["phase"] == "step"] == list(range(25))


def test_a_process_whose_attempt_is_over_ends(tmp_path):
    old = process(tmp_path, "watch.progress('checkpoint', 8); threading.Event().wait()")
    deadline = time.monotonic() + 20
    while Control(tmp_path).worker(1) is None and time.monotonic() < deadline:
        time.sleep(0.05)
    Control(tmp_path).publish(Attempt(4, 1, "job", "run", (0, 1)))
    assert old.wait(timeout=10) == SUPERSEDED


def test_the_deadline_of_a_step_follows_from_the_median_of_timed_steps():
    assert Deadlines({}).of("step", [1.0] * 3) == DEFAULTS_S["step"]
    assert Deadlines({}).of("step", [5.0] * 50) == STEPS * 5.0
    assert Deadlines({}).of("step", [0.01] * 50) == FLOOR_S
    assert Deadlines.parse("step=7").of("step", [5.0] * 50) == 7.0


@pytest.mark.parametrize(
    "text", ["stepp=3", "step=", "step=-1", "step=nan", "step=inf", "step", "step=1,step=2"]
)
def test_an_impossible_deadline_is_refused_by_name(text):
    with pytest.raises(InputError, match=r"deadlines: .*step"):
        Deadlines.parse(text)


def test_a_truncated_line_spoils_no_other(tmp_path):
    log = EventLog(tmp_path, 0, "worker", 1)
    log.write("phase", phase="step", step=1)
    log.close()
    path = tmp_path / "events" / "0-worker.jsonl"
    path.write_bytes(path.read_bytes() + b'{"time": 17')
    second = EventLog(tmp_path, 0, "worker", 2)
    second.write("phase", phase="step", step=2)
    second.close()
    assert [event["step"] for event in read_events(tmp_path)] == [1, 2]
