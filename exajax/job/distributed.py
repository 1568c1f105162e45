"""Joins the processes of a job into one JAX runtime, and gives each its share of the devices."""

import os
import socket
import sys
from collections.abc import Mapping

from exajax.errors import InputError
from exajax.job.launchers import LaunchInfo
from exajax.spmd.mesh import MeshSpec


def agree_on_problem(launch: LaunchInfo, problem: InputError | None) -> None:
    """Raises the input error of any process on all of them, so that they end together.

    Before the processes have joined JAX's runtime, only ranks of MPI can exchange anything; with
    other launchers each process raises its own.

    Args:
        launch: this process's rank.
        problem: what this process refuses, None if it refuses nothing.
    """
    if launch.launcher == "mpi":
        from mpi4py import MPI

        problems = MPI.COMM_WORLD.allgather(
            problem and (problem.field, problem.problem, problem.fix, socket.gethostname())
        )
        refusing = [(rank, refusal) for rank, refusal in enumerate(problems) if refusal]
        if refusing:
            rank, (field, text, fix, host) = refusing[0]
            where = f"on rank {rank} ({host}), " if len(refusing) < len(problems) else ""
            problem = InputError(field, where + text, fix)
    if problem:
        raise problem


def joined() -> bool:
    """Whether this process has joined a JAX runtime of several processes."""
    jax = sys.modules.get("jax")
    return jax is not None and bool(jax.distributed.is_initialized())


def check_share(launch: LaunchInfo, mesh: MeshSpec) -> None:
    """Raises an `InputError` if the processes of a job do not divide the devices of its mesh."""
    if mesh.devices % launch.processes:
        raise InputError(
            "mesh",
            f"{launch.processes} processes do not divide the {mesh.devices} devices of {mesh} "
            f"({launch.why})",
            f"start a number of processes that divides {mesh.devices}",
        )


def initialize(launch: LaunchInfo, mesh: MeshSpec) -> None:
    """Joins the processes of a job, and makes the CPU devices of this one.

    Args:
        launch: this process's rank.
        mesh: the mesh; every process brings an equal part of its devices.

    Raises:
        InputError: the processes do not divide the mesh.
    """
    import jax

    from exajax.job import coordination

    check_share(launch, mesh)
    share = mesh.devices // launch.processes
    jax.config.update("jax_num_cpu_devices", share)
    # JAX would catch SIGTERM even while a process compiles or reads data, which has nothing to
    # save; training turns it on (`StopRequest`).
    coordination.leave_sigterm_alone()
    if launch.processes == 1:
        return
    cpu = getattr(jax.config, "jax_platforms", None) == "cpu"
    first = first_device(launch.local_process, share)
    jax.distributed.initialize(
        coordinator_address=launch.coordinator,
        num_processes=launch.processes,
        process_id=launch.process,
        # JAX's default under launchers is one device a process, however many the node has.
        local_device_ids=None if cpu else list(range(first, first + share)),
        # JAX listens on all networks by default; a job on one machine needs only the loopback.
        coordinator_bind_address=launch.coordinator if _is_loopback(launch) else None,
        cluster_detection_method="slurm" if launch.coordinator is None else "deactivate",
        initialization_timeout=120,
    )


def _is_loopback(launch: LaunchInfo) -> bool:
    host = (launch.coordinator or "").rpartition(":")[0].strip("[]")
    return host == "localhost" or host == "::1" or host.startswith("127.")


def first_device(local_process: int, share: int, env: Mapping[str, str] = os.environ) -> int:
    """The index, on its node, of the first device that a process takes.

    A launcher that hides the other processes' devices renumbers the visible ones from 0.

    Args:
        local_process: rank of the process on its node.
        share: devices that each process takes.
        env: its environment.
    """
    names = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
    visible = next((env[name] for name in names if env.get(name)), None)
    only_its_own = visible is not None and len(visible.split(",")) == share
    return 0 if only_its_own else local_process * share
