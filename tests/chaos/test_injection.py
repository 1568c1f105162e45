"""Injection of faults into real processes and files, without training."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from types import MappingProxyType

import pytest

from exajax.chaos import disk, processes
from exajax.chaos.end_state import compare_samples
from exajax.chaos.faults import Fault
from exajax.chaos.injections import JobUnderTest
from exajax.chaos.injector import Injector
from exajax.chaos.outcome import outcomes
from exajax.chaos.self_inflicted import SelfInflictedFaults
from exajax.job.environment import ATTEMPT, CHAOS, HOST
from exajax.job.events import EventLog, read_events
from exajax.resilience.control import Attempt, Control, alive
from exajax.resilience.deadlines import Deadlines
from exajax.train.sinks.records import JsonLines
from tests.jobs.processes import wait_until

SLEEPER = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]


@contextlib.contextmanager
def sleeping(mark, **environment):
    env = os.environ | {CHAOS.name: mark} | environment
    process = subprocess.Popen(SLEEPER, env=env, stdout=subprocess.PIPE)
    process.stdout.readline()
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def worker(mark, host, attempt):
    return sleeping(mark, **{ATTEMPT.name: f"{host}:{attempt}", HOST.name: "0"})


def supervisor(mark, host):
    return sleeping(mark, **{HOST.name: str(host)})


@pytest.fixture
def target(tmp_path, request):
    (tmp_path / "fired").mkdir()
    (tmp_path / "run" / ".job").mkdir(parents=True)
    mark = f"{request.node.name}-{os.getpid()}"
    return JobUnderTest(tmp_path / "run", 2, mark, tmp_path / "fired")


@contextlib.contextmanager
def injecting(target, *faults):
    events = EventLog(target.run_dir, 0, "chaos")
    injector = Injector(faults, target, events)
    try:
        yield injector
    finally:
        injector.lift_all()
        events.close()


def injected(target):
    return [event for event in read_events(target.run_dir) if event["event"] == "injected"]


def state_of(pid):
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]


def test_processes_of_every_role_are_found_by_their_mark(target):
    with (
        worker(target.mark, 1, 7) as w,
        supervisor(target.mark, 1) as s,
        sleeping(target.mark) as p,
    ):
        result = processes.marked_processes(target.mark)
        assert {(x.pid, x.role, x.host, x.attempt) for x in result} == {
            (w.pid, "worker", 1, 7),
            (s.pid, "supervisor", 1, 0),
            (p.pid, "parent", None, 0),
        }
        assert processes.select(result, "worker", 1).pid == w.pid
        assert processes.select(result, "worker", 0) is None
        assert processes.select(result, "parent", None).pid == p.pid
        assert processes.marked_processes("another mark") == []
        processes.kill_all(target.mark, time.sleep)
        assert processes.marked_processes(target.mark) == []


def test_a_kill_waits_for_its_target_and_hits_no_other_process(target):
    fault = Fault(3, "kill", 1, "supervisor", at_s=0.0)
    with injecting(target, fault) as injector, worker(target.mark, 1, 1) as bystander:
        injector.round()
        assert injector.pending == [fault]
        with supervisor(target.mark, 1) as hit:
            injector.round()
            assert hit.wait(5) == -signal.SIGKILL
        assert not injector.pending
        assert alive(bystander.pid)
    (logged,) = injected(target)
    assert (logged["id"], logged["kind"], logged["target"]) == (3, "kill", 1)
    assert (logged["process"], logged["pid"]) == ("supervisor", hit.pid)


def test_a_process_is_killed_once_even_if_it_ends_slowly(target):
    faults = [Fault(number, "kill", 0, at_s=0.0) for number in range(2)]
    with injecting(target, *faults) as injector, worker(target.mark, 0, 1):
        injector.round()
        injector.round()
        assert [fault.id for fault in injector.pending] == [1]


def test_a_stopped_process_continues_after_the_duration(target):
    fault = Fault(0, "stop", 0, at_s=0.0, duration_s=0.3)
    with injecting(target, fault) as injector, worker(target.mark, 0, 1) as process:
        injector.round()
        wait_until(lambda: state_of(process.pid) == "T", 5)
        injector.round()
        assert state_of(process.pid) == "T"
        time.sleep(0.3)
        injector.round()
        wait_until(lambda: state_of(process.pid) == "S", 5)
    names = [event["event"] for event in read_events(target.run_dir)]
    assert names == ["injected", "lifted"]


def test_a_slow_host_is_stopped_for_its_share_of_the_time(target):
    share = MappingProxyType({"share": 0.6})
    fault = Fault(0, "slow-host", 0, at_s=0.0, duration_s=2.0, details=share)
    seen = []
    with injecting(target, fault) as injector, worker(target.mark, 0, 1) as process:
        while not seen or len(seen) < 190:
            injector.round()
            seen.append(state_of(process.pid))
            time.sleep(0.01)
        assert 0.35 < seen.count("T") / len(seen) < 0.85
        time.sleep(0.5)
        injector.round()
        wait_until(lambda: state_of(process.pid) == "S", 5)


def test_a_step_or_a_phase_makes_a_fault_due(target):
    faults = [Fault(0, "kill", 0, step=5), Fault(1, "kill", 1, phase="checkpoint")]
    logs = [EventLog(target.run_dir, host, "worker", 1) for host in range(2)]
    with (
        injecting(target, *faults) as injector,
        worker(target.mark, 0, 1),
        worker(target.mark, 1, 1),
    ):
        for step in (3, 4):
            logs[0].write("phase", phase="step", step=step)
        logs[1].write("phase", phase="step", step=9)
        injector.round()
        assert len(injector.pending) == 2
        logs[0].write("phase", phase="step", step=5)
        injector.round()
        assert [fault.id for fault in injector.pending] == [1]
        # The phase began and ended between two rounds.
        logs[1].write("phase", phase="checkpoint", step=9)
        logs[1].write("phase", phase="step", step=10)
        injector.round()
        assert not injector.pending
    assert [(logged["phase"], logged["step"]) for logged in injected(target)] == [
        ("step", 5),
        ("step", 10),
    ]


def test_the_coordinator_is_the_worker_of_the_first_member(target):
    Control(target.run_dir).publish(Attempt(4, 1, "job", "run", members=(1, 0)))
    fault = Fault(0, "lost-coordinator", at_s=0.0)
    with injecting(target, fault) as injector, worker(target.mark, 0, 4) as other:
        with worker(target.mark, 1, 4) as first:
            injector.round()
            assert first.wait(5) == -signal.SIGKILL
        assert alive(other.pid)
    assert injected(target)[0]["target"] == 1


def checkpoint(target, step, size=4096):
    folder = target.checkpoints / str(step)
    (folder / "state").mkdir(parents=True)
    (folder / "state" / "array").write_bytes(bytes(range(256)) * (size // 256))
    (folder / "about.json").write_text("{}")
    return folder


def content(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_newest_checkpoint_is_damaged_while_all_workers_are_stopped(target):
    old, new = checkpoint(target, 10), checkpoint(target, 20)
    (target.checkpoints / "30.saving").mkdir()
    fault = Fault(0, "bit-flip", 1, at_s=0.0)
    before = content(new)
    with injecting(target, fault) as injector, worker(target.mark, 0, 1) as other:
        with worker(target.mark, 1, 1) as hit:
            injector.round()
            assert hit.wait(5) == -signal.SIGKILL
        wait_until(lambda: state_of(other.pid) == "S", 5)
    after = content(new)
    flipped = sum(
        (a ^ b).bit_count()
        for name in before
        for a, b in zip(before[name], after[name], strict=True)
    )
    assert flipped == 1
    assert content(old) == before
    (logged,) = injected(target)
    assert logged["damaged"]["step"] == 20
    assert logged["committing"]


def test_the_only_checkpoint_is_not_damaged(target):
    before = content(checkpoint(target, 10))
    with (
        injecting(target, Fault(0, "bit-flip", 0, at_s=0.0)) as injector,
        worker(target.mark, 0, 1),
    ):
        injector.round()
        assert injector.pending
        assert content(target.checkpoints / "10") == before
        checkpoint(target, 20)
        injector.round()
        assert not injector.pending


def test_a_truncation_cuts_its_share_of_a_file_that_follows_from_the_fault(target):
    sizes = []
    for step in (1, 2):
        folder = checkpoint(target, step)
        facts = disk.damage(Fault(5, "truncate", at_s=0.0), folder)
        sizes.append((facts["file"], (folder / facts["file"]).stat().st_size, facts["bytes"]))
    assert sizes[0] == sizes[1]
    assert sizes[0][1] == sizes[0][2] // 2


def self_inflicted(target, host, *faults, slept=None):
    slept = [] if slept is None else slept
    return SelfInflictedFaults(
        faults, target.fired, time.time(), target.run_dir, host, slept.append
    )


def test_a_self_inflicted_fault_happens_once_over_all_restarts(target):
    fault = Fault(0, "stuck", 1, step=5, duration_s=4.0)
    slept = []
    for _ in range(2):
        process = self_inflicted(target, 1, fault, slept=slept)
        for step in range(1, 8):
            process.progress("step", step)
    assert slept == [4.0]
    other = self_inflicted(target, 0, Fault(1, "stuck", 1, step=5), slept=slept)
    other.progress("step", 6)
    assert slept == [4.0]
    note = json.loads((target.fired / "0").read_text())
    assert (note["host"], note["phase"], note["step"]) == (1, "step", 5)


def test_a_self_inflicted_fault_is_logged_with_its_time(target):
    fault = Fault(0, "stuck", 0, step=2)
    with injecting(target, fault) as injector:
        injector.round()
        assert injector.pending
        self_inflicted(target, 0, fault).progress("step", 2)
        injector.round()
        assert not injector.pending
    (logged,) = injected(target)
    assert logged["time"] == json.loads((target.fired / "0").read_text())["time"]
    assert (logged["kind"], logged["step"]) == ("stuck", 2)


def test_a_slow_disk_delays_a_checkpoint(target):
    slept = []
    process = self_inflicted(
        target, 0, Fault(0, "slow-disk", 0, step=4, duration_s=1.5), slept=slept
    )
    process.progress("step", 3)
    process.before_commit(3)
    process.progress("step", 4)
    process.before_commit(4)
    process.before_commit(5)
    assert slept == [1.5]


def test_all_processes_poison_the_same_step_in_one_attempt_only(target):
    fault = Fault(0, "nan", 1, step=3)
    hosts = [self_inflicted(target, host, fault) for host in range(2)]
    assert [process._factor(1) for process in hosts] == [1.0, 1.0]
    assert [process._factor(2) != process._factor(2) for process in hosts] == [True, True]
    for process in hosts:
        process.progress("step", 3)
    later = self_inflicted(target, 0, fault)
    assert later._factor(2) == 1.0


def event(time_s, name, **facts):
    return {"time": time_s, "event": name, "attempt": 1, "host": 0} | facts


def injected_fault(time_s, kind, target=1, process="worker", **facts):
    about = {"id": 0, "kind": kind, "target": target, "process": process, "attempt": 1}
    return event(time_s, "injected", **about, **facts)


def outcome(*events, deadlines="step=20,silent=8"):
    (result,) = outcomes(events, 100.0, Deadlines.parse(deadlines), 60.0)
    return result


def test_a_kill_is_detected_by_its_host_and_recovered_by_the_next_attempt():
    result = outcome(
        injected_fault(110, "kill", phase="checkpoint", step=4),
        event(110.5, "phase", phase="step", step=5),
        event(111, "worker-ended", host=1),
        event(112, "phase", phase="restore", step=0, attempt=2),
        event(115, "phase", phase="step", step=3, attempt=2),
    )
    assert (result.at_s, result.detected_s, result.recovered_s) == (10.0, 1.0, 5.0)
    assert result.in_time


def test_a_late_detection_is_not_in_time():
    late = (event(140, "fault"), event(150, "phase", phase="step", step=3, attempt=2))
    assert not outcome(injected_fault(110, "kill"), *late).in_time
    assert not outcome(injected_fault(110, "kill")).in_time


def test_a_stop_that_ends_before_its_deadline_need_not_be_detected():
    going = event(113, "phase", phase="step", step=5)
    result = outcome(injected_fault(110, "stop"), event(112, "lifted", id=0), going)
    assert result.deadline_s is None
    assert result.in_time
    assert result.recovered_s == 3.0
    for_ever = outcome(injected_fault(110, "stop"), going)
    assert not for_ever.in_time


def test_damage_is_detected_by_reading_not_by_the_end_of_a_process():
    result = outcome(
        injected_fault(110, "bit-flip"),
        event(110.2, "worker-ended", host=1),
        event(116, "checkpoint-damaged", step=4, attempt=2),
        event(118, "phase", phase="step", step=3, attempt=2),
    )
    assert (result.detected_s, result.recovered_s) == (6.0, 8.0)


def test_a_roll_back_recovers_without_a_new_attempt():
    result = outcome(
        injected_fault(110, "flip-parameter"),
        event(111, "corruption", step=4),
        event(112, "phase", phase="step", step=3),
        event(113, "fault"),
        event(130, "phase", phase="step", step=3, attempt=2),
    )
    assert (result.detected_s, result.recovered_s) == (1.0, 2.0)


def test_a_full_disk_is_recovered_by_the_next_checkpoint():
    result = outcome(
        injected_fault(110, "full-disk"),
        event(111, "checkpoint-failed", step=4),
        event(112, "lifted", id=0),
        event(113, "phase", phase="step", step=6),
        event(114, "checkpoint-saved", step=8),
    )
    assert (result.detected_s, result.recovered_s) == (1.0, 4.0)


def test_missing_and_repeated_samples_are_counted(tmp_path):
    for name, steps in {"one": [[1, 2], [3, 4], [5, 6]], "other": [[1, 2], [3, 3], [5, 6]]}.items():
        (tmp_path / name).mkdir()
        lines = JsonLines(tmp_path / name / "samples.jsonl", 0)
        for step, ids in enumerate(steps, 1):
            lines.log(step, {"ids": ids})
        lines.close()
    assert compare_samples(tmp_path / "one", tmp_path / "one").same
    result = compare_samples(tmp_path / "one", tmp_path / "other")
    assert (result.missing, result.repeated, result.same) == (1, 1, False)
