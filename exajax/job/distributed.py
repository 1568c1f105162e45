"""Who am I in this job, and where do its processes meet?

One small reader per launcher; each says in `Placement.why` what it went by.
"""

import os
import socket
import sys
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from exajax.errors import InputError
from exajax.job import interrupts
from exajax.job.environment import (
    ADDRESS,
    COORDINATOR,
    HOST,
    HOSTS,
    JOB,
    LAUNCHER,
    LOCAL_HOST,
    PODS,
)
from exajax.job.local_hosts import free_port
from exajax.spmd.mesh import MeshSpec


@dataclass(frozen=True)
class Placement:
    """A process's place in its job.

    Attributes:
        launcher: `single`, `local`, `mpi`, `pals`, `slurm` or `kubernetes`.
        processes: number of processes.
        process: number of this one.
        local_process: number of this one on its node.
        coordinator: host and port of the first process; None leaves it to JAX's own detection.
        why: what this was read from.
        job: which start of the launcher this is, the same on all its processes.
        address: where the other processes reach this one's host.
    """

    launcher: str
    processes: int
    process: int
    local_process: int
    coordinator: str | None
    why: str
    job: str = ""
    address: str = "127.0.0.1"


POD = "JOB_COMPLETION_INDEX"
"""Environment of a pod: its number, from Kubernetes."""

SINGLE = Placement("single", 1, 0, 0, None, "no launcher in the environment")


def launcher(env: Mapping[str, str] = os.environ) -> str:
    """Returns the name of the launcher that started this process, `single` if none did.

    A job of one process is single, whoever started it.
    """
    if HOSTS.name in env:
        return "local"
    if "PALS_RANKID" in env and "PBS_NODEFILE" in env:
        return "pals"
    if "SLURM_PROCID" in env and env.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        return "slurm"
    if env.get("PMI_SIZE", env.get("OMPI_COMM_WORLD_SIZE", "1")) != "1":
        return "mpi"
    if POD in env and "KUBERNETES_SERVICE_HOST" in env and env.get(PODS.name) != "1":
        return "kubernetes"
    return "single"


def speaks(env: Mapping[str, str] = os.environ) -> bool:
    """Returns whether this is the job's first process, which speaks for all of them."""
    return next((env[rank] == "0" for rank in interrupts.RANKS if rank in env), True)


def find(env: Mapping[str, str] = os.environ) -> Placement:
    """Returns this process's place, from what the launcher left in the environment.

    Raises:
        InputError: the launcher's variables contradict themselves, or mpi4py is missing under MPI.
    """
    readers = {
        "local": _local,
        "pals": _pals,
        "slurm": _slurm,
        "mpi": _mpi,
        "kubernetes": _kubernetes,
    }
    name = launcher(env)
    return readers[name](env) if name in readers else SINGLE


def _number(env: Mapping[str, str], key: str) -> int:
    try:
        return int(env[key])
    except (KeyError, ValueError):
        raise InputError(
            key, f"is {env.get(key)!r}", "start the job with its launcher, or unset it"
        ) from None


def _local(env: Mapping[str, str]) -> Placement:
    process, processes = HOST.get(env), HOSTS.get(env)
    if process is None or processes is None:
        raise InputError(HOST.name, f"is not set beside {HOSTS.name}", "set both, or unset both")
    local = LOCAL_HOST.get(env)
    return Placement(
        "local",
        processes,
        process,
        process if local is None else local,
        COORDINATOR.get(env),
        LAUNCHER.get(env) or f"{HOSTS.name}, {HOST.name}",
        JOB.get(env) or "",
        ADDRESS.get(env) or "127.0.0.1",
    )


def _pals(env: Mapping[str, str]) -> Placement:
    """Cray PALS under PBS (Polaris, Aurora); its variables are all that it sets."""
    nodes = Path(env["PBS_NODEFILE"]).read_text().split()
    job = env.get("PALS_APID") or env.get("PBS_JOBID", "")
    # Every process must find the same port without asking: it follows from the job's own name.
    port = 20_000 + zlib.crc32(job.encode()) % 20_000
    size = "PALS_SIZE" if "PALS_SIZE" in env else "PMI_SIZE"
    return Placement(
        "pals",
        _number(env, size),
        _number(env, "PALS_RANKID"),
        _number(env, "PALS_LOCAL_RANKID"),
        f"{nodes[0]}:{port}",
        f"PALS_RANKID, {size}, PBS_NODEFILE",
        f"pals-{job}",
        socket.gethostname(),
    )


def _slurm(env: Mapping[str, str]) -> Placement:
    """A Slurm step; JAX itself finds the coordinator from the step's node list."""
    return Placement(
        "slurm",
        _number(env, "SLURM_STEP_NUM_TASKS"),
        _number(env, "SLURM_PROCID"),
        _number(env, "SLURM_LOCALID"),
        None,
        "SLURM_STEP_NUM_TASKS, SLURM_PROCID",
        "-".join(env.get(f"SLURM_{name}", "") for name in ("JOB_ID", "STEP_ID", "RESTART_COUNT")),
        socket.gethostname(),
    )


def _kubernetes(env: Mapping[str, str]) -> Placement:
    """A pod of an Indexed Job; Kubernetes says which one, the manifest of it all else.

    The pods have names of a headless service, `HOSTNAME.SERVICE`: who knows that of the first one
    knows its own (kubernetes.io, "Job with Pod-to-Pod Communication").
    """
    for key, example in ((COORDINATOR, "train-hosts-0-0.train:8476"), (JOB, "the Job's uid")):
        if not key.get(env):
            raise InputError(
                key.name,
                "the manifest does not set it",
                f"set it to the same on every pod ({example}), as launch/kubernetes.yaml does",
            )
    service = env[COORDINATOR.name].rpartition(":")[0].partition(".")[2]
    return Placement(
        "kubernetes",
        _number(env, PODS.name),
        _number(env, POD),
        0,
        env[COORDINATOR.name],
        f"{POD}, {PODS.name}",
        f"kubernetes-{env[JOB.name]}",
        f"{env.get('HOSTNAME') or socket.gethostname()}.{service}",
    )


def _mpi(env: Mapping[str, str]) -> Placement:
    """Any MPI: its ranks agree on a coordinator by a broadcast."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise InputError(
            "mpiexec",
            f"this is an MPI job and mpi4py does not load ({str(error).splitlines()[0]})",
            "pip install 'exajax[mpi]', or load the machine's mpi4py",
        ) from error
    world = MPI.COMM_WORLD
    node = world.Split_type(MPI.COMM_TYPE_SHARED)
    one_node = node.Get_size() == world.Get_size()
    host = "127.0.0.1" if one_node else socket.gethostname()
    first = world.Get_rank() == 0
    coordinator, job = world.bcast(
        (f"{host}:{free_port()}", f"mpi-{uuid.uuid4().hex[:12]}") if first else None, root=0
    )
    return Placement(
        "mpi",
        world.Get_size(),
        world.Get_rank(),
        node.Get_rank(),
        coordinator,
        f"mpi4py, {MPI.Get_library_version().split(chr(10))[0].strip()}",
        job,
        host,
    )


def agree(placement: Placement, problem: InputError | None) -> None:
    """Raises the problem that any process of the job has with its input.

    Before the processes have joined, ranks of MPI alone can tell each other.
    """
    if placement.launcher == "mpi":
        from mpi4py import MPI

        problems = MPI.COMM_WORLD.allgather(
            problem and (problem.field, problem.problem, problem.fix, socket.gethostname())
        )
        refusing = [(rank, found) for rank, found in enumerate(problems) if found]
        if refusing:
            rank, (field, text, fix, host) = refusing[0]
            where = f"on rank {rank} ({host}), " if len(refusing) < len(problems) else ""
            problem = InputError(field, where + text, fix)
    if problem:
        raise problem


def joined() -> bool:
    """Returns whether this process has joined a job of several."""
    jax = sys.modules.get("jax")
    return jax is not None and bool(jax.distributed.is_initialized())


def _is_loopback(placement: Placement) -> bool:
    host = (placement.coordinator or "").rpartition(":")[0].strip("[]")
    return host == "localhost" or host == "::1" or host.startswith("127.")


def check_share(placement: Placement, mesh: MeshSpec) -> None:
    """Raises an `InputError` if the processes of a job do not divide the devices of its mesh."""
    if mesh.devices % placement.processes:
        raise InputError(
            "mesh",
            f"{placement.processes} processes do not divide the {mesh.devices} devices of {mesh} "
            f"({placement.why})",
            f"start a number of processes that divides {mesh.devices}",
        )


def initialize(placement: Placement, mesh: MeshSpec) -> None:
    """Joins the processes of a job, and makes the CPU devices of this one.

    Args:
        placement: this process's place.
        mesh: the mesh; every process brings an equal part of its devices.

    Raises:
        InputError: the processes do not divide the mesh.
    """
    import jax

    from exajax.job import coordination

    check_share(placement, mesh)
    share = mesh.devices // placement.processes
    jax.config.update("jax_num_cpu_devices", share)
    # It catches SIGTERM, and what compiles or reads has nothing to save; see `StopRequest`.
    coordination.leave_sigterm_alone()
    if placement.processes == 1:
        return
    cpu = getattr(jax.config, "jax_platforms", None) == "cpu"
    first = first_device(placement.local_process, share)
    jax.distributed.initialize(
        coordinator_address=placement.coordinator,
        num_processes=placement.processes,
        process_id=placement.process,
        # JAX's default under launchers is one device a process, whatever the node holds.
        local_device_ids=None if cpu else list(range(first, first + share)),
        # Reached from this machine alone, it need not listen on others' networks, JAX's default.
        coordinator_bind_address=placement.coordinator if _is_loopback(placement) else None,
        cluster_detection_method="slurm" if placement.coordinator is None else "deactivate",
        initialization_timeout=120,
    )


def first_device(local_process: int, share: int, env: Mapping[str, str] = os.environ) -> int:
    """Returns the number of the first device of its node that a process takes.

    A launcher that hides the other processes' devices has numbered the rest anew.

    Args:
        local_process: number of the process on its node.
        share: devices that each takes.
        env: its environment.
    """
    names = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
    visible = next((env[name] for name in names if env.get(name)), None)
    alone = visible is not None and len(visible.split(",")) == share
    return 0 if alone else local_process * share
