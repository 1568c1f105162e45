"""Orbax's handler of arrays, driven as exajax drives it: what the installed release does."""

import errno
import logging

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from exajax import MeshSpec
from exajax.train.checkpoint import orbax_arrays

pytestmark = pytest.mark.jax_surface


@pytest.fixture
def tree():
    mesh = MeshSpec(data=8).build(jax.devices())
    rows = NamedSharding(mesh, PartitionSpec("data"))
    return {"a": jax.device_put(np.arange(64.0).reshape(16, 4), rows), "b": {"c": np.uint32(7)}}


def written(folder, tree):
    writing = orbax_arrays.Writing(folder, tree)
    writing.wait(60.0)
    return writing


def test_arrays_are_on_the_host_at_once_and_read_on_another_mesh(tmp_path, tree):
    folder = tmp_path / "6.token.saving" / "state"
    writing = orbax_arrays.Writing(folder, tree)
    tree["a"].delete()  # as the next step does
    writing.wait(60.0)
    writing.finish()
    assert folder.is_dir()  # under its own name
    saved = orbax_arrays.read_as_saved(folder)
    np.testing.assert_array_equal(saved["a"], np.arange(64.0).reshape(16, 4))
    assert int(saved["b"]["c"]) == 7
    two = MeshSpec(data=2).build(jax.devices()[:2])
    sharding = NamedSharding(two, PartitionSpec(None, "data"))
    described = {"a": jax.ShapeDtypeStruct((16, 4), np.float32, sharding=sharding)}
    read = orbax_arrays.read(folder, described, partial=True)
    assert read["a"].sharding == sharding
    np.testing.assert_array_equal(read["a"], saved["a"])


def test_a_process_owns_the_files_that_it_writes_before_they_are_merged(tmp_path, tree):
    written(tmp_path / "state", tree)
    files = [str(path) for path in (tmp_path / "state").rglob("*") if path.is_file()]
    owners = {orbax_arrays.owner(file) for file in files}
    assert 0 in owners, files
    assert owners <= {0, None}
    assert orbax_arrays.owner("state/ocdbt.process_12/d/0a") == 12


def test_damaged_arrays_are_a_value_error(tmp_path, tree):
    written(tmp_path / "state", tree).finish()
    for file in (tmp_path / "state").rglob("d/*"):
        file.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r".+"):
        orbax_arrays.read_as_saved(tmp_path / "state")


def test_a_full_disk_is_reported_by_the_save_alone(caplog):
    orbax_arrays.quiet()
    full = OSError(errno.ENOSPC, "No space left on device")
    for error, logged in ((full, 0), (ValueError("something else"), 1)):
        with caplog.at_level(logging.ERROR):
            caplog.clear()
            logging.getLogger("absl").error("it failed", exc_info=error)
            assert len(caplog.records) == logged
