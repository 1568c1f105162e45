"""A host that is lost, and comes back: the job goes on with what is there."""

import json
import os
import signal

import pytest

from exajax.job.events import read_events
from exajax.resilience.control import Control
from tests.conftest import command
from tests.jobs.processes import Job, left_over, wait_until

STEPS = 60


def flags(run_dir, text):
    return (
        *("--model", "llama-tiny", "--mesh", "2x1", "--precision", "fp32", "--seq", 32),
        *("--hosts", 2, "--data", text, "--run-dir", run_dir, "--metrics-port", 0),
        *("--steps", STEPS, "--save-every", 5, "--min-hosts", 1, "--host-wait", 1, "--json"),
    )


def samples(run_dir):
    records = [json.loads(line) for line in (run_dir / "samples.jsonl").open()]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    return [record["ids"] for record in records]


@pytest.mark.slow
def test_a_lost_host_is_done_without_and_taken_back(tmp_path, text):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    straight = command("train", *flags(undisturbed, text))
    assert straight.returncode == 0, straight.stderr[-3000:]
    control = Control(disturbed)

    def runs_on(members):
        attempt, worker = control.attempt(), control.worker(0)
        current = attempt and worker and worker.attempt == attempt.number
        return current and attempt.members == members and worker.phase == "step"

    with Job(tmp_path / "log", "train", *flags(disturbed, text)) as job:
        wait_until(lambda: runs_on((0, 1)), 120)
        (control.folder / "drain-1").touch()  # for good: nobody starts it again
        os.kill(control.host(1).pid, signal.SIGKILL)
        wait_until(lambda: runs_on((0,)), 120)
        (control.folder / "drain-1").unlink()
        wait_until(lambda: runs_on((0, 1)), 120)
        job.process.wait(timeout=200)
        assert job.process.returncode == 0, job.log.read_text()[-3000:]
    assert not left_over(disturbed)
    meshes = [e["mesh"] for e in read_events(disturbed) if e["event"] == "attempt" if not e["host"]]
    assert meshes == ["2x1", "1x1", "2x1"]
    assert samples(disturbed) == samples(undisturbed)
    before = json.loads(straight.stdout)["losses"]
    after = [json.loads(line) for line in (disturbed / "metrics.jsonl").open()]
    assert [r["loss"] for r in after if "loss" in r] == pytest.approx(before, rel=1e-4)
