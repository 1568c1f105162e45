"""`exajax tokenise` as it is run."""

import itertools
import json
import signal

import pytest

from tests.conftest import command
from tests.jobs.processes import Job, wait_until


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, text):
    out = tmp_path_factory.mktemp("dataset") / "windows"
    result = command("tokenise", "--data", text, "--seq", 32, "--out", out, "--json")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1
    return out, json.loads(result.stdout)


def test_it_says_what_it_made(dataset, text):
    out, result = dataset
    assert result["tokens"] == text.stat().st_size + 1
    assert result["documents"] == 1
    assert result["windows"]["train"] > 10 * result["windows"]["held_out"] > 0
    assert {path.name for path in out.iterdir()} == {
        "dataset.json", "train-00000.array_record", "held_out-00000.array_record"
    }  # fmt: skip


def test_ctrl_c_leaves_nothing(tmp_path):
    big = tmp_path / "big.jsonl"
    with big.open("w") as file:
        line = json.dumps({"text": "some words to number, again and again. " * 20}) + "\n"
        file.writelines(itertools.repeat(line, 400_000))  # some seconds of work
    for number, asked in enumerate((signal.SIGINT, signal.SIGTERM)):
        folder = tmp_path / f"out-{number}"
        flags = ("--data", big, "--seq", 64, "--out", folder / "windows")
        with Job(tmp_path / "log", "tokenise", *flags) as job:
            wait_until(lambda: any(folder.glob(".windows.*/train-*")), 60)  # noqa: B023
            job.signal(asked)  # how long that takes is the disk's matter
            assert job.process.returncode == 130, job.log.read_text()[-3000:]
        assert not list(folder.iterdir())


def test_bad_input_is_one_line_and_nothing_written(dataset, text, tmp_path):
    out = tmp_path / "out"
    for flags, says in (
        (("--data", tmp_path / "none", "--seq", 32), "--data:"),
        (("--data", text, "--seq", 0), "--seq:"),
        (("--data", text, "--seq", 100_000), "--data:"),
        (("--data", dataset[0], "--seq", 32), "is tokenised already"),
        (("--data", text, "--seq", 32, "--tokenizer", text), "--tokenizer:"),
    ):
        result = command("tokenize", *flags, "--out", out)
        assert result.returncode == 2, result
        assert says in result.stderr
        assert result.stderr.count("\n") == 1
        assert not out.exists()
