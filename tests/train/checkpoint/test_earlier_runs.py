"""Runs of earlier versions go on: their run folders are kept here."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import command

KEPT = Path(__file__).with_name("run-0.1.0")
"""Two steps of 0.1.0, before modules moved into rooms and a job was written to a file."""

LOSSES = [5.575514793395996, 5.574216842651367, 5.569726943969727, 5.570343017578125]
"""What 0.1.0 itself went on to."""


def test_a_run_of_the_first_layout_of_the_package_goes_on(tmp_path):
    shutil.copytree(KEPT, tmp_path, dirs_exist_ok=True)
    flags = ("--model", "small.toml", "--mesh", "1x1", "--precision", "fp32", "--metrics-port", 0)
    batch = ("--global-batch", 4, "--seq", 32, "--data", "text.txt", "--schedule-steps", 4)
    done = command(
        "train", *flags, *batch, "--steps", 4, "--run-dir", "run", "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["resumed_from"] == 2
    assert result["losses"] == pytest.approx(LOSSES, rel=1e-5)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["train"]["step"] == 4
