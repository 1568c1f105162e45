"""The leader of a job: decides which hosts run, what failed, when to restart and when to stop.

Decisions are stored in `attempt.json`, not in the leader: whoever takes over the lease continues
from there.
"""

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence

from exajax.errors import FAILED
from exajax.job.events import EventLog
from exajax.resilience.control import (
    Attempt,
    Control,
    HostStatus,
    WorkerStatus,
    newest_checkpoint,
)
from exajax.resilience.culprit import PROGRAM_FAULTS, culprit_of
from exajax.resilience.liveness import Liveness
from exajax.resilience.policy import LeaderPolicy
from exajax.resilience.roster import NoLayoutError, Roster

LOGGER = logging.getLogger(__name__)

FOLLOW_S = 5.0
"""Seconds that the leader stays after the end, so that the other supervisors can read of it."""

TERMINATED = 128 + 15
"""Exit code of a process that SIGTERM ended before it trained, with nothing to save."""

BEFORE_STEPS = ("start", "compile", "restore")
"""Phases of an attempt before its first step."""

NO_ATTEMPT = -2
"""`Attempt.newest` of the placeholder before a job's first attempt."""


class Leader:
    """Decides for a job while its supervisor holds the lease.

    Args:
        control: the control files of the run.
        job: identifier of the job, a new one each time the command is started.
        hosts: number of hosts of the job.
        policy: limits and delays.
        events: the event log of the leader's supervisor.
    """

    def __init__(
        self, control: Control, job: str, hosts: int, policy: LeaderPolicy, events: EventLog
    ) -> None:
        self._control, self._job, self._hosts = control, job, hosts
        self._policy, self._events = policy, events
        self._roster = Roster(control, hosts, policy, events)
        self.liveness = Liveness(control, job, hosts, policy.silent_s)
        self._fault_s: float | None = None
        self._first_end_s: float | None = None
        self._not_before_s = 0.0
        self._cause: object = None

    def decide(self, epoch: int, stop: bool) -> None:
        """Makes the next decision, if there is one to make.

        Args:
            epoch: number of the lease.
            stop: whether this supervisor was asked to stop.
        """
        hosts = self.liveness.hosts()
        attempt = self._control.attempt()
        if attempt is not None and attempt.epoch > epoch:
            return  # this process was suspended meanwhile, and another one leads
        if attempt is None or attempt.job != self._job:
            self._begin(hosts, attempt, epoch, stop)
        elif attempt.epoch < epoch:
            self._control.publish(dataclasses.replace(attempt, epoch=epoch))
        elif attempt.state == "run":
            self._check_running(attempt, hosts, stop)
        elif attempt.state in ("save", "end"):
            self._check_ending(attempt, hosts, stop)

    def others_stay(self) -> bool:
        """Whether another host is alive and was not asked to leave."""
        others = (status for n, status in self.liveness.hosts().items() if n != self._own_host)
        return any(not status.leaving for status in others)

    def wait_for_followers(self, round_s: float) -> bool:
        """Waits until the other supervisors have left, so that the lease outlives them.

        Returns:
            Whether all of them have.
        """
        until_s = time.monotonic() + FOLLOW_S
        while time.monotonic() < until_s:
            statuses = map(self._control.host, range(self._hosts))
            left = {s.host for s in statuses if s and s.job == self._job and s.gone}
            if left | {self._own_host} == set(range(self._hosts)):
                return True
            if not self.liveness.hosts().keys() - left - {self._own_host}:
                return False  # the others never came, or were lost
            time.sleep(round_s)
        return False

    @property
    def _own_host(self) -> int:
        return self._events.host

    def _begin(
        self, hosts: dict[int, HostStatus], before: Attempt | None, epoch: int, stop: bool
    ) -> None:
        """Starts the first attempt; `before` is the last one of the job before."""
        compile_anew = before is not None and before.anew and before.code == 1
        number = before.number if before else 0
        blank = Attempt(number, epoch, self._job, "end", newest=NO_ATTEMPT, anew=compile_anew)
        if stop:
            self._control.publish(dataclasses.replace(blank, state="over", code=130))
        else:
            self._restart(blank, hosts)

    def _check_running(self, attempt: Attempt, hosts: dict[int, HostStatus], stop: bool) -> None:
        """Decides about an attempt that runs: finished, refused, failed, or to be saved early."""
        members = [hosts.get(number) for number in attempt.members]
        self._note_recovery(attempt)
        if stop:
            self._save(attempt, "the job was asked to stop")
            return
        codes = {
            status.host: status.code or 0
            for status in members
            if status and status.attempt == attempt.number and not status.running
        }
        silent = [n for n, status in zip(attempt.members, members, strict=True) if status is None]
        all_ended = len(codes) == len(members)
        if all_ended and not any(codes.values()):
            self._finish(attempt, 0, "done")
        elif 2 in codes.values():
            if self._settled(all_ended, self._policy.refuse_s):
                refusing = [host for host, code in codes.items() if code == 2]
                self._finish(attempt, 2, self._refusal(attempt, refusing, hosts))
        elif FAILED in codes.values():
            self._finish(attempt, 1, "the run has failed, and would again")
        elif (silent or any(codes.values())) and self._settled(all_ended):
            self._fail(attempt, hosts, codes, silent)
        elif any(status and status.leaving for status in members):
            leaving = [status.host for status in members if status and status.leaving]
            self._save(attempt, f"host {leaving} leaves")
        elif self._roster.can_grow(len(attempt.members), hosts):
            self._events.write("host-back", hosts=sorted(set(hosts) - set(attempt.members)))
            self._save(attempt, "a host has come back")

    def _settled(self, all_ended: bool, least_s: float = -1.0) -> bool:
        """Whether an attempt is to be judged.

        It is once all members have ended, or the longer of `settle_s` and `least_s` has passed
        since the first one did.
        """
        now_s = time.monotonic()
        self._first_end_s = self._first_end_s or now_s
        return all_ended or now_s - self._first_end_s > max(least_s, self._policy.settle_s)

    def _fail(
        self,
        attempt: Attempt,
        hosts: Mapping[int, HostStatus],
        codes: Mapping[int, int],
        silent: Sequence[int],
    ) -> None:
        """Ends an attempt in which something failed, and logs the culprit."""
        workers = {n: worker for n in attempt.members if (worker := self._worker(n, attempt))}
        culprit = culprit_of(codes, silent, hosts, workers)
        worker, code = workers.get(culprit.host), codes.get(culprit.host)
        self._fault_s, self._first_end_s = time.monotonic(), None
        self._events.write(
            "fault",
            kind=culprit.kind,
            of=culprit.host,
            code=code,
            phase=worker.phase if worker else "start",
            step=worker.step if worker else 0,
            reason=culprit.reason,
        )
        LOGGER.warning("attempt %d: %s", attempt.number, culprit.reason)
        unproven = any(worker.unproven for worker in workers.values())
        compile_anew = unproven and code in PROGRAM_FAULTS
        problem = self._control.problem(culprit.host, attempt.number)
        place = worker and (worker.phase, worker.step)
        cause = problem and problem.recurs and (problem.text, place)
        if problem and cause and cause == self._cause and not compile_anew:
            # The same error twice in the same place would be met a third time.
            self._finish(attempt, 1, f"{problem.text}, in two attempts at the same step")
            return
        self._cause = cause
        if compile_anew:
            LOGGER.warning(
                "attempt %d read its step from the compilation cache and ended in the first steps: "
                "the next attempt compiles it anew",
                attempt.number,
            )
        ended = dataclasses.replace(attempt, state="end", reason=culprit.reason, anew=compile_anew)
        self._control.publish(ended)

    def _refusal(
        self, attempt: Attempt, refusing: Sequence[int], hosts: Mapping[int, HostStatus]
    ) -> str:
        """The input error that hosts reported; names the hosts unless all did."""
        hosts_by_text: dict[str, list[int]] = {}
        for host in refusing:
            problem = self._control.problem(host, attempt.number)
            hosts_by_text.setdefault(problem.text if problem else "bad input", []).append(host)
        text, reporters = next(iter(hosts_by_text.items()))
        if len(reporters) == len(attempt.members):
            return text
        names = ", ".join(f"{n} ({hosts[n].machine.split()[0]})" for n in reporters)
        return f"host {names}: {text}"

    def _worker(self, host: int, attempt: Attempt) -> WorkerStatus | None:
        worker = self._control.worker(host)
        return worker if worker and worker.attempt == attempt.number else None

    def _check_ending(self, attempt: Attempt, hosts: dict[int, HostStatus], stop: bool) -> None:
        """Decides how to go on once the training processes of an attempt have ended."""
        members = [hosts[n] for n in attempt.members if n in hosts]
        codes = {s.code for s in members if s.attempt == attempt.number and not s.running}
        if any(status.running for status in members):
            if stop and attempt.state == "save" and TERMINATED in codes:
                # SIGTERM ended one member before it trained: the others would wait for it to save.
                ended = dataclasses.replace(attempt, state="end", reason="the job was stopped")
                self._control.publish(ended)
            return
        if stop:
            # A failed attempt has nothing to save; the same command resumes the job.
            saved = attempt.state == "end" or codes <= {0, 130, TERMINATED}
            code = 0 if codes == {0} else 130 if saved else 1
            self._finish(attempt, code, "the job was stopped")
        elif codes == {0}:
            self._finish(attempt, 0, "done")
        else:
            self._restart(attempt, hosts)

    def _restart(self, attempt: Attempt, hosts: dict[int, HostStatus]) -> None:
        """Starts the attempt after this one when its hosts are there and the backoff has passed."""
        newest = newest_checkpoint(self._control.run_dir)
        failed = attempt.state == "end" and attempt.newest != NO_ATTEMPT
        fruitless = attempt.fruitless + 1 if failed and newest <= attempt.newest else 0
        if failed and (fruitless > self._policy.restarts or not self._policy.restarts):
            reason = f"{attempt.reason}; {fruitless} attempts brought no newer checkpoint"
            self._finish(attempt, 1, reason)
            return
        if failed and not self._not_before_s:
            backoff_s = min(2.0 ** (fruitless - 2), self._policy.max_backoff_s)
            self._not_before_s = time.monotonic() + (backoff_s if fruitless > 1 else 0.0)
        try:
            layout = self._roster.layout(hosts)
        except NoLayoutError as error:
            self._finish(attempt, 1, str(error))
            return
        if layout is None or time.monotonic() < self._not_before_s:
            return
        self._not_before_s = 0.0
        self._roster.begin()
        first = hosts[layout.members[0]]
        self._control.publish(
            Attempt(
                attempt.number + 1,
                attempt.epoch,
                self._job,
                "run",
                layout.members,
                f"{first.address}:{first.port}",
                layout.mesh,
                layout.micro_batch,
                fruitless,
                newest,
                anew=attempt.anew and attempt.state == "end",
            )
        )

    def _note_recovery(self, attempt: Attempt) -> None:
        """Logs how long the recovery from a fault took, once the new attempt trains."""
        if self._fault_s is None:
            return
        workers = [self._worker(number, attempt) for number in attempt.members]
        if all(worker and worker.phase not in BEFORE_STEPS for worker in workers):
            seconds = time.monotonic() - self._fault_s
            step = min(worker.step for worker in workers if worker)
            self._events.write("recovered", step=step, seconds=seconds)
            self._fault_s = None

    def _save(self, attempt: Attempt, reason: str) -> None:
        """Asks the training processes of an attempt to save and end."""
        self._control.publish(dataclasses.replace(attempt, state="save", reason=reason))

    def _finish(self, attempt: Attempt, code: int, reason: str) -> None:
        """Ends the job with an exit code."""
        if code == 1:
            LOGGER.error("gives up: %s", reason)
        elif code == 2:
            LOGGER.error("error: %s", reason)
        self._control.publish(dataclasses.replace(attempt, state="over", code=code, reason=reason))
