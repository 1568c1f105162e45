"""Which host made an attempt fail: when one process fails, those that wait for it end as well."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from exajax.resilience.control import HostStatus, WorkerStatus
from exajax.resilience.watchdog import STUCK

ABORTED = 134
"""Exit code of a process that JAX aborts because another process of the job is gone (SIGABRT)."""

PROGRAM_FAULTS = {128 + 4, ABORTED, 128 + 7, 128 + 8, 128 + 11, STUCK}
"""Exit codes of a process whose compiled program may be to blame: SIGILL, SIGABRT, SIGBUS, SIGFPE,
SIGSEGV, and a stuck process."""


@dataclass(frozen=True)
class Culprit:
    """The host that made an attempt fail.

    Attributes:
        host: number of the host.
        kind: `host-silent`, `silent`, `stuck`, `preempted` or `worker-ended`, as in the events.
        reason: one line for the log.
    """

    host: int
    kind: str
    reason: str


def culprit_of(
    codes: Mapping[int, int],
    silent: Sequence[int],
    hosts: Mapping[int, HostStatus],
    workers: Mapping[int, WorkerStatus],
) -> Culprit:
    """The host that failed first, as far as exit codes and heartbeats tell.

    In this order: a dead supervisor; a process without a heartbeat; a process that ended by itself,
    rather than because another one had gone; the process that the stuck ones wait for.

    Args:
        codes: exit codes of the members that have ended, by host.
        silent: members whose supervisor is dead.
        hosts: statuses of the living supervisors, by host.
        workers: last statuses of the members' training processes, by host.
    """
    if silent:
        return Culprit(silent[0], "host-silent", f"the supervisor of host {silent[0]} is gone")
    failed = {host: code for host, code in codes.items() if code}
    for host in failed:
        if hosts[host].reason.startswith("silent"):
            reason = f"the process of host {host} was {hosts[host].reason}"
            return Culprit(host, "silent", reason)
    host = min(failed, key=lambda number: (_follower_rank(failed[number]), number))
    if failed[host] == STUCK:
        return _stuck(host, workers)
    kind = "preempted" if failed[host] == 130 else "worker-ended"
    return Culprit(host, kind, f"the process of host {host} ended with {failed[host]}")


def _stuck(host: int, workers: Mapping[int, WorkerStatus]) -> Culprit:
    """The process that entered the fewest phases: the others wait for it in a collective."""
    phases = {number: worker.turns for number, worker in workers.items()}
    host = min(phases, key=lambda number: phases[number], default=host)
    worker = workers.get(host)
    where = f"at {worker.phase} {worker.step}" if worker else ""
    who = f"host {host} is" if len(set(phases.values())) > 1 else "all hosts are"
    return Culprit(host, "stuck", f"{who} stuck {where}")


def _follower_rank(code: int) -> int:
    """How likely a process with this exit code ended because of another one; 0 is the least."""
    if code == ABORTED:
        return 3
    if code == STUCK:
        return 2
    return 0 if code > 128 and code != 130 else 1
