"""How this process was started: its rank, the size of its job and where its processes meet.

One reader per launcher (MPI, Cray PALS, Slurm, Kubernetes, and exajax's own local hosts).
"""

import os
import socket
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from exajax.errors import InputError
from exajax.job import interrupts
from exajax.job.environment import (
    ADDRESS,
    ATTEMPT,
    COORDINATOR,
    HOST,
    HOSTS,
    JOB,
    LAUNCHER,
    LOCAL_HOST,
    PODS,
)
from exajax.job.local_hosts import free_port


@dataclass(frozen=True)
class LaunchInfo:
    """The rank of a process in its job, as its launcher set it.

    Attributes:
        launcher: `single`, `local`, `mpi`, `pals`, `slurm` or `kubernetes`.
        processes: number of processes of the job.
        process: rank of this one, from 0.
        local_process: rank of this one among those of its node.
        coordinator: `HOST:PORT` of the first process; None leaves it to JAX's own detection.
        why: the variables or library that this was read from, for messages.
        job: identifies one start of the launcher, the same on all its processes.
        address: host name or address at which the other processes reach this host.
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
"""Environment variable of a pod of an Indexed Job: its number, set by Kubernetes."""

SIZES = {
    HOST.name: (HOSTS.name,),
    "PALS_RANKID": ("PALS_SIZE", "PMI_SIZE"),
    "SLURM_PROCID": ("SLURM_STEP_NUM_TASKS",),
    "PMI_RANK": ("PMI_SIZE",),
    "OMPI_COMM_WORLD_RANK": ("OMPI_COMM_WORLD_SIZE",),
    POD: (PODS.name,),
}
"""Environment variables that hold the size of a job, by that of the rank; the first one counts."""

SINGLE = LaunchInfo("single", 1, 0, 0, None, "no launcher in the environment")


def launcher(env: Mapping[str, str] = os.environ) -> str:
    """The name of the launcher that started this process, `single` for a job of one process."""
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


def is_first_process(env: Mapping[str, str] = os.environ) -> bool:
    """Whether this process has rank 0, the one that prints for the whole job.

    One whose rank is no number, or not below the size of its job, prints too: no other process
    would report that.
    """
    name = next((name for name in interrupts.RANKS if name in env), None)
    rank = env[name] if name else "0"
    if rank == "0" or not rank.isdecimal():
        return True
    size = next((env[name] for name in SIZES.get(name or "", ()) if name in env), "")
    return size.isdecimal() and int(rank) >= int(size)


def detect(env: Mapping[str, str] = os.environ) -> LaunchInfo:
    """Reads this process's rank and coordinator from the environment that its launcher set.

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
    info = readers[name](env) if name in readers else SINGLE
    if not 0 <= info.process < info.processes:
        raise InputError(
            info.why,
            f"this is process {info.process} of {info.processes}, and they count from 0",
            "start the job with its launcher, or unset them",
        )
    return info


def host_number(process: int, env: Mapping[str, str] = os.environ) -> int:
    """The number by which the job's other hosts know this process's host.

    Args:
        process: rank of this process, which it is where no supervisor has started it.
        env: the environment.
    """
    attempt = ATTEMPT.get(env)
    return attempt[0] if attempt else process


def _number(env: Mapping[str, str], key: str) -> int:
    try:
        return int(env[key])
    except (KeyError, ValueError):
        raise InputError(
            key, f"is {env.get(key)!r}", "start the job with its launcher, or unset it"
        ) from None


def _local(env: Mapping[str, str]) -> LaunchInfo:
    """A process that exajax itself started (`exajax.job.local_hosts`, or a supervisor)."""
    process, processes = HOST.get(env), HOSTS.get(env)
    if process is None or processes is None:
        raise InputError(HOST.name, f"is not set beside {HOSTS.name}", "set both, or unset both")
    local = LOCAL_HOST.get(env)
    return LaunchInfo(
        "local",
        processes,
        process,
        process if local is None else local,
        COORDINATOR.get(env),
        LAUNCHER.get(env) or f"{HOSTS.name}, {HOST.name}",
        JOB.get(env) or "",
        ADDRESS.get(env) or "127.0.0.1",
    )


def _pals(env: Mapping[str, str]) -> LaunchInfo:
    """A rank of Cray PALS under PBS (Polaris, Aurora)."""
    nodes = Path(env["PBS_NODEFILE"]).read_text().split()
    job = env.get("PALS_APID") or env.get("PBS_JOBID", "")
    # PALS offers no exchange between ranks, so that each derives the same port from the job's name.
    port = 20_000 + zlib.crc32(job.encode()) % 20_000
    size = "PALS_SIZE" if "PALS_SIZE" in env else "PMI_SIZE"
    return LaunchInfo(
        "pals",
        _number(env, size),
        _number(env, "PALS_RANKID"),
        _number(env, "PALS_LOCAL_RANKID"),
        f"{nodes[0]}:{port}",
        f"PALS_RANKID, {size}, PBS_NODEFILE",
        f"pals-{job}",
        socket.gethostname(),
    )


def _slurm(env: Mapping[str, str]) -> LaunchInfo:
    """A task of a Slurm step; JAX itself derives the coordinator from the step's node list."""
    return LaunchInfo(
        "slurm",
        _number(env, "SLURM_STEP_NUM_TASKS"),
        _number(env, "SLURM_PROCID"),
        _number(env, "SLURM_LOCALID"),
        None,
        "SLURM_STEP_NUM_TASKS, SLURM_PROCID",
        "-".join(env.get(f"SLURM_{name}", "") for name in ("JOB_ID", "STEP_ID", "RESTART_COUNT")),
        socket.gethostname(),
    )


def _kubernetes(env: Mapping[str, str]) -> LaunchInfo:
    """A pod of an Indexed Job: Kubernetes sets its number, the job's manifest everything else.

    Pods are reached at `HOSTNAME.SERVICE`, names of a headless service, so that the name of the
    first pod also gives the service of this one (kubernetes.io, "Job with Pod-to-Pod
    Communication").
    """
    for key, example in ((COORDINATOR, "train-hosts-0-0.train:8476"), (JOB, "the Job's uid")):
        if not key.get(env):
            raise InputError(
                key.name,
                "the manifest does not set it",
                f"set it to the same on every pod ({example}), as launch/kubernetes.yaml does",
            )
    service = env[COORDINATOR.name].rpartition(":")[0].partition(".")[2]
    return LaunchInfo(
        "kubernetes",
        _number(env, PODS.name),
        _number(env, POD),
        0,
        env[COORDINATOR.name],
        f"{POD}, {PODS.name}",
        f"kubernetes-{env[JOB.name]}",
        f"{env.get('HOSTNAME') or socket.gethostname()}.{service}",
    )


def _mpi(env: Mapping[str, str]) -> LaunchInfo:
    """A rank of any MPI; rank 0 broadcasts the coordinator's address and the job's name."""
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
    single_node = node.Get_size() == world.Get_size()
    host = "127.0.0.1" if single_node else socket.gethostname()
    first = world.Get_rank() == 0
    coordinator, job = world.bcast(
        (f"{host}:{free_port()}", f"mpi-{uuid.uuid4().hex[:12]}") if first else None, root=0
    )
    return LaunchInfo(
        "mpi",
        world.Get_size(),
        world.Get_rank(),
        node.Get_rank(),
        coordinator,
        f"mpi4py, {MPI.Get_library_version().split(chr(10))[0].strip()}",
        job,
        host,
    )
