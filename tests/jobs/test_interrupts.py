"""Ctrl-C and SIGTERM at every moment of real commands: one line, 130, nothing left running."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from exajax.cli import train
from exajax.job.goodput import Goodput
from exajax.resilience.control import Control
from tests.jobs.processes import FRONT_DOOR, Job, left_over, wait_until

MODULE = ("-m", "exajax")
SIMULATE = ("simulate", "--mesh=2x2", "--model=gpt-tiny")

SLOW = pytest.mark.slow


def interrupted_at(imported, *argv):
    """Sends SIGINT as soon as a module was imported; returns the exit code and standard error."""
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", *map(str, argv)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    kill = threading.Timer(60, process.kill)
    kill.start()
    lines = []
    for line in process.stderr:
        if line.startswith("import time:"):
            if imported and line.rpartition("|")[2].strip() == imported:
                process.send_signal(signal.SIGINT)
                imported = ""
        else:
            lines.append(line)
    kill.cancel()
    assert imported == "", f"{imported} was not imported"
    return process.wait(), lines


@pytest.mark.parametrize(
    ("module", "argv"),
    [
        ("argparse", (*MODULE, "doctor")),
        ("exajax.cli.flags", (*MODULE, "train")),
        pytest.param("numpy", (*MODULE, *SIMULATE), marks=SLOW),
        pytest.param("exajax.cli.train", (*MODULE, "train", "--help"), marks=SLOW),
        pytest.param("exajax.cli.validate", (*MODULE, "validate"), marks=SLOW),
        ("flax", (*MODULE, *SIMULATE)),
        pytest.param("exajax.cli.dispatch", (FRONT_DOOR, "--mesh=128x8"), marks=SLOW),
        ("exajax.cli.main_job", (FRONT_DOOR, "--mesh=128x8")),
    ],
)
def test_ctrl_c_while_modules_are_imported_is_one_line_and_130(module, argv):
    code, lines = interrupted_at(module, *argv)
    assert "".join(lines) == "exajax: interrupted\n"
    assert code == 130


def test_the_installed_command_catches_ctrl_c_too():
    program = os.path.join(os.path.dirname(sys.executable), "exajax")
    code, lines = interrupted_at("exajax.cli.flags", program, "doctor")
    assert (code, lines) == (130, ["exajax: interrupted\n"])


def started(run_dir, hosts, *flags):
    job = ("--model", "llama-tiny", "--mesh", "2x2", "--hosts", hosts, "--steps", 100_000)
    where = ("--run-dir", run_dir, "--metrics-port", 0)
    return Job(run_dir.with_name("log"), "train", *job, *where, *flags)


def at(run_dir, phase):
    workers = [Control(run_dir).worker(host) for host in range(2)]
    return all(worker is not None and worker.phase == phase for worker in workers)


@pytest.mark.parametrize(
    ("number", "phase", "seq"),
    [
        (signal.SIGINT, "compile", 64),
        pytest.param(signal.SIGINT, "start", 64, marks=SLOW),
        pytest.param(signal.SIGTERM, "compile", 32, marks=SLOW),
    ],
)
def test_a_job_that_does_not_train_yet_leaves_at_once_and_nothing_behind(
    tmp_path, number, phase, seq
):
    run_dir = tmp_path / "run"
    with started(run_dir, 2, "--seq", seq) as job:
        wait_until(lambda: at(run_dir, phase), 60)
        job.signal(number)
        assert job.process.returncode == 130
        assert job.log.read_text().splitlines()[-1] == "exajax: interrupted"
        assert job.log.read_text().count("exajax: interrupted") == 1
        assert not left_over(run_dir)
    assert not run_dir.exists()  # it would, had a step been made


def test_what_is_interrupted_before_an_evaluation_says_so():
    result = {
        "step": 3,
        "interrupted": True,
        "step_time_s": {"p50": None, "p95": None},
        "validation_loss": None,
        "validation_accuracy": None,
        "below_unigram_entropy": False,
        "unigram_entropy": 3.0,
        "goodput": Goodput(useful_s=1.0, steps=3).to_json(),
    }
    assert "measured: nothing was evaluated yet\n" in train.describe(result)


def listening(pid):
    """Returns the IPv4 addresses, in hex, and "::", that a process has TCP sockets listen on."""
    inodes = set()
    for entry in os.listdir(f"/proc/{pid}/fd"):
        target = os.readlink(f"/proc/{pid}/fd/{entry}")
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    found = set()
    for table in ("tcp", "tcp6"):
        with open(f"/proc/{pid}/net/{table}") as file:
            for line in list(file)[1:]:
                local, state, inode = (line.split()[n] for n in (1, 3, 9))
                if state == "0A" and inode in inodes:
                    found.add(local.partition(":")[0])
    return found


@pytest.mark.slow
def test_a_job_on_one_machine_listens_on_loopback_alone(tmp_path):
    run_dir = tmp_path / "run"
    with started(run_dir, 2, "--seq", 64) as job:
        wait_until(lambda: at(run_dir, "compile"), 120)
        addresses = listening(Control(run_dir).worker(0).pid)
        job.signal(signal.SIGINT)
    assert addresses, "the coordinator listens somewhere"
    assert addresses <= {"0100007F", "0000000000000000FFFF00000100007F"}
