"""One host's place in a supervised job."""

from dataclasses import dataclass

from exajax.resilience.control import period_s

ROUND_S = {True: 0.05, False: 0.5}
"""Seconds between two rounds of a supervisor, by whether all hosts are on this machine; others
share a file system, and very many of them wait longer."""


@dataclass(frozen=True)
class HostPlacement:
    """One host's place in a supervised job.

    Attributes:
        host: number of the host, from 0.
        hosts: number of hosts.
        local: rank of the host's process on its node.
        job: identifies the start of the command, the same on all hosts.
        address: host name or address at which other hosts reach this one.
        one_machine: whether all hosts are on this machine.
        why: what this was read from.
        leaves_alone: whether this host may be asked to leave while the others stay, as pods are;
            otherwise a host that is asked to stop stops the job.
    """

    host: int
    hosts: int
    local: int
    job: str
    address: str
    one_machine: bool
    why: str
    leaves_alone: bool = False

    @property
    def round_s(self) -> float:
        """Seconds between two rounds of its supervisor."""
        return period_s(ROUND_S[self.one_machine], self.hosts)
