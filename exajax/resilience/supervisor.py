"""One per host, outside the training process: starts it, watches it, ends it, starts it again.

A supervisor follows what the leader has decided (`exajax.resilience.leader`), and is the leader
itself while it holds the lease. It imports no JAX: nothing that can hang a training process can
hang it.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from exajax.errors import InputError
from exajax.job import environment, local_hosts
from exajax.job.events import EventLog
from exajax.job.wall_time import WallTime
from exajax.resilience.control import Attempt, Control, Host, Worker, period_s, this_machine
from exajax.resilience.deadlines import SILENT, Deadlines
from exajax.resilience.job import Job
from exajax.resilience.leader import Leader, Policy
from exajax.resilience.lease import SILENT_S, UNKNOWN, Lease
from exajax.spmd.mesh import MeshSpec

ROUND_S = {True: 0.05, False: 0.5}
"""Time between rounds, by whether all hosts are on this machine; others share a file system, and
take longer if they are very many."""

STOP_GRACE_S = 600.0
"""Time that a worker has to save and end when the job is asked to stop; a second Ctrl-C ends it at
once."""

KILL_S = 30.0
"""Time that a process takes to end after SIGKILL at most, unless its driver or disk hangs."""

PATIENCE_S = 60.0
"""Time that a supervisor tries to write to a disk for, while nothing is being trained."""

PAUSE_S = 2.0
"""A round that takes longer was held up, by the file system say, and others were as well."""


@dataclass(frozen=True)
class Place:
    """Where a supervisor is in its job.

    Attributes:
        host: number of its host.
        hosts: how many there are.
        local: number of its process on its node.
        job: which start of the command it belongs to; the same on all its hosts.
        address: where other hosts reach this one.
        one_machine: whether all hosts are this machine.
        why: what this was read from.
        leaves_alone: whether this host may be asked to leave while others stay, as pods are; where
            it is not, who is asked to stop stops the job.
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
        """Time between two rounds."""
        return period_s(ROUND_S[self.one_machine], self.hosts)


class Supervisor:
    """The supervisor of one host.

    Args:
        place: where it is.
        job: what its workers train.
        deadlines: of the worker.
        policy: what the leader goes by.
        wall_time: says when the job has to save, because its allocation ends.

    Attributes:
        left_last: whether the supervisors of all other hosts have left the folder for good.
    """

    def __init__(
        self,
        place: Place,
        job: Job,
        deadlines: Deadlines,
        policy: Policy,
        wall_time: WallTime,
    ) -> None:
        self._place, self._job, self._deadlines = place, job, deadlines
        run_dir = job.options.run_dir
        self._control = Control(run_dir)
        self._file = self._control.folder / f"worker-{place.host}.json"
        silent_s = SILENT_S[place.one_machine]
        last = self._control.attempt()
        after = last.epoch if last else 0
        self._lease = Lease(self._control.folder, place.job, place.host, silent_s, after)
        self._events = EventLog(run_dir, place.host, "supervisor")
        self._leader = Leader(self._control, place.job, place.hosts, policy, self._events)
        self._wall_time, self._time_is_up = wall_time, False
        self._asked: list[int] = []
        self._worker: subprocess.Popen[bytes] | None = None
        self._said: Worker | None = None
        self._said_s = self._started_s = 0.0
        self._stop_by_s: float | None = None
        self._complaint = ""
        self.left_last = False
        self._me = Host(
            place.host, place.job, this_machine(), os.getpid(), 0, place.address, 0, place.local
        )

    def run(self) -> int:
        """Supervises until the job is over; returns its exit code.

        Raises:
            InputError: another job runs in the folder.
        """
        before = {
            number: signal.signal(number, self._remember)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            self._wait_for_lease()
            self._end_predecessor()
            self._take_over()
            self._events.write("job", job=self._place.job, pid=os.getpid())
            return self._rounds()
        finally:
            self._kill("its supervisor ends")
            self._lease.release()
            for number, handler in before.items():
                signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._asked.append(number)

    @property
    def _is_to_stop(self) -> bool:
        return self._time_is_up or bool(self._asked)

    def _mind_wall_time(self) -> None:
        """Ends the job in time for a last checkpoint; asked of who leads it."""
        if self._is_to_stop or not (why := self._wall_time.due()):
            return
        self._time_is_up = True
        self._events.write("preempted", step=self._said.step if self._said else 0, why=why)
        print(
            f"exajax: {why}: it saves; give the same command to go on", file=sys.stderr, flush=True
        )

    def _wait_for_lease(self) -> None:
        """Waits until the folder is this job's, which is at once or never unless a job has died."""
        first = self._lease.holder()
        while not self._lease.hold():
            now = self._lease.holder()
            if now is None or now.job == self._place.job:
                if now:
                    return
            elif UNKNOWN in (now.job, first.job if first else UNKNOWN):
                first = now
            elif first is not None and now.beat != first.beat:
                raise InputError(
                    "run_dir",
                    f"{self._control.run_dir} is in use by a running job (process {now.pid} on "
                    f"{now.machine.split()[0] if now.machine else 'another host'})",
                    "end it, or give another folder",
                )
            time.sleep(self._place.round_s)

    def _end_predecessor(self) -> None:
        """Ends the worker that a supervisor of this host left behind, should it still be there."""
        worker = self._control.worker(self._place.host)
        before = self._control.host(self._place.host)
        same_machine = before is not None and before.machine == this_machine()
        if worker and same_machine and self._is_worker(worker.pid):
            os.kill(worker.pid, signal.SIGKILL)

    def _take_over(self) -> None:
        """Takes the attempt that a supervisor of this host was killed in as one that has failed."""
        attempt = self._control.attempt()
        if attempt and attempt.job == self._place.job and self._place.host in attempt.members:
            reason = "its supervisor was killed"
            self._me = dataclasses.replace(
                self._me, attempt=attempt.number, code=128 + signal.SIGKILL, reason=reason
            )

    def _rounds(self) -> int:
        over: int | None = None
        good_s = time.monotonic()
        while over is None:
            began_s = time.monotonic()
            try:
                over = self._round()
                good_s = began_s
            except OSError as error:  # a full or a sick disk: the next round tries again
                self._complain(error)
                if self._worker is None and began_s - good_s > PATIENCE_S:
                    raise
            if time.monotonic() - began_s > PAUSE_S:
                self._look_anew()
            time.sleep(self._place.round_s)
        self._me = dataclasses.replace(self._me, gone=True)
        with contextlib.suppress(OSError):  # who leads may have waited long enough
            self._publish()
        if self._lease.epoch:
            self.left_last = self._leader.wait_for_followers(self._place.round_s)
        self._events.write("stopped", code=over)
        return over

    def _round(self) -> int | None:
        """Looks at everything once; returns the exit code of a job that is over."""
        self._watch_worker()
        self._publish()
        if self._lease.hold():
            self._mind_wall_time()
            alone = self._leaves_alone and self._leader.others_stay()
            self._leader.decide(self._lease.epoch, self._is_to_stop and not alone)
            if alone and self._worker is None:
                self._lease.release()  # who stays takes it, and goes on with what was decided
                return 130
        elif self._leaves_alone and self._worker is None:
            return 130
        holder = self._lease.holder()
        if holder is not None and holder.job not in (UNKNOWN, self._place.job):
            self._kill("another job has taken the run folder over")
            return 1
        attempt = self._control.attempt()
        return self._follow(attempt) if attempt and attempt.job == self._place.job else None

    @property
    def _leaves_alone(self) -> bool:
        """Whether this host was asked to leave, and the job is to go on."""
        return self._place.leaves_alone and bool(self._asked)

    def _look_anew(self) -> None:
        """Counts the silence of all others from now on: this process itself was held up."""
        self._lease.forget()
        self._leader.forget()
        self._said_s = time.monotonic()

    def _complain(self, error: OSError) -> None:
        if str(error) != self._complaint:
            self._complaint = str(error)
            print(f"exajax: the supervisor goes on trying: {error}", file=sys.stderr, flush=True)

    def _publish(self) -> None:
        self._me = dataclasses.replace(
            self._me,
            beat=self._me.beat + 1,
            port=self._me.port or local_hosts.free_port(),
            running=self._worker is not None,
            leaving=self._is_to_stop or self._control.drained(self._place.host),
        )
        self._control.publish(self._me)

    def _follow(self, attempt: Attempt) -> int | None:
        """Does what the leader decided; returns the exit code of a job that is over."""
        if attempt.state == "over":
            if self._worker is not None and not self._stopping(attempt.code == 130):
                return None
            self._kill("the job is over")
            return attempt.code
        if self._is_to_stop:
            self._stopping(True)
        if attempt.state == "end" or (
            self._worker is not None and attempt.number > self._me.attempt
        ):
            self._kill(f"attempt {self._me.attempt} has ended: {attempt.reason}")
        elif attempt.state == "save":
            self._stopping(True)
        elif (
            attempt.number > self._me.attempt
            and self._place.host in attempt.members
            and not self._is_to_stop
        ):
            self._start(attempt)
        return None

    def _start(self, attempt: Attempt) -> None:
        changes: dict[str, Any] = {"mesh": MeshSpec.parse(attempt.mesh)}
        if attempt.micro_batch is not None:
            changes["micro_batch"] = attempt.micro_batch
        recipe = self._job.recipe.replaced(**changes)
        dataclasses.replace(self._job, recipe=recipe).write(self._file)
        env = {
            environment.HOSTS.name: str(len(attempt.members)),
            environment.HOST.name: str(attempt.members.index(self._place.host)),
            environment.LOCAL_HOST.name: str(self._place.local),
            environment.COORDINATOR.name: attempt.coordinator,
            environment.ROLE.name: "worker",
            environment.LAUNCHER.name: self._place.why,
            environment.ATTEMPT.name: f"{self._place.host}:{attempt.number}",
            environment.DEADLINES.name: str(self._deadlines),
            environment.LIFELINE.name: "1",
            **({environment.COMPILE_ANEW.name: "1"} if attempt.anew else {}),
        }
        speaks = attempt.members[0] == self._place.host
        self._worker = subprocess.Popen(
            [sys.executable, "-m", "exajax", "job", str(self._file)],
            env={**os.environ, **env},
            stdin=subprocess.PIPE,  # never written: its end is the end of this process
            stdout=None if speaks else subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C comes to this process alone, which passes it on
        )
        self._started_s, self._said, self._stop_by_s = time.monotonic(), None, None
        self._events.attempt = attempt.number
        self._events.write("attempt", members=list(attempt.members), mesh=attempt.mesh)
        self._me = dataclasses.replace(
            self._me, attempt=attempt.number, code=None, reason="", port=0, running=True
        )

    def _watch_worker(self) -> None:
        """Takes note of a worker's end, and ends one that no longer says where it is."""
        if self._worker is None:
            return
        code = self._worker.poll()
        if code is not None:
            self._ended(128 - code if code < 0 else code, "")
            return
        said, now_s = self._control.worker(self._place.host), time.monotonic()
        if said and said.attempt == self._me.attempt and said != self._said:
            self._said, self._said_s = said, now_s
        since_s = now_s - (self._said_s if self._said else self._started_s)
        limit_s = self._deadlines.of(SILENT if self._said else "start", [])
        if since_s > limit_s:
            where = f"at {self._said.phase} {self._said.step}" if self._said else "at its start"
            self._kill(f"silent for {since_s:.1f} s {where}")

    def _stopping(self, gently: bool) -> bool:
        """Asks the worker to save and end; returns whether it has ended."""
        if self._worker is None:
            return True
        now_s = time.monotonic()
        if self._stop_by_s is None and gently:
            self._worker.send_signal(signal.SIGTERM)
            self._stop_by_s = now_s + STOP_GRACE_S
        elif not gently or self._hurry or now_s > (self._stop_by_s or 0):
            self._kill("it did not save and end in time")
        return self._worker is None

    def _kill(self, reason: str) -> None:
        if self._worker is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._worker.pid, signal.SIGKILL)  # with what it has started
            code = self._worker.wait(KILL_S)
            self._ended(128 - code if code < 0 else code, reason)

    def _ended(self, code: int, reason: str) -> None:
        assert self._worker is not None
        if self._worker.stdin:
            self._worker.stdin.close()
        self._worker = None
        self._me = dataclasses.replace(self._me, running=False, code=code, reason=reason, port=0)
        self._events.write("worker-ended", code=code, reason=reason)

    def _is_worker(self, pid: int) -> bool:
        """Returns whether a number is still that of a process that works on this run."""
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False
        return f"\0{self._file}\0".encode() in line

    @property
    def _hurry(self) -> bool:
        """Whether Ctrl-C was pressed again. SIGTERM comes twice where a whole tree gets it."""
        return len(self._asked) > 1 and self._asked[-1] == signal.SIGINT
