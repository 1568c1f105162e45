"""The public entry points: build a train step on attached devices, or predict one elsewhere."""

from typing import Unpack

import jax

from exajax.machine.cluster import Cluster, load_cluster
from exajax.program import described_devices
from exajax.program.compile import compile_step
from exajax.simulate.prediction import Prediction, predict_step
from exajax.spmd.idle_axes import warn_of_idle_axes
from exajax.spmd.mesh import MeshSpec
from exajax.spmd.step import StepOptions, TrainStep
from exajax.spmd.workload import Workload


def train_step(
    workload: Workload, mesh: MeshSpec | str, **options: Unpack[StepOptions]
) -> TrainStep:
    """The train step of a workload on the attached devices, ready for `exajax.fit`.

    Warns about mesh axes that divide nothing (`exajax.spmd.idle_axes`).

    Args:
        workload: what one step computes.
        mesh: a mesh with as many devices as are attached, such as `2x2`.
        **options: options of `TrainStep.of`, such as `zero` or `precision`.

    Raises:
        InputError: the mesh is malformed, or its size is not the number of attached devices.
    """
    spec = MeshSpec.parse(mesh) if isinstance(mesh, str) else mesh
    step = TrainStep.of(workload, spec.build(jax.devices()), **options)
    warn_of_idle_axes(step)
    return step


def predict(
    workload: Workload,
    mesh: MeshSpec | str,
    cluster: Cluster | str,
    **options: Unpack[StepOptions],
) -> Prediction:
    """The simulated step time and memory of a workload on a machine that need not be attached.

    The step is compiled ahead of time for the machine's devices, and the compiled program is
    priced. Every number of the result is simulated; its `notes` name mesh axes that divide nothing.

    Args:
        workload: what one step computes, with the batch of the whole mesh.
        mesh: a mesh of at most the machine's devices, such as `128x8`.
        cluster: the machine, its name, or the path of a TOML file.
        **options: options of `TrainStep.of`, such as `zero` or `precision`.

    Raises:
        InputError: the mesh or the cluster is malformed, or the mesh is larger than the cluster.
    """
    spec = MeshSpec.parse(mesh) if isinstance(mesh, str) else mesh
    machine = load_cluster(cluster) if isinstance(cluster, str) else cluster
    precision = options.get("precision", "bf16")
    machine.check(spec.devices, precision)
    device_mesh = spec.build(described_devices.described_devices(machine, spec.devices))
    step = TrainStep.of(workload, device_mesh, **options)
    return predict_step(
        compile_step(step, machine),
        machine,
        precision,
        samples=workload.samples,
        tokens_per_sample=workload.tokens_per_sample,
        model_flops=workload.model_flops,
    )
