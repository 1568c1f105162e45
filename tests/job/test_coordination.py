"""JAX's coordination service in a real process: keys, time limits, and SIGTERM."""

import subprocess
import sys

import pytest

from exajax.job.local_hosts import free_port
from tests.conftest import REPOSITORY

JOB = """
import os, signal, sys, time
import jax
from exajax.job import coordination

jax.config.update("jax_num_cpu_devices", 1)
coordination.leave_sigterm_alone()
jax.distributed.initialize(f"127.0.0.1:{sys.argv[1]}", 1, 0)
assert (coordination.process(), coordination.processes()) == (0, 1)
coordination.put("topic/1", "a word")
assert coordination.wait_for("topic/1", 5.0) == "a word"
assert coordination.wait_for("topic/2", 0.1) is None
coordination.remove("topic")
assert coordination.wait_for("topic/1", 0.1) is None

coordination.catch_sigterm()
assert not coordination.sigterm_ends_at(1)
coordination.catch_sigterm()  # a second time changes nothing
os.kill(os.getpid(), signal.SIGTERM)
deadline_s, step = time.monotonic() + 20, 1
while not coordination.sigterm_ends_at(step := step + 1):
    assert time.monotonic() < deadline_s
    time.sleep(0.05)
assert coordination.gather([step]).tolist() == [[step]]
coordination.barrier("the end")
print("all done")
"""


@pytest.mark.jax_surface
def test_the_service_stores_keys_times_out_and_turns_sigterm_into_a_step():
    done = subprocess.run(
        [sys.executable, "-c", JOB, str(free_port())],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=REPOSITORY,
    )
    assert done.stdout.splitlines()[-1:] == ["all done"], done.stderr[-2000:]
