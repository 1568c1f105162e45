"""The file by which one process hands another its job."""

import json
from pathlib import Path

import pytest

from exajax import InputError, MeshSpec, Recipe
from exajax.models.presets import lookup
from exajax.resilience.job import Job
from exajax.resilience.options import JobOptions
from exajax.train.options import TrainOptions

RECIPE = Recipe.of(
    lookup("mixtral-tiny"), MeshSpec(data=2, expert=2), moe="dropless", beta2=0.9, schedule_steps=7
)


@pytest.fixture
def job(tmp_path):
    options = TrainOptions(tmp_path / "run", data="a.txt", init=Path("weights"), save_every=3)
    return Job(RECIPE, options, JobOptions(hosts=2, deadlines="step=9"), result=tmp_path / "out")


def test_a_job_survives_a_round_trip_through_its_file(job, tmp_path):
    assert Job.read(job.write(tmp_path / "job.json")) == job


@pytest.mark.parametrize(
    "change",
    [
        {"recipe": 3},
        {"recipe": {}},
        {"options": {"nothing": 1}},
        {"options": {"run_dir": "run", "save_every": 0}},
        {"supervision": None},
    ],
)
def test_a_file_that_holds_no_job_is_refused_by_name(job, tmp_path, change):
    path = job.write(tmp_path / "job.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError) as caught:
        Job.read(path)
    assert "\n" not in str(caught.value)


def test_a_truncated_file_is_refused(job, tmp_path):
    path = job.write(tmp_path / "job.json")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"job\.json"):
        Job.read(path)
