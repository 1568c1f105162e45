"""The hosts of the next attempt: which are ready, which are waited for, which are lost."""

import logging
import time
from collections.abc import Mapping, Sequence

from exajax.job.events import EventLog
from exajax.resilience.control import Control, HostStatus
from exajax.resilience.elastic import ElasticLayout
from exajax.resilience.policy import LeaderPolicy

LOGGER = logging.getLogger(__name__)

NAMED_AFTER_S = 5.0
"""Seconds after which a host that is waited for is named in the log."""


class NoLayoutError(Exception):
    """The hosts that are left make up no mesh; the message says which ones are missing, and why."""


class Roster:
    """Chooses the hosts and the mesh of each attempt.

    Args:
        control: the control files of the run.
        hosts: number of hosts of the job.
        policy: how long to wait for missing hosts, and the layouts on fewer hosts.
        events: the event log of the leader's supervisor.
    """

    def __init__(
        self, control: Control, hosts: int, policy: LeaderPolicy, events: EventLog
    ) -> None:
        self._control, self._hosts, self._policy, self._events = control, hosts, policy, events
        self._missing_since_s: float | None = None
        self._lost: tuple[int, ...] = ()
        self._named: set[int] = set()

    def begin(self) -> None:
        """Notes that an attempt begins: the next wait for missing hosts starts anew."""
        self._missing_since_s = None

    def layout(self, hosts: Mapping[int, HostStatus]) -> ElasticLayout | None:
        """The hosts and mesh of the next attempt; None while missing hosts are waited for.

        Args:
            hosts: statuses of the living supervisors, by host.

        Raises:
            NoLayoutError: the wait is over, and the hosts that are ready make up no mesh.
        """
        ready = _ready(hosts)
        lost = tuple(sorted(set(range(self._hosts)) - set(ready)))
        missing = {n for n in lost if n not in self._lost and not self._control.drained(n)}
        if missing and self._wait_for(missing):
            return None
        layout = self._policy.layouts.for_hosts(ready)
        known, self._lost = self._lost, lost
        if layout is None:
            raise NoLayoutError(self._why_none(lost))
        if lost and lost != known:
            self._events.write("host-lost", hosts=list(lost), mesh=layout.mesh)
            LOGGER.warning("goes on without host %s, on mesh %s", _listed(lost), layout.mesh)
        return layout

    def can_grow(self, members: int, hosts: Mapping[int, HostStatus]) -> bool:
        """Whether more hosts than the members of an attempt are ready and make up a mesh."""
        layout = self._policy.layouts.for_hosts(_ready(hosts))
        return layout is not None and len(layout.members) > members

    def _wait_for(self, missing: set[int]) -> bool:
        """Whether missing hosts are waited for still; names them after `NAMED_AFTER_S`."""
        self._missing_since_s = self._missing_since_s or time.monotonic()
        waited_s = time.monotonic() - self._missing_since_s
        if waited_s > NAMED_AFTER_S and missing != self._named:
            self._named = missing
            limit = f"{self._policy.host_wait_s:.0f} s at most (`host_wait`)"
            LOGGER.info(
                "waits for host %s of %d, for %s", _listed(sorted(missing)), self._hosts, limit
            )
        return waited_s < self._policy.host_wait_s

    def _why_none(self, lost: Sequence[int]) -> str:
        drained = [n for n in lost if self._control.drained(n)]
        absent = [n for n in lost if n not in drained]
        reasons = []
        if absent:
            wait = f"{self._policy.host_wait_s:.0f} s"
            reasons.append(f"host {_listed(absent)} did not come within {wait}")
        if drained:
            files = " and ".join(f"{self._control.folder}/drain-{n}" for n in drained)
            reasons.append(
                f"host {_listed(drained)} is drained, and the rest is no mesh: remove {files}"
            )
        return "; ".join(reasons)


def _ready(hosts: Mapping[int, HostStatus]) -> list[int]:
    """The hosts that may run the next attempt, in order."""
    return sorted(number for number, status in hosts.items() if not status.leaving)


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))
