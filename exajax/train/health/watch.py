"""Watches over a run's arithmetic: judges its steps, audits its devices, names its slow hosts."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax

from exajax.errors import RunFailed
from exajax.job.events import EventLog
from exajax.spmd.step import TrainState, TrainStep
from exajax.spmd.workload import Batch
from exajax.train.health.audit import Audit, Finding
from exajax.train.health.bad_steps import BadSteps, Policy, RollBack
from exajax.train.health.stragglers import TIMES, Straggler, Stragglers

CORRUPTIONS = 3
"""Findings on one host with which a run ends: once or twice may be chance, then it is the host."""

Newest = Callable[[], int | None]
"""Returns the step of the newest checkpoint, once nothing is being saved."""


class Health:
    """What a run knows of its own health. All processes know the same, and decide alike.

    Args:
        step: the workload on its mesh.
        policy: what to do about bad steps, and how often to audit.
        host: number of this process's host.
        events: told what is found, on the first process.
        newest: the run's newest checkpoint.

    Raises:
        InputError: a device has no room for the audit.
    """

    def __init__(
        self, step: TrainStep, policy: Policy, host: int, events: EventLog | None, newest: Newest
    ) -> None:
        self._first = jax.process_index() == 0
        self._events, self._host, self._newest = events, host, newest
        self.steps = BadSteps(policy)
        self._corruptions: Counter[int] = Counter()
        self._audit = Audit(step, host) if policy.audit_every else None
        if self._audit:
            self._stragglers = Stragglers(self._audit.hosts, self._audit.groups)
            self._say(f"audit every {policy.audit_every} steps: {self._audit}")

    def judge(
        self, number: int, loss: float, grad_norm: float, state: TrainState, batch: Batch
    ) -> bool:
        """Returns whether a step is bad, and nothing else to do but to take note.

        Where there are audits, one goes first: of a bad step that corruption has made, the samples
        are not to blame.

        Args:
            number: of the step, from 1.
            loss: of the step.
            grad_norm: of the step.
            state: the newest.
            batch: the last one.

        Raises:
            RollBack: the loop has to go back.
            RunFailed: the run has to end.
        """
        kind = self.steps.kind(loss, grad_norm)
        if kind is None:
            return False
        finding = self._audit.look(state, batch).finding if self._audit else None
        if finding:
            raise self._corrupt(number, finding)
        action, newest = self.steps.action(kind), None
        if action != "skip":
            newest = self._newest()
            action = self.steps.still(action, newest)
        found = f"step {number} is bad ({kind}: loss {loss:.6g}, gradient norm {grad_norm:.6g})"
        self._tell(
            "bad-step", f"{found}: {action}",
            step=number, kind=kind, action=action, loss=loss, grad_norm=grad_norm,
        )  # fmt: skip
        if action == "roll-back":
            raise self.steps.roll_back(number)
        if action == "stop":
            saved = f"the newest checkpoint is of step {newest}"
            raise RunFailed(f"{found}; {'no checkpoint was saved' if newest is None else saved}")
        return True

    def audit(
        self, number: int, state: TrainState, batch: Batch, times_s: Sequence[float]
    ) -> dict[str, float]:
        """Looks for corruption and slow hosts; returns what to log of this process.

        Args:
            number: updates that the state has seen.
            state: nothing is in flight that writes over it.
            batch: the last one.
            times_s: of this process, as `stragglers.TIMES`, without the replay.

        Raises:
            RollBack: something differs; the loop has to go back to where nothing did.
            RunFailed: the same host is corrupt again and again.
        """
        assert self._audit
        report = self._audit.look(state, batch, times_s)
        if report.finding:
            raise self._corrupt(number, report.finding)
        for slow in self._stragglers.add(report.times_s):
            self._straggles(number, slow)
        mine = dict(zip(TIMES, report.times_s[jax.process_index()].tolist(), strict=False))
        slow_here = any(self._host in slow.hosts for slow in self._stragglers.slow)
        replay = {"replay_s": mine["replay"]} if "replay" in mine else {}
        return {"straggler": float(slow_here), **replay}

    def _corrupt(self, number: int, finding: Finding) -> Exception:
        """Returns what is to be done about corruption.

        The newest checkpoint is clean: an audit went before each that this process has saved, and
        what it began with was read alike by all devices.
        """
        self._corruptions.update(finding.hosts)
        host, times = self._corruptions.most_common(1)[0]
        action = "stop" if times >= CORRUPTIONS else "roll-back"
        self._tell(
            "corruption", f"step {number}: {finding}: {action}",
            step=number, hosts=finding.hosts, devices=finding.devices, what=finding.what,
            certain=finding.certain, action=action,
        )  # fmt: skip
        if action == "roll-back":
            return RollBack(number, 0)
        return RunFailed(
            f"step {number}: host {host} is corrupt, found {times} times: {finding}; the newest "
            f"checkpoint is of step {self._newest()}, go on from it without that host"
        )

    def _straggles(self, number: int, slow: Straggler) -> None:
        self._tell(
            "straggler", f"step {number}: {slow}",
            step=number, hosts=slow.hosts, ratio=slow.ratio, what=slow.what,
        )  # fmt: skip

    def _tell(self, event: str, line: str, **facts: Any) -> None:
        if self._first and self._events:
            self._events.write(event, **facts)
        self._say(line)

    def _say(self, line: str) -> None:
        if self._first:
            print(f"exajax: {line}", file=sys.stderr, flush=True)
