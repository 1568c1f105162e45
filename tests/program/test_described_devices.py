"""Devices that are not there: the installed compiler takes the description of every chip."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import SingleDeviceSharding

from exajax.machine.cluster import load_cluster
from exajax.program import described_devices

pytestmark = pytest.mark.jax_surface


@pytest.mark.parametrize("cluster", ["polaris", "dgx-h100", "dgx-b200"])
def test_the_compiler_takes_a_chip_with_its_nodes_and_compiles_for_it(cluster):
    described = described_devices.described_devices(load_cluster(cluster), 32)
    assert len({device.id for device in described}) == 32
    array = jax.ShapeDtypeStruct(
        (64, 64), jnp.bfloat16, sharding=SingleDeviceSharding(described[0])
    )
    compiled = jax.jit(jnp.matmul).lower(array, array).compile()
    assert "HloModule" in compiled.as_text()
    assert compiled.memory_analysis().argument_size_in_bytes == 2 * 2 * 64 * 64


def test_a_field_that_the_compiler_does_not_know_is_named(monkeypatch):
    known = described_devices.target_config
    monkeypatch.setattr(
        described_devices, "target_config", lambda chip: known(chip) + "\nbanana: 1\n"
    )
    with pytest.raises(Exception, match="ahead-of-time compilation"):
        described_devices.described_devices(load_cluster("polaris"), 4)
