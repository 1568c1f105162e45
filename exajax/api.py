"""The two roads of a workload, in one call each."""

from typing import Unpack

import jax

from exajax.machine import cluster as clusters
from exajax.machine.cluster import Cluster
from exajax.program import target
from exajax.program.compile import compile_step
from exajax.simulate.prediction import Prediction, predict_step
from exajax.spmd.idle_axes import warn_of_idle_axes
from exajax.spmd.mesh import MeshSpec
from exajax.spmd.step import Layout, TrainStep
from exajax.spmd.workload import Workload


def train_step(workload: Workload, mesh: MeshSpec | str, **layout: Unpack[Layout]) -> TrainStep:
    """Returns a workload on the devices that are attached, ready for `exajax.fit`.

    Warns where an axis of the mesh divides nothing (`idle_axes`).

    Args:
        workload: what one step computes.
        mesh: a mesh with as many devices as are attached, such as `2x2`.
        **layout: options of `TrainStep.of`, such as `zero` or `precision`.

    Raises:
        InputError: the mesh is not one, or there are more or fewer devices.
    """
    spec = MeshSpec.parse(mesh) if isinstance(mesh, str) else mesh
    step = TrainStep.of(workload, spec.build(jax.devices()), **layout)
    warn_of_idle_axes(step)
    return step


def predict(
    workload: Workload,
    mesh: MeshSpec | str,
    cluster: Cluster | str,
    **layout: Unpack[Layout],
) -> Prediction:
    """Compiles a workload for the devices of a described machine and prices the program.

    No device of that kind is needed. Every number of the result is simulated. Its `notes` say
    where an axis of the mesh divides nothing.

    Args:
        workload: what one step computes, its batch that of the whole mesh.
        mesh: a mesh of at most the machine's devices, such as `128x8`.
        cluster: the machine, its name, or a TOML file.
        **layout: options of `TrainStep.of`, such as `zero` or `precision`.

    Raises:
        InputError: the mesh or the cluster is not one, or the mesh is larger than the cluster.
    """
    spec = MeshSpec.parse(mesh) if isinstance(mesh, str) else mesh
    machine = clusters.load_cluster(cluster) if isinstance(cluster, str) else cluster
    precision = layout.get("precision", "bf16")
    machine.check(spec.devices, precision)
    described = spec.build(target.devices(machine, spec.devices))
    step = TrainStep.of(workload, described, **layout)
    return predict_step(
        compile_step(step, machine),
        machine,
        precision,
        samples=workload.samples,
        tokens_per_sample=workload.tokens_per_sample,
        model_flops=workload.model_flops,
    )
