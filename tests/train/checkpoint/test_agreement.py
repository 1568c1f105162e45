"""Processes agree, and the one that does not come is named."""

import subprocess
import sys

import pytest

from exajax.job.local_hosts import free_port
from tests.conftest import REPOSITORY

JOB = """
import sys
import jax
from exajax.train.checkpoint.agreement import Agreement, NotAgreedError

me, port = map(int, sys.argv[1:])
jax.config.update("jax_num_cpu_devices", 1)
jax.distributed.initialize(f"127.0.0.1:{port}", 3, me)
agreement = Agreement()
print("all", agreement.on("all", {"from": me}, lambda said: [word["from"] for word in said]))
if me != 2:
    try:
        agreement.on("late", None, lambda said: said, limit_s=1)
    except NotAgreedError as error:
        print("late", error)
try:
    agreement.on("wrong", me, lambda said: 1 // 0)
except (ZeroDivisionError, NotAgreedError) as error:
    print("wrong", error)
agreement.forget("all")
agreement.on("again", me, sum)
if me == 0:
    agreement._set("all/answer", {"value": "new"})  # an old one would not be written over
sys.stdout.flush()
"""


@pytest.mark.jax_surface
def test_all_have_the_answer_of_the_first_and_know_who_is_absent():
    port = free_port()
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", JOB, str(me), str(port)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )
        for me in range(3)
    ]
    outs = [job.communicate(timeout=60)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0, 0]
    said = [[line for line in out.splitlines() if not line.startswith("[Gloo]")] for out in outs]
    absent = "late process 2 did not come to late within 1 s"
    wrong = "wrong integer division or modulo by zero"
    assert said[0] == said[1] == ["all [0, 1, 2]", absent, wrong]
    assert said[2] == ["all [0, 1, 2]", wrong]
