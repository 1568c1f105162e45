"""Which hosts of a job are alive, judged by the heartbeats of their supervisors."""

import time

from exajax.resilience.control import Control, HostStatus, alive, this_machine


class Liveness:
    """The hosts whose supervisors live, as one supervisor observes them.

    A supervisor is dead when its heartbeat has not changed for `silent_s` on the clock of this
    process, so that clocks of hosts need not agree; on the same machine, when its process is gone.

    Args:
        control: the control files of the run.
        job: identifies the start of the command; statuses of other jobs are ignored.
        hosts: number of hosts of the job.
        silent_s: seconds without a heartbeat after which a supervisor is dead.
    """

    def __init__(self, control: Control, job: str, hosts: int, silent_s: float) -> None:
        self._control, self._job, self._hosts, self._silent_s = control, job, hosts, silent_s
        self._heartbeats: dict[int, tuple[int, int, float]] = {}  # pid, beat, when it was new

    def reset(self) -> None:
        """Starts all silences anew, because this process itself was suspended for a while."""
        self._heartbeats.clear()

    def hosts(self) -> dict[int, HostStatus]:
        """The statuses of the living supervisors, by host."""
        living = {}
        for number in range(self._hosts):
            status = self._control.host(number)
            if status is None or status.job != self._job:
                continue
            heartbeat = self._heartbeats.get(number)
            if heartbeat is None or heartbeat[:2] != (status.pid, status.beat):
                heartbeat = status.pid, status.beat, time.monotonic()
                self._heartbeats[number] = heartbeat
            ended = status.machine == this_machine() and not alive(status.pid)
            if time.monotonic() - heartbeat[2] < self._silent_s and not ended:
                living[number] = status
        return living
