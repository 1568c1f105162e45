"""Measures this machine's CPU devices and writes them down as a cluster.

Every device is measured while all the others do the same, as they do in a training step: devices
of one machine share its cores and its memory.
"""

import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from exajax.mesh import MeshSpec
from exajax.provenance import memory_bytes, processor

MATMUL_SIZES = (32, 64, 128, 256, 512, 1024)
MEMORY_BYTES = 1 << 20
COLLECTIVE_BYTES = {1 << 10: 100, 1 << 22: 12}
"""Sizes of collectives that are measured, and how often each."""

PRODUCT_BETWEEN = 256
DEVICES = PartitionSpec(("data", "fsdp", "model"))

Arrays = dict[str, jax.Array]
Body = Callable[[Arrays], Arrays]


def measure(hosts: int, devices_per_host: int) -> str:
    """Returns the machine as TOML. Called by every host process of the job at once.

    Args:
        hosts: host processes of the job; the `data` axis runs over them.
        devices_per_host: devices of each; the `model` axis runs over them.
    """
    mesh = MeshSpec(data=hosts, model=devices_per_host).build(jax.devices())
    products = [(2.0 * n**3, _matmul_s(mesh, n)) for n in MATMUL_SIZES]
    rates = {flops: flops / seconds for flops, seconds in products}
    peak = max(rates.values())
    launch_s = _matmul_s(mesh, 8)
    bandwidth = _bandwidth(mesh)
    alone_s = PRODUCT_BETWEEN**3 * 2.0 / rates[PRODUCT_BETWEEN**3 * 2.0]
    kinds = ("all-reduce", "other")
    inside = {kind: _collective(mesh, kind, "model", alone_s) for kind in kinds}
    between = {kind: _collective(mesh, kind, "data", alone_s) for kind in kinds}
    return _toml(
        hosts,
        devices_per_host,
        peak,
        [(flops, rate / peak) for flops, rate in rates.items()],
        launch_s,
        bandwidth,
        inside,
        # All devices of a host communicate at once, each with its own partner.
        {k: (latency, rate * devices_per_host) for k, (latency, rate) in between.items()},
    )


def _repeat_s(
    mesh: jax.sharding.Mesh, body: Body, local: dict[str, np.ndarray], times: int
) -> float:
    """Returns the seconds that one call of `body` takes on all devices at once.

    `body` maps arrays of one device to arrays of the same names and shapes, and is looped on the
    device; the mean of three runs is taken, after one to compile and warm up: on shared
    cores the times have two modes, and a step pays both. What must not be constant to the compiler
    is one of the arrays.
    """

    def loop(arrays: Arrays) -> Arrays:
        return jax.lax.fori_loop(0, times, lambda _, carried: body(carried), arrays)

    run = jax.jit(
        jax.shard_map(loop, mesh=mesh, in_specs=DEVICES, out_specs=DEVICES, check_vma=False)
    )
    sharding = NamedSharding(mesh, DEVICES)
    arrays = {
        name: jax.make_array_from_process_local_data(
            sharding, np.concatenate([value] * jax.local_device_count())
        )
        for name, value in local.items()
    }
    jax.block_until_ready(run(arrays))
    seconds = []
    for _ in range(3):
        multihost_utils.sync_global_devices("before a measurement")
        started_s = time.perf_counter()
        jax.block_until_ready(run(arrays))
        seconds.append((time.perf_counter() - started_s) / times)
    return statistics.fmean(seconds)


def _rotation(n: int) -> np.ndarray:
    """A matrix that can be multiplied with itself for ever without growing."""
    return np.linalg.qr(np.random.default_rng(0).normal(size=(n, n)))[0].astype(np.float32)


def _multiply(arrays: Arrays) -> Arrays:
    return arrays | {"x": arrays["x"] @ arrays["rotation"]}


def _matmul_s(mesh: jax.sharding.Mesh, n: int) -> float:
    """Seconds of one fp32 product of n x n matrices, on every device at once."""
    rotation = _rotation(n)
    times = max(4, min(2000, int(5e7 / n**3)))
    return _repeat_s(mesh, _multiply, {"x": rotation, "rotation": rotation}, times)


def _bandwidth(mesh: jax.sharding.Mesh) -> float:
    """Bytes/s that one device reads and writes while all do, over arrays of `MEMORY_BYTES`."""
    array = np.ones(MEMORY_BYTES // 4, np.float32)
    seconds = _repeat_s(mesh, lambda a: {"x": a["x"] * 0.999 + 0.001}, {"x": array}, 50)
    return 2 * MEMORY_BYTES / seconds


def _collective(
    mesh: jax.sharding.Mesh, kind: str, axis: str, alone_s: float
) -> tuple[float, float]:
    """Latency in s, and bytes/s of the ring formula of `simulate.collectives`, over one axis.

    A collective is measured as a training step has it: between matrix products, whose own time is
    taken off. Alone it would find all its devices waiting, which on shared cores is another thing.
    `alone_s` is the time of such a product.
    """
    ranks = mesh.shape[axis]
    rotation = _rotation(PRODUCT_BETWEEN)

    def communicate(y: jax.Array) -> jax.Array:
        if kind == "all-reduce":
            return jax.lax.psum(y, axis) / ranks
        return jax.lax.all_gather(y, axis)[0]

    def body(arrays: Arrays) -> Arrays:
        multiplied = _multiply(arrays)
        # What is sent depends on the product, so that neither can be moved before the other.
        sent = arrays["y"] + 0.0 * multiplied["x"][0, 0]
        return multiplied | {"y": communicate(sent)}

    passes = 2.0 if kind == "all-reduce" else ranks  # a gather's whole array is ranks x as large
    points = []
    for size, times in COLLECTIVE_BYTES.items():
        arrays = {"x": rotation, "rotation": rotation, "y": np.ones(size // 4, np.float32)}
        seconds = _repeat_s(mesh, body, arrays, times) - alone_s
        points.append((passes * size * (ranks - 1) / ranks, seconds))
    latency_s = max(points[0][1], 1e-6)  # what is faster than the clock resolves takes no time
    (small, small_s), (large, large_s) = points[0], points[-1]
    if large_s <= small_s:
        raise RuntimeError(
            f"{kind} over {axis}: {large:.0f} bytes took {large_s:.2g} s and {small:.0f} bytes "
            f"{small_s:.2g} s; this machine is too busy to measure, try again"
        )
    return latency_s, (large - small) / (large_s - small_s)


def _toml(
    hosts: int,
    devices_per_host: int,
    peak: float,
    curve: list[tuple[float, float]],
    launch_s: float,
    bandwidth: float,
    inside: dict[str, tuple[float, float]],
    between: dict[str, tuple[float, float]],
) -> str:
    when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    layout = f"{hosts} host processes x {devices_per_host} CPU devices"
    source = f"measured {when} by exajax calibrate on {processor()}, {layout}, all at once"
    points = ", ".join(f"[{flops:.3g}, {fraction:.4g}]" for flops, fraction in curve)
    capacity = memory_bytes() // (hosts * devices_per_host)
    return f"""# {source}
title = "this machine, {layout}"
devices_per_node = [{devices_per_host}, "as measured"]
nodes = [{hosts}, "as measured"]

[chip]
title = "CPU device of {processor()}"
platform = "cpu"
device_kinds = ["cpu"]

[chip.peak] # the fastest matrix product that was measured
fp32 = ["{peak:.4g} FLOP/s", "{source}"]

[chip.memory]
capacity = ["{capacity} B", "memory of the machine, divided among the devices"]
bandwidth = ["{bandwidth:.4g} B/s", "{source}; arrays of {MEMORY_BYTES} bytes"]
efficiency = [1.0, "the bandwidth is a measured one"]

[chip.matmul]
efficiency = [[{points}], "{source}"]

[chip.kernel]
launch = ["{launch_s:.4g} s", "{source}; product of 8 x 8 matrices"]

[link] # between the devices of one process
bandwidth = ["{_best(inside):.4g} B/s", "{source}"]

[link.efficiency]
{_efficiency(inside, source)}

[link.latency]
all-reduce = ["{inside["all-reduce"][0]:.4g} s", "{source}"]
other = ["{inside["other"][0]:.4g} s", "{source}"]

[network] # between processes, through gloo
bandwidth = ["{_best(between):.4g} B/s", "{source}"]

[network.efficiency]
{_efficiency(between, source)}

[network.latency]
all-reduce = ["{between["all-reduce"][0]:.4g} s", "{source}"]
other = ["{between["other"][0]:.4g} s", "{source}"]
"""


def _best(measured: dict[str, tuple[float, float]]) -> float:
    return max(rate for _, rate in measured.values())


def _efficiency(measured: dict[str, tuple[float, float]], source: str) -> str:
    best = _best(measured)
    return "\n".join(f'{k} = [{rate / best:.4g}, "{source}"]' for k, (_, rate) in measured.items())
