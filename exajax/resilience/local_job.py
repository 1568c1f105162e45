"""The supervisors of a job whose hosts are all on this machine, restarted when they die."""

import os
import shlex
import signal
import subprocess
import sys
import time
import uuid

from exajax.errors import InputError
from exajax.job import environment, local_hosts
from exajax.job.signals import collected_signals
from exajax.resilience.control import Control
from exajax.resilience.job import Job

ROUND_S = 0.05

QUICK_S, QUICK_DEATHS = 2.0, 5
"""A supervisor that is killed within `QUICK_S` seconds of its start, `QUICK_DEATHS` times in a row,
is not restarted."""


class LocalJob:
    """The supervisors of a job whose hosts are all on this machine.

    Args:
        job: what they supervise.
        hosts: number of hosts.
    """

    def __init__(self, job: Job, hosts: int) -> None:
        self._hosts, self._control = hosts, Control(job.options.run_dir)
        self._file = job.write(self._control.folder / "job.json")
        self._job = uuid.uuid4().hex[:12]
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._started_s: dict[int, float] = {}
        self._quick_deaths = dict.fromkeys(range(hosts), 0)
        self._codes: dict[int, int] = {}
        self._signals: list[int] = []
        self._forwarded = 0

    def run(self) -> int:
        """Runs the job; returns its exit code.

        Raises:
            InputError: every host is drained before the job has begun.
        """
        if all(map(self._control.drained, range(self._hosts))):
            raise InputError(
                "run_dir",
                f"every host is drained in {self._control.folder}",
                f"remove its drain-0 to drain-{self._hosts - 1}",
            )
        with collected_signals() as self._signals:
            try:
                while len(self._codes) < self._hosts and not self._ended():
                    for host in range(self._hosts):
                        self._check(host)
                    self._forward_signals()
                    time.sleep(ROUND_S)
                return 130 if self._signals else local_hosts.exit_code(self._codes.values())
            finally:
                for process in self._running.values():
                    process.kill()
                    process.wait()

    def _ended(self) -> bool:
        return bool(self._codes or self._signals) and not self._running

    def _check(self, host: int) -> None:
        """Starts the supervisor of a host unless it runs, and notes its exit code when it ends."""
        process = self._running.get(host)
        if process is None:
            if host not in self._codes and not self._signals and not self._control.drained(host):
                self._start(host)
            return
        code = process.poll()
        if code is None:
            return
        del self._running[host]
        quick = time.monotonic() - self._started_s[host] < QUICK_S
        self._quick_deaths[host] = self._quick_deaths[host] + 1 if quick else 0
        if code >= 0 or self._quick_deaths[host] >= QUICK_DEATHS:
            self._codes[host] = code if code >= 0 else 1

    def _start(self, host: int) -> None:
        env = {
            environment.HOSTS.name: str(self._hosts),
            environment.HOST.name: str(host),
            environment.ROLE.name: "supervisor",
            environment.JOB.name: self._job,
            environment.LIFELINE.name: "1",
        }
        prefix = shlex.split((environment.HOST_PREFIX.get() or "").replace("{host}", str(host)))
        try:
            self._running[host] = subprocess.Popen(
                [*prefix, sys.executable, "-m", "exajax", "job", str(self._file)],
                env={**os.environ, **env},
                stdin=subprocess.PIPE,  # never written: its end is the end of this process
                start_new_session=True,
            )
        except OSError as error:
            if not prefix:
                raise
            raise InputError(
                environment.HOST_PREFIX.name,
                f"cannot start {prefix[0]}: {error.strerror}",
                "give a command that is there",
            ) from error
        self._started_s[host] = time.monotonic()

    def _forward_signals(self) -> None:
        """Forwards the first signal as SIGTERM, later ones as they are: a second Ctrl-C kills."""
        while self._forwarded < len(self._signals):
            number = self._signals[self._forwarded] if self._forwarded else signal.SIGTERM
            self._forwarded += 1
            for process in self._running.values():
                process.send_signal(number)
