"""Who is slow, by figures and by real processes; and corruption on one of two hosts."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exajax.job.events import read_events
from exajax.job.local_hosts import COORDINATOR, HOST, HOSTS, free_port
from exajax.train.health.stragglers import FEWEST, Straggler, Stragglers, outliers
from tests.conftest import REPOSITORY

STEP_S = 1.0


def table(replay_s, data_s=None, dispatch_s=None):
    count = len(replay_s)
    none = [0.0] * count
    return np.array([[STEP_S] * count, data_s or none, dispatch_s or none, replay_s]).T


def named(tables, groups=None):
    count = len(tables[0])
    groups = groups or [[process] for process in range(count)]
    stragglers = Stragglers([10 + process for process in range(count)], groups)
    return [stragglers.add(times_s) for times_s in tables]


@given(st.lists(st.floats(0.95, 1.05), min_size=2, max_size=9), st.integers(0, 8))
def test_one_slow_host_is_named_and_even_ones_are_not(times_s, slow):
    assert outliers(np.array(times_s)) == {}
    slow %= len(times_s)
    times_s[slow] = 1.5
    assert list(outliers(np.array(times_s))) == [slow]


def test_of_hosts_that_differ_much_only_one_that_stands_out_is_slow():
    assert outliers(np.array([1.0, 1.2, 1.4, 1.6, 1.8])) == {}
    assert list(outliers(np.array([1.0, 1.2, 1.4, 1.6, 4.0]))) == [4]


def test_a_hiccup_is_no_straggler_and_a_slow_host_is_told_once():
    even, slow = table([0.1, 0.1]), table([0.1, 0.3])
    assert not any(named([even, even, slow, even, even, slow, even]))
    told = named([slow] * (FEWEST + 3))
    assert [len(found) for found in told] == [0] * (FEWEST - 1) + [1, 0, 0, 0]
    (found,) = told[FEWEST - 1]
    assert (found.hosts, found.what, round(found.ratio, 2)) == ((11,), "replay", 3.0)
    recovered = named([slow] * FEWEST + [even] * 5 + [slow] * 5)
    assert sum(map(len, recovered)) == 2


def test_hosts_that_share_a_replica_are_named_together():
    times_s = table([0.1, 0.1, 0.4, 0.4])
    told = named([times_s] * FEWEST, groups=[[0, 1], [2, 3]])
    assert [found.hosts for found in told[-1]] == [(12, 13)]
    assert named([times_s] * FEWEST, groups=[[0, 1, 2, 3]])[-1] == []


def test_a_wait_for_data_counts_by_what_the_step_takes_for_it():
    told = named([table([0.1] * 4, data_s=[0.0, 0.0, 0.5, 0.01])] * FEWEST)
    assert told[-1] == [Straggler((12,), "data", 2.0)]
    assert named([table([0.1] * 4, data_s=[0.0, 0.0, 0.1, 0.01])] * FEWEST)[-1] == []


@contextlib.contextmanager
def job(fault, run_dir, steps):
    """Two hosts of two devices, of which host 1 is at fault."""
    run_dir.mkdir()
    coordinator = f"127.0.0.1:{free_port()}"
    script = "tests.train.health.faulty_host"
    processes = []
    try:
        for host in range(2):
            env = {HOSTS.name: "2", HOST.name: str(host), COORDINATOR.name: coordinator}
            env["JAX_PLATFORMS"] = "cpu"
            with (run_dir / f"log-{host}").open("w") as log:
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", script, fault, str(run_dir), str(steps)],
                        cwd=REPOSITORY,
                        env={**os.environ, **env},
                        stdout=log,
                        stderr=subprocess.STDOUT,
                    )
                )
        yield processes
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()


def finish(processes, run_dir):
    for host, process in enumerate(processes):
        assert process.wait(timeout=120) == 0, (run_dir / f"log-{host}").read_text()[-3000:]
    return read_events(run_dir)


def of(events, name):
    return [event for event in events if event["event"] == name]


def gauge(run_dir, host, name):
    lines = (run_dir / f"gauges-{host}").read_text().splitlines()
    (value,) = [line for line in lines if line.startswith(f'{name}{{host="{host}"}}')]
    return float(value.split()[-1])


def test_the_host_of_a_flipped_bit_is_named_and_the_run_ends_as_if_it_had_not(tmp_path):
    run_dir = tmp_path / "run"
    with job("flip", run_dir, 10) as processes:
        (event,) = of(finish(processes, run_dir), "corruption")
    assert (event["step"], event["hosts"], event["action"]) == (8, [1], "roll-back")
    assert event["certain"]
    assert len(event["devices"]) == 1
    assert "differs on host 1" in (run_dir / "log-0").read_text()


@pytest.mark.slow
def test_a_host_that_reads_slowly_is_named(tmp_path):
    run_dir = tmp_path / "run"
    with job("data", run_dir, 12) as processes:
        found = of(finish(processes, run_dir), "straggler")
    assert [event["hosts"] for event in found if event["what"] == "data"] == [[1]]
    assert gauge(run_dir, 1, "exajax_straggler") == 1


@pytest.mark.slow
def test_a_host_that_gets_a_third_of_the_time_is_named(tmp_path):
    """Host 1 is stopped and let go on, again and again: all it does takes longer."""
    run_dir = tmp_path / "run"
    with job("none", run_dir, 12) as processes:
        running = threading.Event()

        def hinder():
            while not running.wait(0.015) and processes[1].poll() is None:
                processes[1].send_signal(signal.SIGSTOP)
                time.sleep(0.03)
                processes[1].send_signal(signal.SIGCONT)

        log = run_dir / "log-0"
        while "audit every" not in log.read_text() and processes[0].poll() is None:
            time.sleep(0.1)
        thread = threading.Thread(target=hinder)
        thread.start()
        try:
            events = finish(processes, run_dir)
        finally:
            running.set()
            thread.join()
    found = [event for event in of(events, "straggler") if event["what"] == "replay"]
    assert [event["hosts"] for event in found][:1] == [[1]]
    assert found[0]["ratio"] > 1.2
    assert not of(events, "corruption")
    assert all(gauge(run_dir, host, "exajax_replay_seconds") > 0 for host in (0, 1))
