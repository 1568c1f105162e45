"""Watches over a run's arithmetic: judges its steps, audits its devices, names its slow hosts."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from exajax.errors import RunFailed
from exajax.job import launchers
from exajax.spmd.step import TrainState, TrainStep
from exajax.spmd.workload import Batch
from exajax.train.health.audit import Audit, Discrepancy
from exajax.train.health.bad_steps import BadSteps, Policy, RollBack
from exajax.train.health.stragglers import TIMES, Straggler, Stragglers
from exajax.train.hooks import Hooks

LOGGER = logging.getLogger(__name__)

CORRUPTIONS = 3
"""Findings on one host with which a run ends: once or twice may be chance, then it is the host."""

Newest = Callable[[], int | None]
"""Returns the step of the newest checkpoint, once nothing is being saved."""


@dataclass(frozen=True)
class Verdict:
    """What comes of a look at a run; the same on every process but for `metrics`.

    Attributes:
        metrics: what to log of it, on this process.
        back: how far the run has to go back; None if it goes on.
    """

    metrics: Mapping[str, float] = field(default_factory=dict)
    back: RollBack | None = None


class Health:
    """What a run knows of its own health. All processes know the same, and decide alike.

    Args:
        step: the workload on its mesh.
        policy: what to do about bad steps, and how often to audit.
        hooks: get an event of each finding.

    Raises:
        InputError: a device has no room for the audit.
    """

    def __init__(self, step: TrainStep, policy: Policy, hooks: Hooks) -> None:
        self._first = jax.process_index() == 0
        self._hooks, self._host = hooks, launchers.host_number(jax.process_index())
        self.steps = BadSteps(policy)
        self._corruptions: Counter[int] = Counter()
        self._audit = Audit(step, self._host) if policy.audit_every else None
        if self._audit:
            self._stragglers = Stragglers(self._audit.hosts, self._audit.groups)
            self._log(f"audit every {policy.audit_every} steps: {self._audit}")

    def judge(
        self,
        number: int,
        metrics: Mapping[str, float],
        state: TrainState,
        batch: Batch,
        newest: Newest,
    ) -> Verdict:
        """Returns what to do about a step; the metrics of a bad one are the bad steps so far.

        Where there are audits, one goes first: of a bad step that corruption has made, the samples
        are not to blame.

        Args:
            number: of the step, from 1.
            metrics: its `loss` and `grad_norm`.
            state: the newest.
            batch: the last one.
            newest: the run's newest checkpoint.

        Raises:
            RunFailed: the run has to end.
        """
        loss, grad_norm = metrics["loss"], metrics["grad_norm"]
        kind = self.steps.kind(loss, grad_norm)
        if kind is None:
            return Verdict()
        finding = self._audit.look(state, batch).finding if self._audit else None
        if finding:
            return self._corrupt(number, finding, newest)
        action, saved = self.steps.action(kind), None
        if action != "skip":
            saved = newest()
            action = self.steps.still(action, saved)
        what = f"step {number} is bad ({kind}: loss {loss:.6g}, gradient norm {grad_norm:.6g})"
        self._report(
            "bad-step", f"{what}: {action}",
            step=number, kind=kind, action=action, loss=loss, grad_norm=grad_norm,
        )  # fmt: skip
        if action == "roll-back":
            return Verdict(back=self.steps.roll_back(number))
        if action == "stop":
            none = "no checkpoint was saved"
            where = none if saved is None else f"the newest checkpoint is of step {saved}"
            raise RunFailed(f"{what}; {where}")
        return Verdict({"bad_steps": self.steps.count})

    def audit(
        self,
        number: int,
        state: TrainState,
        batch: Batch,
        times_s: Sequence[float],
        newest: Newest,
    ) -> Verdict:
        """Looks for corruption and slow hosts.

        Args:
            number: updates that the state has seen.
            state: nothing is in flight that writes over it.
            batch: the last one.
            times_s: of this process, as `stragglers.TIMES`, without the replay.
            newest: the run's newest checkpoint.

        Raises:
            RunFailed: the same host is corrupt again and again.
        """
        assert self._audit
        report = self._audit.look(state, batch, times_s)
        if report.finding:
            return self._corrupt(number, report.finding, newest)
        for slow in self._stragglers.add(report.times_s):
            self._straggles(number, slow)
        own = dict(zip(TIMES, report.times_s[jax.process_index()].tolist(), strict=False))
        slow_here = any(self._host in slow.hosts for slow in self._stragglers.slow)
        replay = {"replay_s": own["replay"]} if "replay" in own else {}
        return Verdict({"straggler": float(slow_here), **replay})

    def _corrupt(self, number: int, finding: Discrepancy, newest: Newest) -> Verdict:
        """Returns that the run goes back to its newest checkpoint, as it is corrupt.

        The newest checkpoint is clean: an audit went before each that this process has saved, and
        what it began with was read alike by all devices.

        Raises:
            RunFailed: the same host is corrupt again and again.
        """
        self._corruptions.update(finding.hosts)
        host, times = self._corruptions.most_common(1)[0]
        action = "stop" if times >= CORRUPTIONS else "roll-back"
        self._report(
            "corruption", f"step {number}: {finding}: {action}",
            step=number, hosts=finding.hosts, devices=finding.devices, what=finding.what,
            certain=finding.certain, action=action,
        )  # fmt: skip
        if action == "roll-back":
            return Verdict(back=RollBack(number, 0))
        raise RunFailed(
            f"step {number}: host {host} is corrupt, found {times} times: {finding}; the newest "
            f"checkpoint is of step {newest()}, go on from it without that host"
        )

    def _straggles(self, number: int, slow: Straggler) -> None:
        self._report(
            "straggler", f"step {number}: {slow}",
            step=number, hosts=slow.hosts, ratio=slow.ratio, what=slow.what,
        )  # fmt: skip

    def _report(self, event: str, line: str, **facts: Any) -> None:
        if self._first:
            self._hooks.event(event, **facts)
        self._log(line)

    def _log(self, line: str) -> None:
        if self._first:
            LOGGER.warning("%s", line)
