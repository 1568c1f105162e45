"""Pods, of which each is told alone that its node is drained."""

import os
import signal
import subprocess
import sys

import pytest

from exajax.job import local_hosts
from exajax.resilience.control import Control
from tests.jobs.processes import left_over, wait_until


def pod(number, run_dir, text):
    """Starts the process of a pod; its name and its service make up an address of this machine."""
    env = {
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
        "JOB_COMPLETION_INDEX": str(number),
        "EXAJAX_PODS": "2",
        "EXAJAX_JOB": "3f0c2d1e",
        "HOSTNAME": "127",
        "EXAJAX_COORDINATOR": f"127.0.0.1:{local_hosts.free_port()}",
    }
    recipe = ("--model", "llama-tiny", "--mesh", "2x1", "--precision", "fp32", "--seq", "32")
    flags = ("--steps", "60", "--save-every", "10", "--metrics-port", "0", "--data", str(text))
    return subprocess.Popen(
        [sys.executable, "-m", "exajax", "train", *recipe, *flags, "--run-dir", str(run_dir)],
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=(run_dir.parent / f"log-{number}").open("a"),
    )


@pytest.mark.slow
def test_a_drained_pod_leaves_the_job_to_the_others_though_it_was_the_leader(tmp_path, text):
    run_dir = tmp_path / "run"
    control = Control(run_dir)
    pods = {number: pod(number, run_dir, text) for number in (0, 1)}

    def trains(attempt):
        workers = [control.worker(number) for number in pods]
        return all(w and w.attempt == attempt and w.phase == "step" for w in workers)

    try:
        wait_until(lambda: trains(1), 120)
        leader = next(n for n in pods if f'"host":{n}' in lease(control).replace(" ", ""))
        pods[leader].send_signal(signal.SIGTERM)
        assert pods[leader].wait(60) == 130
        assert pods[1 - leader].poll() is None
        pods[leader] = pod(leader, run_dir, text)
        wait_until(lambda: trains(2), 120)
        assert [pods[number].wait(200) for number in (0, 1)] == [0, 0]
    finally:
        for process in pods.values():
            process.kill()
    assert control.attempt().code == 0
    assert not left_over(run_dir)


def lease(control):
    return max(control.folder.glob("lease-*")).read_text()
