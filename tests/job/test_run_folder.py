"""Checks of a run folder before a run starts."""

import os
import shutil
from pathlib import Path

import pytest

from exajax.errors import InputError
from exajax.job import run_folder

JOB = {"recipe": {"seed": 0}}
FOLDERS = (".job", "checkpoints", "checkpoints/damaged", "events", "prometheus", "tensorboard")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run_folder.RunFolder.open(tmp_path / "run", JOB, lock=False)
    for name in FOLDERS:
        (tmp_path / "run" / name).mkdir(exist_ok=True)
    run_folder.check(tmp_path / "run", JOB)
    return tmp_path / "run"


def a_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def a_file(path: Path) -> None:
    shutil.rmtree(path)
    path.touch()


def nowhere(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    path.symlink_to("nowhere")


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("harm", "name"),
    [
        *((harm, name) for name in FOLDERS for harm in (a_file, nowhere)),
        *((a_folder, name) for name in ("run.json", ".job/attempt.json", ".job/lease-000001")),
        *(
            (a_folder, name)
            for name in ("metrics.jsonl", "events/0-worker.jsonl", "tokenizer.json")
        ),
        *((a_pipe, name) for name in ("metrics.jsonl", "samples.jsonl", "events/0-worker.jsonl")),
        *((nowhere, name) for name in ("metrics.jsonl", "events/0-supervisor.jsonl")),
    ],
)
def test_an_entry_that_a_run_cannot_write_is_named_before_it_starts(folder, harm, name):
    harm(folder / name)
    with pytest.raises(InputError, match=r"run_dir: .*/run/") as refused:
        run_folder.check(folder, JOB)
    assert f"{folder / name} " in str(refused.value)


def test_a_long_difference_between_two_jobs_is_shortened(folder):
    with pytest.raises(InputError, match=r"is of another run: its recipe\.seed is 0") as refused:
        run_folder.check(folder, {"recipe": {"seed": "x" * 5000}})
    assert len(str(refused.value)) < 500
