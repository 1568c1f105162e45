"""Probes: small training steps that are timed to fit this machine's software profile."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from scipy.optimize import lsq_linear

from exajax.machine.cluster import Cluster
from exajax.machine.software import PRODUCTS, SoftwareProfile
from exajax.models.dimensions import ModelConfig
from exajax.program import hlo, operations
from exajax.program.operations import Program, flatten
from exajax.recipe import text_workload
from exajax.recipe.recipe import Recipe
from exajax.simulate.collectives.pricing import collective_time_s
from exajax.simulate.kernels import operation_time_s
from exajax.spmd.mesh import MeshSpec
from exajax.spmd.step import TrainStep

HEADS = 8

MODELS = {
    # Wide and short: most of its time are products.
    ModelConfig("probe-wide", "llama", 2, 256, HEADS, HEADS, 1024, 256, 64): "selective",
    # Narrow and long: most of its time are small operations and memory.
    ModelConfig("probe-long", "gpt", 3, 96, HEADS, HEADS, 384, 256, 256): "none",
}
"""Remat policy of each model that is timed; they are none that people train."""

WARM_UP, STEPS = 2, 8
LEAST, MOST = 0.25, 8.0
"""Range of a fitted factor."""

TRUST = 0.5
"""Weight of a prior that the factor of products is 1, relative to the error of one probe: two steps
alone hardly distinguish products from memory."""


@dataclass(frozen=True)
class Probe:
    """A timed training step.

    Attributes:
        name: model and remat policy, for people.
        program: operations of one device.
        measured_s: median seconds of a step.
    """

    name: str
    program: Program
    measured_s: float


def measure(mesh: MeshSpec) -> list[Probe]:
    """Timed steps of all `MODELS` on the attached devices; called on all hosts at once."""
    return [_measure(model, mesh, remat) for model, remat in MODELS.items()]


def _measure(model: ModelConfig, mesh: MeshSpec, remat: str) -> Probe:
    recipe = Recipe.of(
        model, mesh, global_batch=4 * mesh.batch_shards, precision="fp32", remat=remat
    )
    step = TrainStep.of(
        text_workload.workload(recipe, "cpu"), mesh.build(jax.devices()), **recipe.step_options
    )
    random = np.random.default_rng(0)
    batch = {
        name: jax.make_array_from_callback(
            leaf.shape,
            leaf.sharding,
            random.integers(0, model.vocab, leaf.shape, np.int32).__getitem__,
        )
        for name, leaf in step.batch.items()
    }
    update = step.update.lower(step.state, step.batch).compile()
    state, seconds = step.init(np.uint32(0)), []
    for _ in range(WARM_UP + STEPS):
        began_s = time.perf_counter()
        state, metrics = update(state, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - began_s)
    axes = {str(axis): size for axis, size in step.mesh.shape.items()}
    program = operations.read_program(hlo.parse(update.as_text()), axes)
    return Probe(f"{model.name}, remat {remat}", program, statistics.median(seconds[WARM_UP:]))


def fit(probes: Sequence[Probe], cluster: Cluster) -> SoftwareProfile:
    """The software profile whose factors turn a machine's kernel times into its step times.

    Least squares of the relative errors, each factor from `LEAST` to `MOST`, with the prior `TRUST`
    that the factor of products is 1. Collectives have no factor.
    """
    rows, rest = [[TRUST, 0.0]], [TRUST]
    for probe in probes:
        matmul_s, memory_s, waits_s = _priced(probe.program, cluster)
        rows.append([matmul_s / probe.measured_s, memory_s / probe.measured_s])
        rest.append(1 - waits_s / probe.measured_s)
    matmul, memory = lsq_linear(np.array(rows), np.array(rest), (LEAST, MOST)).x
    names = tuple(f"{probe.name}: {probe.measured_s * 1e3:.1f} ms" for probe in probes)
    return SoftwareProfile(
        "own", "XLA on this machine", matmul=float(matmul), memory=float(memory), fitted_on=names
    )


def _priced(program: Program, cluster: Cluster) -> tuple[float, float, float]:
    """Seconds of products, of other operations, and of collectives, before any factor.

    Collectives are fully exposed, since a CPU has one stream.
    """
    matmul_s = memory_s = waits_s = 0.0
    for op, times in flatten(program):
        if op.collective:
            waits_s += times * collective_time_s(op.collective, cluster)
        elif op.kind != "collective-done":
            seconds = times * operation_time_s(op, cluster.chip)
            if op.kind in PRODUCTS:
                matmul_s += seconds
            else:
                memory_s += seconds
    return matmul_s, memory_s, waits_s
