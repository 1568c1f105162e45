"""What the leader of a job decides: who runs, what failed, when to try again, when to stop.

Decisions are kept in `attempt.json`, not in the leader: whoever takes the lease goes on from there.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from exajax.errors import FAILED
from exajax.job.events import EventLog
from exajax.resilience import elastic
from exajax.resilience.control import (
    Attempt,
    Control,
    Host,
    Worker,
    alive,
    newest_checkpoint,
    this_machine,
)
from exajax.resilience.watchdog import STUCK

FOLLOW_S = 5.0
"""Time that the others have to read that the job is over before the leader leaves."""

TOO_EARLY = 128 + 15
"""Exit code of a process that SIGTERM has ended: before it trains, and has anything to save."""

WAIT_SAID_S = 5.0
"""A host that is waited for longer is named."""

ABORTED = 134
"""Exit code of a process that JAX aborts since another has gone."""

PROGRAM_FAULTS = {128 + 4, ABORTED, 128 + 7, 128 + 8, 128 + 11, STUCK}
"""Exit codes of a process whose compiled program may be to blame: SIGILL, SIGABRT, SIGBUS, SIGFPE,
SIGSEGV, and one that was stuck."""


@dataclass(frozen=True)
class Policy:
    """What the leader goes by.

    Attributes:
        restarts: attempts in a row that may fail without a newer checkpoint; 0: none is made
            again.
        max_backoff_s: longest time between two such attempts; the first follows at once, then
            1 s, 2 s, 4 s, ...
        host_wait_s: how long to wait for a host that is missing before going on without it.
        layouts: how the job goes on with fewer hosts.
        silent_s: a host that says nothing for longer is gone.
        settle_s: time between the first process that ends and the verdict on who was first: the
            news of others that ended in the same moment is on its way.
        refuse_s: time that the other hosts have to refuse the input that one has refused.
    """

    restarts: int
    max_backoff_s: float
    host_wait_s: float
    layouts: elastic.Layouts
    silent_s: float
    settle_s: float
    refuse_s: float = 5.0


class Leader:
    """Decides for a job while its supervisor holds the lease.

    Args:
        control: of the run.
        job: which start of the command.
        hosts: how many hosts there are when all are there.
        policy: what to go by.
        events: where decisions are told.
    """

    def __init__(
        self, control: Control, job: str, hosts: int, policy: Policy, events: EventLog
    ) -> None:
        self._control, self._job, self._hosts = control, job, hosts
        self._policy, self._events = policy, events
        self._seen: dict[int, tuple[int, int, float]] = {}
        self._missing_since_s: float | None = None
        self._fault_s: float | None = None
        self._first_end_s: float | None = None
        self._not_before_s = 0.0
        self._lost: tuple[int, ...] = ()
        self._cause: object = None
        self._waited_for: set[int] = set()

    def decide(self, epoch: int, stop: bool) -> None:
        """Makes the next decision, if there is one to make.

        Args:
            epoch: of the lease.
            stop: whether this supervisor was asked to stop.
        """
        here = self._here()
        now = self._control.attempt()
        if now is not None and now.epoch > epoch:
            return  # this process was held up, and another one leads
        if now is None or now.job != self._job:
            self._begin(here, now, epoch, stop)
        elif now.epoch < epoch:
            self._say(dataclasses.replace(now, epoch=epoch))
        elif now.state == "run":
            self._watch(now, here, stop)
        elif now.state in ("save", "end"):
            self._after(now, here, stop)

    def forget(self) -> None:
        """Counts the silence of all hosts anew: this process has not looked for a while."""
        self._seen.clear()

    def others_stay(self) -> bool:
        """Returns whether a host is there beside the leader's that was not asked to leave."""
        others = (host for n, host in self._here().items() if n != self._leader_host)
        return any(not host.leaving for host in others)

    def wait_for_followers(self, round_s: float) -> bool:
        """Waits until the others have left, so that the lease outlives them.

        Returns:
            Whether all of them have.
        """
        until_s = time.monotonic() + FOLLOW_S
        while time.monotonic() < until_s:
            said = map(self._control.host, range(self._hosts))
            left = [host for host in said if host and host.job == self._job and host.gone]
            if {host.host for host in left} | {self._leader_host} == set(range(self._hosts)):
                return True
            if not self._here().keys() - {host.host for host in left} - {self._leader_host}:
                return False  # the rest has never come, or was lost
            time.sleep(round_s)
        return False

    @property
    def _leader_host(self) -> int:
        return self._events.host

    def _here(self) -> dict[int, Host]:
        """Returns what the supervisors that live say, by host."""
        here = {}
        for number in range(self._hosts):
            said = self._control.host(number)
            if said is None or said.job != self._job:
                continue
            mark = self._seen.get(number)
            if mark is None or mark[:2] != (said.pid, said.beat):
                mark = self._seen[number] = said.pid, said.beat, time.monotonic()
            ended = said.machine == this_machine() and not alive(said.pid)
            if time.monotonic() - mark[2] < self._policy.silent_s and not ended:
                here[number] = said
        return here

    def _begin(self, here: dict[int, Host], before: Attempt | None, epoch: int, stop: bool) -> None:
        anew = before is not None and before.anew and before.code == 1
        number = before.number if before else 0
        blank = Attempt(number, epoch, self._job, "end", newest=-2, anew=anew)
        if stop:
            self._say(dataclasses.replace(blank, state="over", code=130))
        else:
            self._next(blank, here)

    def _watch(self, now: Attempt, here: dict[int, Host], stop: bool) -> None:
        """Looks at an attempt that runs."""
        members = [here.get(number) for number in now.members]
        self._recovered(now)
        if stop:
            self._say(dataclasses.replace(now, state="save", reason="the job was asked to stop"))
            return
        ended = {
            host.host: host.code or 0
            for host in members
            if host and host.attempt == now.number and not host.running
        }
        silent = [n for n, host in zip(now.members, members, strict=True) if host is None]
        if len(ended) == len(members) and not any(ended.values()):
            self._over(now, 0, "done")
        elif 2 in ended.values():
            if self._settled(len(ended) == len(members), self._policy.refuse_s):
                refusing = [host for host, code in ended.items() if code == 2]
                self._over(now, 2, self._refusal(now, refusing, here))
        elif FAILED in ended.values():
            self._over(now, 1, "the run has failed, and would again")
        elif (silent or any(ended.values())) and self._settled(len(ended) == len(members)):
            self._fail(now, here, ended, silent)
        elif any(host and host.leaving for host in members):
            leaving = [host.host for host in members if host and host.leaving]
            self._say(dataclasses.replace(now, state="save", reason=f"host {leaving} leaves"))
        elif self._can_grow(now, here):
            self._events.write("host-back", hosts=sorted(set(here) - set(now.members)))
            self._say(dataclasses.replace(now, state="save", reason="a host has come back"))

    def _settled(self, all_ended: bool, least_s: float = -1.0) -> bool:
        now_s = time.monotonic()
        self._first_end_s = self._first_end_s or now_s
        return all_ended or now_s - self._first_end_s > max(least_s, self._policy.settle_s)

    def _fail(
        self, now: Attempt, here: dict[int, Host], ended: dict[int, int], silent: list[int]
    ) -> None:
        """Ends an attempt of which something failed, and names what."""
        said = {n: worker for n in now.members if (worker := self._said(n, now))}
        host, kind, why = _culprit(now, here, ended, silent, said)
        at = said.get(host)
        self._fault_s, self._first_end_s = time.monotonic(), None
        self._events.write(
            "fault",
            kind=kind,
            of=host,
            code=ended.get(host),
            phase=at.phase if at else "start",
            step=at.step if at else 0,
            reason=why,
        )
        self._tell(f"attempt {now.number}: {why}")
        unproven = any(worker.unproven for worker in said.values())
        anew = unproven and ended.get(host) in PROGRAM_FAULTS
        problem = self._control.problem(host, now.number)
        cause = problem and problem.recurs and (problem.text, at and (at.phase, at.step))
        if problem and cause and cause == self._cause and not anew:
            # What has happened twice at the same place would happen a third time.
            self._over(now, 1, f"{problem.text}, in two attempts at the same step")
            return
        self._cause = cause
        if anew:
            self._tell(
                f"attempt {now.number} read its step from the compilation cache and ended in the "
                "first steps: the next attempt compiles it anew"
            )
        self._say(dataclasses.replace(now, state="end", reason=why, anew=anew))

    def _refusal(self, now: Attempt, hosts: list[int], here: dict[int, Host]) -> str:
        """Returns what hosts have refused, and which where they are not all."""
        texts: dict[str, list[int]] = {}
        for host in hosts:
            problem = self._control.problem(host, now.number)
            texts.setdefault(problem.text if problem else "bad input", []).append(host)
        text, said_by = next(iter(texts.items()))
        if len(said_by) == len(now.members):
            return text
        names = ", ".join(f"{n} ({here[n].machine.split()[0]})" for n in said_by)
        return f"host {names}: {text}"

    def _said(self, host: int, now: Attempt) -> Worker | None:
        worker = self._control.worker(host)
        return worker if worker and worker.attempt == now.number else None

    def _after(self, now: Attempt, here: dict[int, Host], stop: bool) -> None:
        """Goes on once the workers of an attempt have ended."""
        mine = [here[n] for n in now.members if n in here]
        codes = {host.code for host in mine if host.attempt == now.number and not host.running}
        if any(host.running for host in mine):
            if stop and now.state == "save" and TOO_EARLY in codes:
                # Those that have begun to train cannot save without one that had not.
                self._say(dataclasses.replace(now, state="end", reason="the job was stopped"))
            return
        if stop:
            # Of an attempt that had failed already there is nothing to save; it goes on later.
            saved = now.state == "end" or codes <= {0, 130, TOO_EARLY}
            self._over(now, 0 if codes == {0} else 130 if saved else 1, "the job was stopped")
        elif codes == {0}:
            self._over(now, 0, "done")
        else:
            self._next(now, here)

    def _next(self, now: Attempt, here: dict[int, Host]) -> None:
        """Starts the next attempt when its hosts are there and its time has come."""
        newest = newest_checkpoint(self._control.run_dir)
        began = now.newest == -2  # of this job, none was made yet
        failed = now.state == "end" and not began
        fruitless = now.fruitless + 1 if failed and newest <= now.newest else 0
        if failed and (fruitless > self._policy.restarts or not self._policy.restarts):
            self._over(now, 1, f"{now.reason}; {fruitless} attempts brought no newer checkpoint")
            return
        if failed and not self._not_before_s:
            wait_s = min(2.0 ** (fruitless - 2), self._policy.max_backoff_s)
            self._not_before_s = time.monotonic() + (wait_s if fruitless > 1 else 0.0)
        layout = self._layout(now, here)
        if layout is None or time.monotonic() < self._not_before_s:
            return
        self._not_before_s, self._missing_since_s = 0.0, None
        first = here[layout.members[0]]
        self._say(
            Attempt(
                now.number + 1,
                now.epoch,
                self._job,
                "run",
                layout.members,
                f"{first.address}:{first.port}",
                layout.mesh,
                layout.micro_batch,
                fruitless,
                newest,
                anew=now.anew and now.state == "end",
            )
        )

    def _layout(self, now: Attempt, here: dict[int, Host]) -> elastic.Layout | None:
        """Returns what to run on, None as long as a host is waited for, or if it waited in vain."""
        ready = sorted(number for number, host in here.items() if not host.leaving)
        lost = tuple(sorted(set(range(self._hosts)) - set(ready)))
        missed = {n for n in lost if n not in self._lost and not self._control.drained(n)}
        if missed:
            self._missing_since_s = self._missing_since_s or time.monotonic()
            waited_s = time.monotonic() - self._missing_since_s
            if waited_s > WAIT_SAID_S and missed != self._waited_for:
                self._waited_for = missed
                names = ", ".join(map(str, sorted(missed)))
                left = f"{self._policy.host_wait_s:.0f} s at most (`host_wait`)"
                self._tell(f"waits for host {names} of {self._hosts}, for {left}")
            if waited_s < self._policy.host_wait_s:
                return None
        layout = self._policy.layouts.of(ready)
        if layout is None:
            self._over(now, 1, self._why_none(lost))
        elif lost and lost != self._lost:
            self._events.write("host-lost", hosts=list(lost), mesh=layout.mesh)
            without = ", ".join(map(str, lost))
            self._tell(f"goes on without host {without}, on mesh {layout.mesh}")
        self._lost = lost
        return layout

    def _why_none(self, lost: Sequence[int]) -> str:
        """Returns why the hosts that are left do not make up a mesh.

        Args:
            lost: those that are not.
        """
        drained = [n for n in lost if self._control.drained(n)]
        absent = [n for n in lost if n not in drained]
        said = []
        if absent:
            names = ", ".join(map(str, absent))
            said.append(f"host {names} did not come within {self._policy.host_wait_s:.0f} s")
        if drained:
            files = " and ".join(f"{self._control.folder}/drain-{n}" for n in drained)
            names = ", ".join(map(str, drained))
            said.append(f"host {names} is drained, and the rest is no mesh: remove {files}")
        return "; ".join(said)

    def _can_grow(self, now: Attempt, here: dict[int, Host]) -> bool:
        ready = sorted(number for number, host in here.items() if not host.leaving)
        layout = self._policy.layouts.of(ready)
        return layout is not None and len(layout.members) > len(now.members)

    def _recovered(self, now: Attempt) -> None:
        """Tells how long a fault took, once a new attempt makes steps."""
        if self._fault_s is None:
            return
        said = [self._said(number, now) for number in now.members]
        if all(worker and worker.phase not in ("start", "compile", "restore") for worker in said):
            seconds = time.monotonic() - self._fault_s
            step = min(worker.step for worker in said if worker)
            self._events.write("recovered", step=step, seconds=seconds)
            self._fault_s = None

    def _over(self, now: Attempt, code: int, reason: str) -> None:
        if code in (1, 2):
            self._tell(f"gives up: {reason}" if code == 1 else f"error: {reason}")
        self._say(dataclasses.replace(now, state="over", code=code, reason=reason))

    def _say(self, attempt: Attempt) -> None:
        self._control.publish(attempt)

    def _tell(self, text: str) -> None:
        print(f"exajax: {text}", file=sys.stderr, flush=True)


def _culprit(
    now: Attempt,
    here: dict[int, Host],
    ended: dict[int, int],
    silent: list[int],
    said: dict[int, Worker],
) -> tuple[int, str, str]:
    """Returns the host that failed, the kind of its fault, and both in words.

    When one process fails others follow: JAX ends those that wait for it. The one that did
    something of its own comes first, then the one that the others wait for.
    """
    if silent:
        return silent[0], "host-silent", f"the supervisor of host {silent[0]} is gone"
    failed = {host: code for host, code in ended.items() if code}
    quiet = [host for host in failed if here[host].reason.startswith("silent")]
    if quiet:
        return quiet[0], "silent", f"the process of host {quiet[0]} was {here[quiet[0]].reason}"
    host = min(failed, key=lambda n: (_follows(failed[n]), n))
    if failed[host] == STUCK:
        turns = {n: worker.turns for n, worker in said.items()}
        host = min(turns, key=lambda n: turns[n], default=host)
        at = said.get(host)
        where = f"at {at.phase} {at.step}" if at else ""
        behind = len(set(turns.values())) > 1
        who = f"host {host} is" if behind else "all hosts are"
        return host, "stuck", f"{who} stuck {where}"
    kind = "preempted" if failed[host] == 130 else "worker-ended"
    return host, kind, f"the process of host {host} ended with {failed[host]}"


def _follows(code: int) -> int:
    """Returns how likely an exit code is that of a process that another one's end has ended."""
    if code == ABORTED:
        return 3
    if code == STUCK:
        return 2
    return 0 if code > 128 and code != 130 else 1
