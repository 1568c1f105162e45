"""Checkpoints on the disk of the host: newer than the shared ones, for the same mesh alone."""

import time

import jax
import numpy as np
import pytest

import exajax
from exajax.train.checkpoint.checkpoints import NotSavedError
from tests.train.checkpoint.test_checkpoint_faults import batches, cut, flip, step, told, train  # noqa: F401

STEPS = 6


def fail(number):
    if number == STEPS:
        raise OSError(28, "No space left on device")


@pytest.fixture
def run(tmp_path, step):  # noqa: F811
    """A run whose newest shared checkpoint is of step 3, and whose local ones are of 4 and 5."""
    pace = exajax.Every(1, lambda number, state: time.sleep(0.3))  # a disk has time for each save
    with pytest.raises(NotSavedError):
        train(
            step,
            tmp_path,
            STEPS,
            every=3,
            local=tmp_path / "local",
            local_every=1,
            before_commit=fail,
            hooks=[pace],
        )
    assert sorted(path.name for path in local(tmp_path).iterdir()) == ["4", "5"]
    return tmp_path


def local(run):
    """Returns the folder of the run's local checkpoints."""
    (folder,) = (run / "local").iterdir()
    return folder


def again(step, run):  # noqa: F811
    return train(step, run, STEPS, local=run / "local")


def test_a_run_goes_on_from_them_as_if_it_had_never_stopped(run, step):  # noqa: F811
    straight = exajax.fit(step, batches, steps=STEPS)
    result = again(step, run)
    assert result.resumed_from == 5
    assert [event["tier"] for event in told(run, "restored")] == ["local"]
    assert result.losses == straight.losses[5:]
    for ours, theirs in zip(
        jax.tree.leaves(result.state), jax.tree.leaves(straight.state), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("harm", [cut, flip, lambda path: path.unlink()])
def test_a_damaged_one_is_told_and_an_older_one_goes_on(run, step, harm):  # noqa: F811
    harm(local(run) / "5" / "host-0" / "parts.bin")
    assert again(step, run).resumed_from == 4
    (event,) = told(run, "checkpoint-damaged")
    assert (event["step"], event["tier"], event["file"]) == (5, "local", "parts.bin")
    assert not (local(run) / "5").exists()


def test_another_mesh_goes_on_from_the_shared_folder(run, step):  # noqa: F811
    other = exajax.train_step(step.workload, "fsdp=4,model=2", precision="fp32")
    assert again(other, run).resumed_from == 3
    assert [event["tier"] for event in told(run, "restored")] == ["shared"]


def test_each_part_is_written_once_however_many_devices_hold_it(tmp_path, step):  # noqa: F811
    replicated = exajax.train_step(step.workload, "data=4,model=2", precision="fp32", zero=0)
    train(replicated, tmp_path, 2, local=tmp_path / "local", local_every=1)
    size_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(step.state))
    assert (local(tmp_path) / "1" / "host-0" / "parts.bin").stat().st_size == size_bytes


def test_local_checkpoints_of_another_run_are_not_looked_at(run, step):  # noqa: F811
    (run / "checkpoints").rename(run / "elsewhere")
    assert again(step, run).resumed_from is None
