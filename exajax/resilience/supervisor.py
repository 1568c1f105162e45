"""The supervisor of one host: starts, watches, ends and restarts its training process.

A supervisor follows what the leader has decided (`exajax.resilience.leader`), and is the leader
itself while it holds the lease. It imports no JAX: nothing that can hang a training process can
hang it.
"""

import contextlib
import dataclasses
import logging
import os
import signal
import time

from exajax.errors import InputError
from exajax.job import local_hosts
from exajax.job.events import EventLog
from exajax.job.signals import collected_signals
from exajax.job.wall_time import WallTime
from exajax.resilience.control import Attempt, Control, HostStatus, this_machine
from exajax.resilience.deadlines import Deadlines
from exajax.resilience.job import Job
from exajax.resilience.leader import Leader
from exajax.resilience.lease import SILENT_S, UNKNOWN, Lease
from exajax.resilience.placement import HostPlacement
from exajax.resilience.policy import LeaderPolicy
from exajax.resilience.worker import WorkerProcess, kill_orphan, start_worker

LOGGER = logging.getLogger(__name__)

RETRY_DISK_S = 60.0
"""Seconds for which a supervisor retries to write to a disk while nothing is trained."""

SUSPENDED_S = 2.0
"""A round that took longer than this many seconds was suspended, by the file system for example."""


class Supervisor:
    """The supervisor of one host.

    Args:
        placement: the host in its job.
        job: what its training processes train.
        deadlines: of the training process's phases.
        policy: limits and delays of the leader.
        wall_time: the end of the allocation.

    Attributes:
        left_last: whether the supervisors of all other hosts have left the run folder.
    """

    def __init__(
        self,
        placement: HostPlacement,
        job: Job,
        deadlines: Deadlines,
        policy: LeaderPolicy,
        wall_time: WallTime,
    ) -> None:
        self._placement, self._job, self._deadlines = placement, job, deadlines
        run_dir = job.options.run_dir
        self._control = Control(run_dir)
        self._file = self._control.folder / f"worker-{placement.host}.json"
        silent_s = SILENT_S[placement.one_machine]
        last = self._control.attempt()
        after = last.epoch if last else 0
        self._lease = Lease(self._control.folder, placement.job, placement.host, silent_s, after)
        self._events = EventLog(run_dir, placement.host, "supervisor")
        self._leader = Leader(self._control, placement.job, placement.hosts, policy, self._events)
        self._wall_time, self._out_of_time = wall_time, False
        self._signals: list[int] = []
        self._worker: WorkerProcess | None = None
        self._disk_error = ""
        self.left_last = False
        self._status = HostStatus(
            placement.host,
            placement.job,
            this_machine(),
            os.getpid(),
            0,
            placement.address,
            0,
            placement.local,
        )

    def run(self) -> int:
        """Supervises until the job is over; returns its exit code.

        Raises:
            InputError: another job runs in the folder.
        """
        with collected_signals() as self._signals:
            try:
                self._wait_for_lease()
                kill_orphan(self._control, self._placement.host, this_machine(), self._file)
                self._inherit_attempt()
                self._events.write("job", job=self._placement.job, pid=os.getpid())
                return self._rounds()
            finally:
                self._kill("its supervisor ends")
                self._lease.release()

    @property
    def _must_stop(self) -> bool:
        return self._out_of_time or bool(self._signals)

    def _check_wall_time(self) -> None:
        """Ends the job in time for a last checkpoint; called by the leader alone."""
        if self._must_stop or not (why := self._wall_time.due()):
            return
        self._out_of_time = True
        status = self._worker and self._worker.status
        self._events.write("preempted", step=status.step if status else 0, why=why)
        LOGGER.info("%s: it saves; give the same command to go on", why)

    def _wait_for_lease(self) -> None:
        """Waits until this job holds the lease: at once, unless an earlier job was killed."""
        first = self._lease.holder()
        while not self._lease.hold():
            holder = self._lease.holder()
            if holder is None or holder.job == self._placement.job:
                if holder:
                    return
            elif UNKNOWN in (holder.job, first.job if first else UNKNOWN):
                first = holder
            elif first is not None and holder.beat != first.beat:
                machine = holder.machine.split()[0] if holder.machine else "another host"
                raise InputError(
                    "run_dir",
                    f"{self._control.run_dir} is in use by a running job (process {holder.pid} on "
                    f"{machine})",
                    "end it, or give another folder",
                )
            time.sleep(self._placement.round_s)

    def _inherit_attempt(self) -> None:
        """Reports an attempt as failed if an earlier supervisor of this host was killed in it."""
        attempt = self._control.attempt()
        job, host = self._placement.job, self._placement.host
        if attempt and attempt.job == job and host in attempt.members:
            self._status = dataclasses.replace(
                self._status,
                attempt=attempt.number,
                code=128 + signal.SIGKILL,
                reason="its supervisor was killed",
            )

    def _rounds(self) -> int:
        """Makes rounds until the job is over; returns its exit code."""
        code: int | None = None
        good_s = time.monotonic()
        while code is None:
            began_s = time.monotonic()
            try:
                code = self._round()
                good_s = began_s
            except OSError as error:  # a full or failing disk: the next round retries
                self._warn_of_disk(error)
                if self._worker is None and began_s - good_s > RETRY_DISK_S:
                    raise
            if time.monotonic() - began_s > SUSPENDED_S:
                self._reset_silences()
            time.sleep(self._placement.round_s)
        self._status = dataclasses.replace(self._status, gone=True)
        with contextlib.suppress(OSError):  # the leader does not wait for this for ever
            self._publish()
        if self._lease.epoch:
            self.left_last = self._leader.wait_for_followers(self._placement.round_s)
        self._events.write("stopped", code=code)
        return code

    def _round(self) -> int | None:
        """Checks the worker, the lease and the leader's decision once.

        Returns:
            The exit code of a job that is over, else None.
        """
        self._check_worker()
        self._publish()
        if self._lease.hold():
            self._check_wall_time()
            leaves = self._leaves_alone and self._leader.others_stay()
            self._leader.decide(self._lease.epoch, self._must_stop and not leaves)
            if leaves and self._worker is None:
                self._lease.release()  # a host that stays takes it, and continues from attempt.json
                return 130
        elif self._leaves_alone and self._worker is None:
            return 130
        holder = self._lease.holder()
        if holder is not None and holder.job not in (UNKNOWN, self._placement.job):
            self._kill("another job has taken the run folder over")
            return 1
        attempt = self._control.attempt()
        return self._follow(attempt) if attempt and attempt.job == self._placement.job else None

    @property
    def _leaves_alone(self) -> bool:
        """Whether this host was asked to leave while the job goes on."""
        return self._placement.leaves_alone and bool(self._signals)

    def _reset_silences(self) -> None:
        """Starts all silences anew, because this process was suspended for a while itself."""
        self._lease.reset_silence()
        self._leader.liveness.reset()
        if self._worker:
            self._worker.status_s = time.monotonic()

    def _warn_of_disk(self, error: OSError) -> None:
        if str(error) != self._disk_error:
            self._disk_error = str(error)
            LOGGER.warning("the supervisor goes on trying: %s", error)

    def _publish(self) -> None:
        self._status = dataclasses.replace(
            self._status,
            beat=self._status.beat + 1,
            port=self._status.port or local_hosts.free_port(),
            running=self._worker is not None,
            leaving=self._must_stop or self._control.drained(self._placement.host),
        )
        self._control.publish(self._status)

    def _follow(self, attempt: Attempt) -> int | None:
        """Does what the leader decided; returns the exit code of a job that is over."""
        if attempt.state == "over":
            if self._worker is not None and not self._stop_worker(attempt.code == 130):
                return None
            self._kill("the job is over")
            return attempt.code
        if self._must_stop:
            self._stop_worker(True)
        is_new = attempt.number > self._status.attempt
        if attempt.state == "end" or (self._worker is not None and is_new):
            self._kill(f"attempt {self._status.attempt} has ended: {attempt.reason}")
        elif attempt.state == "save":
            self._stop_worker(True)
        elif is_new and self._placement.host in attempt.members and not self._must_stop:
            self._start(attempt)
        return None

    def _start(self, attempt: Attempt) -> None:
        self._worker = start_worker(
            self._job, self._file, attempt, self._placement, self._deadlines
        )
        self._events.attempt = attempt.number
        self._events.write("attempt", members=list(attempt.members), mesh=attempt.mesh)
        self._status = dataclasses.replace(
            self._status, attempt=attempt.number, code=None, reason="", port=0, running=True
        )

    def _check_worker(self) -> None:
        """Notes the end of the training process, and kills one that has been silent too long."""
        if self._worker is None:
            return
        code = self._worker.poll()
        if code is not None:
            self._note_end(code, "")
            return
        self._worker.update(self._control.worker(self._placement.host))
        if silence := self._worker.silence(self._deadlines):
            self._kill(silence)

    def _stop_worker(self, gently: bool) -> bool:
        """Asks the training process to save and end, or kills it when its time is over.

        Args:
            gently: whether it may save.

        Returns:
            Whether it has ended.
        """
        if self._worker is None:
            return True
        stop_by_s = self._worker.stop_by_s
        if stop_by_s is None and gently:
            self._worker.terminate()
        elif not gently or self._interrupted_twice or time.monotonic() > (stop_by_s or 0):
            self._kill("it did not save and end in time")
        return self._worker is None

    def _kill(self, reason: str) -> None:
        if self._worker is not None:
            self._note_end(self._worker.kill(), reason)

    def _note_end(self, code: int, reason: str) -> None:
        """Reports the end of the training process to the leader."""
        if self._worker:
            self._worker.close()
        self._worker = None
        self._status = dataclasses.replace(
            self._status, running=False, code=code, reason=reason, port=0
        )
        self._events.write("worker-ended", code=code, reason=reason)

    @property
    def _interrupted_twice(self) -> bool:
        """Whether Ctrl-C was pressed again; a second SIGTERM may come from the same request."""
        return len(self._signals) > 1 and self._signals[-1] == signal.SIGINT
