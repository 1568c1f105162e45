"""What XLA writes down of a program: found, and read, of the installed release."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from exajax.machine.cluster import load_cluster
from exajax.program import described_devices, hlo
from exajax.program.dumps import Dumps
from exajax.program.xla_time_estimate import estimate_s
from exajax.spmd import compiler_options
from exajax.spmd.mesh import MeshSpec

pytestmark = pytest.mark.jax_surface


def dumped(folder, devices):
    """Compiles a loop of products over devices; returns module, dumps, and bytes of temporaries."""

    def products(x, weights):
        def body(x, weight):
            y = jnp.tanh(x @ weight)
            return y, y.sum()

        return jax.lax.scan(body, x, weights)

    mesh = MeshSpec(data=8).build(devices)
    batch, by_row = (
        NamedSharding(mesh, PartitionSpec(*axes)) for axes in (["data"], [None, "data"])
    )
    x = jax.ShapeDtypeStruct((256, 512), jnp.float32, sharding=batch)
    weights = jax.ShapeDtypeStruct((6, 512, 512), jnp.float32, sharding=by_row)
    platform = devices[0].platform
    options = Dumps.options(str(folder))
    compiled = compiler_options.compile(jax.jit(products).lower(x, weights), platform, options)
    text = compiled.as_text()
    sizes = compiled.memory_analysis()
    return hlo.parse(text), Dumps.read(folder, text), sizes.temp_size_in_bytes


@pytest.mark.parametrize("platform", ["cuda", "cpu"])
def test_xla_says_where_values_lie_when_they_are_alive_and_how_long_a_loop_takes(
    tmp_path, platform
):
    described = load_cluster("dgx-h100")
    devices = (
        jax.devices("cpu")
        if platform == "cpu"
        else described_devices.described_devices(described, 8)
    )
    module, dumps, temporaries = dumped(tmp_path, devices)
    values = dumps.values()
    everything = [
        i for computation in module.computations.values() for i in computation.instructions
    ]
    unknown = {value.name.partition("{")[0] for value in values} - {i.name for i in everything}
    assert {name.partition(".")[0] for name in unknown} <= {"all-gather", "reduce-scatter"}
    assert max(value.offset + value.bytes for value in values) == temporaries
    assert all(value.first <= value.last for value in values)
    products = [value.bytes for value in values if value.shape.startswith("f32[32,512]")]
    assert set(products) == {4 * 32 * 512}

    times_us = dumps.times_us()
    if platform == "cpu":  # its scheduler has no clock
        assert times_us == {}
    else:
        (loop,) = [i for i in everything if i.opcode == "while"]
        turn_us = times_us[loop.called("body")]
        assert turn_us > 0
        assert estimate_s(times_us, module) > (times_us[module.entry] + turn_us) / 1e6


def test_what_xla_does_not_write_is_empty(tmp_path):
    dumps = Dumps.read(tmp_path, "HloModule jit_f, is_scheduled=true")
    assert (dumps.values(), dumps.times_us()) == ([], {})
