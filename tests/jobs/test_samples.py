"""The same samples in the same order, whatever ends a run and on however many hosts it goes on."""

import json
import signal

import numpy as np
import pytest

from tests.conftest import command
from tests.jobs.processes import SMALL, Job, left_over, wait_until
from tests.train.data.conftest import folder, tokenizer_file  # noqa: F401 - fixtures

STEPS = 60


def flags(run_dir, data, hosts):
    return (
        *("--model", SMALL, "--mesh", "2x2", "--precision", "fp32"),
        *("--hosts", hosts, "--data", data, "--run-dir", run_dir, "--metrics-port", 0),
        *("--steps", STEPS, "--save-every", 4, "--json"),
    )


def samples(run_dir):
    records = [json.loads(line) for line in (run_dir / "samples.jsonl").open()]
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    return [record["ids"] for record in records]


@pytest.fixture(scope="module")
def mixture(tmp_path_factory, text, folder):  # noqa: F811
    """A tokenised dataset and a text, mixed."""
    out = tmp_path_factory.mktemp("mixture") / "windows"
    made = command("tokenise", "--data", folder, "--seq", 32, "--out", out)
    assert made.returncode == 0, made.stderr
    return f"0.7:{out},0.3:{text}"


@pytest.mark.slow
def test_a_killed_run_goes_on_with_the_same_samples_on_another_number_of_hosts(tmp_path, mixture):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    checkpoints = killed / "checkpoints"
    straight = command("train", *flags(undisturbed, mixture, 2))
    assert straight.returncode == 0, straight.stderr
    with Job(tmp_path / "log", "train", *flags(killed, mixture, 2)) as job:
        wait_until(lambda: any(p.name.isdigit() for p in checkpoints.glob("*")), 120)
        job.signal(signal.SIGKILL)
        wait_until(lambda: not left_over(killed), 10)
    assert 4 <= len(samples(killed)) < STEPS
    resumed = command("train", *flags(killed, mixture, 1))
    assert resumed.returncode == 0, resumed.stderr
    before, after = json.loads(straight.stdout), json.loads(resumed.stdout)
    assert after["resumed_from"] >= 4
    assert after["devices"]["processes"] == 1
    assert 0 <= after["data_wait"] < 0.5
    assert samples(killed) == samples(undisturbed)
    assert len(np.unique(samples(killed))) > 100
    # Other hosts add up in another order: a rounding apart.
    assert after["losses"] == pytest.approx(before["losses"], rel=1e-4)


def test_another_tokenizer_than_the_checkpoints_is_refused(tmp_path, text, tokenizer_file):  # noqa: F811
    job = ("--model", SMALL, "--mesh", "1x1", "--precision", "fp32", "--metrics-port", 0)
    job = (*job, "--data", text, "--run-dir", tmp_path / "run", "--steps", 2)
    first = command("train", *job, "--tokenizer", tokenizer_file)
    assert first.returncode == 0, first.stderr
    second = command("train", *job, "--tokenizer", "bytes")
    assert second.returncode == 2
    assert second.stderr.count("\n") == 1
    assert "data.tokenizer is 'tokenizer.json" in second.stderr


def test_packed_documents_train(tmp_path, text):
    job = (f"--model={SMALL}", "--mesh=1x1", f"--data={text}", "--precision=fp32")
    rest = ("--steps=3", "--packed", f"--run-dir={tmp_path / 'run'}", "--metrics-port=0")
    result = command("train", *job, *rest)
    assert result.returncode == 0, result.stderr
    assert "done at step 3" in result.stdout
