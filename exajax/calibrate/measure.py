"""Measurement of this machine's CPU devices, and their description as a cluster in TOML.

All devices are measured at the same time, like in a training step, because they share the machine's
cores and memory.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from exajax.job import coordination, runtime
from exajax.job.provenance import memory_bytes, processor
from exajax.machine.software import SoftwareProfile
from exajax.spmd.mesh import MeshSpec

MATMUL_SIZES = (32, 64, 128, 256, 512, 1024)
MEMORY_BYTES = 1 << 20
COLLECTIVE_BYTES = {1 << 10: 100, 1 << 22: 12}
"""Bytes of the collectives that are measured, and the number of repetitions."""

PRODUCT_BETWEEN = 256
"""Side of the matrices that are multiplied between collectives."""

FURTHER_ARRAY = "further-array"
ARRAYS = 8
"""Arrays of a combined collective."""

FLOOR_S = 1e-6
"""Assumed latency where none is distinguishable from noise; its source says so."""

VARIABILITY_OF = "GPUs in a large job and of RCCL on Frontier, see meshes/frontier.toml"
"""Origin of the assumed variability, which three runs are too few to measure."""

DEVICES = PartitionSpec(("data", "fsdp", "model"))

Arrays = dict[str, jax.Array]
Body = Callable[[Arrays], Arrays]


@dataclass(frozen=True)
class Measured:
    """Collectives over one mesh axis: latency in s by kind, and bytes/s of the ring formula."""

    latency_s: dict[str, float]
    rate: dict[str, float]


def measure(hosts: int, devices_per_host: int) -> str:
    """This machine as a cluster in TOML; called by every host process of a job at once.

    Args:
        hosts: host processes of the job, the `data` axis.
        devices_per_host: devices of each, the `model` axis.
    """
    mesh = MeshSpec(data=hosts, model=devices_per_host).build(runtime.job_devices())
    products = [(2.0 * n**3, _matmul_s(mesh, n)) for n in MATMUL_SIZES]
    rates_by_flops = {flops: flops / seconds for flops, seconds in products}
    peak = max(rates_by_flops.values())
    launch_s = _matmul_s(mesh, 8)
    bandwidth = _bandwidth(mesh)
    alone_s = PRODUCT_BETWEEN**3 * 2.0 / rates_by_flops[PRODUCT_BETWEEN**3 * 2.0]
    inside = _collectives(mesh, "model", alone_s)
    between = _collectives(mesh, "data", alone_s)
    return _toml(
        hosts,
        devices_per_host,
        peak,
        [(flops, rate / peak) for flops, rate in rates_by_flops.items()],
        launch_s,
        bandwidth,
        inside,
        between and _of_a_host(between, hosts, devices_per_host),
    )


def software_toml(software: SoftwareProfile, limits: tuple[float, float]) -> str:
    """A fitted software profile as TOML, to append to the machine that it was fitted on.

    Args:
        software: the profile.
        limits: range of the fit; the source of a factor at a limit says so.
    """
    source = "least squares over the steps of fitted_on, timed together with the figures above"
    matmul, memory = (
        f'[{factor:.4g}, "{source}{"; at its limit" * bool(np.isclose(factor, limits).any())}"]'
        for factor in (software.matmul, software.memory)
    )
    return f"""
[software] # seconds in a step over those of the figures above
title = "{software.title}"
matmul = {matmul}
memory = {memory}
fitted_on = {json.dumps(software.fitted_on)}
"""


def _of_a_host(between: Measured, hosts: int, devices_per_host: int) -> Measured:
    """Measurements of a host's network, from those of one of its devices.

    All devices of a host communicate at once, each with its own partner, and a ring over H hosts
    has H - 1 latencies.
    """
    latency_s = {
        kind: seconds if kind == FURTHER_ARRAY else seconds / (hosts - 1)
        for kind, seconds in between.latency_s.items()
    }
    rates = {kind: rate * devices_per_host for kind, rate in between.rate.items()}
    return Measured(latency_s, rates)


def _repeat_s(
    mesh: jax.sharding.Mesh, body: Body, local: dict[str, np.ndarray], times: int
) -> float:
    """Seconds of one call of `body`, on all devices at once.

    The mean of three runs after one that compiles and warms up: on shared cores the times have two
    modes, and a step pays both.

    Args:
        mesh: the devices.
        body: maps arrays of one device to arrays of the same names and shapes; it is looped on the
            device.
        local: arrays of one device, with everything that must not be constant to the compiler.
        times: calls of `body` in a run.
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
        coordination.barrier("before a measurement")
        started_s = time.perf_counter()
        jax.block_until_ready(run(arrays))
        seconds.append((time.perf_counter() - started_s) / times)
    return statistics.fmean(seconds)


def _rotation(n: int) -> np.ndarray:
    """An orthogonal matrix [n, n], whose powers do not grow."""
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


def _collectives(mesh: jax.sharding.Mesh, axis: str, alone_s: float) -> Measured | None:
    """Measurements of collectives over one axis; None if the axis has one device.

    A collective is measured like in a training step, between matrix products, whose own time
    `alone_s` is subtracted. Without them all devices would be waiting, which is faster on shared
    cores.
    """
    ranks = mesh.shape[axis]
    if ranks == 1:
        return None
    latency_s: dict[str, float] = {}
    rates: dict[str, float] = {}
    for kind in ("all-reduce", "other"):
        (small, times), (large, few) = COLLECTIVE_BYTES.items()
        small_s = _collective_s(mesh, kind, axis, small, 1, times) - alone_s
        large_s = _collective_s(mesh, kind, axis, large, 1, few) - alone_s
        if large_s <= small_s:
            raise RuntimeError(
                f"{kind} over {axis}: {large} bytes took {large_s:.2g} s and {small} bytes "
                f"{small_s:.2g} s; this machine is too busy to measure, try again"
            )
        # A wait in which the devices that share the core compute costs the step nothing.
        latency_s[kind] = max(small_s, FLOOR_S)
        # A gather's whole array is `ranks` times what a device brings; a reduction passes twice.
        passes = 2.0 if kind == "all-reduce" else ranks
        rates[kind] = passes * (large - small) * (ranks - 1) / ranks / (large_s - small_s)
    combined_s = _collective_s(mesh, "all-reduce", axis, small, ARRAYS, times) - alone_s
    latency_s[FURTHER_ARRAY] = max((combined_s - latency_s["all-reduce"]) / (ARRAYS - 1), FLOOR_S)
    return Measured(latency_s, rates)


def _collective_s(
    mesh: jax.sharding.Mesh, kind: str, axis: str, size: int, arrays: int, times: int
) -> float:
    """Seconds of a matrix product and a collective of `arrays` arrays of `size` bytes."""
    names = [f"y{number}" for number in range(arrays)]

    def body(carried: Arrays) -> Arrays:
        multiplied = _multiply(carried)
        # What is sent depends on the product, so that neither can be moved before the other.
        sent = {name: carried[name] + 0.0 * multiplied["x"][0, 0] for name in names}
        if kind == "all-reduce":
            summed = jax.lax.psum(sent, axis)
            return multiplied | {name: summed[name] / mesh.shape[axis] for name in names}
        return multiplied | {name: jax.lax.all_gather(sent[name], axis)[0] for name in names}

    rotation = _rotation(PRODUCT_BETWEEN)
    brought = {name: np.ones(size // 4, np.float32) for name in names}
    return _repeat_s(mesh, body, {"x": rotation, "rotation": rotation, **brought}, times)


def _toml(
    hosts: int,
    devices_per_host: int,
    peak: float,
    curve: list[tuple[float, float]],
    launch_s: float,
    bandwidth: float,
    inside: Measured | None,
    between: Measured | None,
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
{_fabric("link", inside, source)}

[network] # between processes, through gloo
{_fabric("network", between, source)}

[variability] # standard deviation of the logarithm
compute = [0.0, "none besides what was timed: all devices at once, the slowest waited for"]
network = [0.109, "assumed: that of {VARIABILITY_OF}"]
"""


def _fabric(name: str, measured: Measured | None, source: str) -> str:
    if measured is None:
        source = "not measured, and never used: there is nothing to reach over it"
        measured = Measured({"other": FLOOR_S}, {"other": 1e9})
    best = max(measured.rate.values())
    lines = [f'bandwidth = ["{best:.4g} B/s", "{source}"]', "", f"[{name}.efficiency]"]
    lines += [f'{k} = [{rate / best:.4g}, "{source}"]' for k, rate in measured.rate.items()]
    lines += ["", f"[{name}.latency]"]
    for kind, latency_s in measured.latency_s.items():
        floor = "assumed, because no latency stood out from the noise; " * (latency_s <= FLOOR_S)
        lines.append(f'{kind} = ["{latency_s:.4g} s", "{floor}{source}"]')
    return "\n".join(lines)
