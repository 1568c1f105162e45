"""Options of a job's supervision: hosts, restarts, deadlines and wall time."""

from dataclasses import dataclass

from exajax.errors import InputError
from exajax.recipe.option import option
from exajax.recipe.recipe import MOST_TIMES, Recipe
from exajax.resilience.deadlines import Deadlines
from exajax.spmd.mesh import MOST_DEVICES

MOST_SECONDS = 1e9
"""Upper bound of options in seconds: thirty years."""


@dataclass(frozen=True)
class JobOptions:
    """Options of a job's supervision. Every field is an `option`, which carries its help text."""

    hosts: int | None = option(
        "start so many host processes on this machine",
        None,
        least=1,
        most=MOST_DEVICES,
        unit="H",
        scope="host",
    )
    devices_per_host: int | None = option(
        "devices of each",
        None,
        least=1,
        most=MOST_DEVICES,
        unit="D",
        scope="host",
        derived="an equal part",
    )
    restarts: int = option(
        "attempts in a row that may fail without a newer checkpoint; 0: never try again",
        3,
        least=0,
        most=MOST_TIMES,
        scope="host",
    )
    max_backoff: float = option(
        "longest wait between such attempts: 0, 1, 2, 4, ... seconds",
        60.0,
        least=0,
        most=MOST_SECONDS,
        unit="S",
        scope="host",
    )
    min_hosts: int | None = option(
        "go on with as few hosts, in fewer replicas, when others are lost",
        None,
        least=1,
        most=MOST_DEVICES,
        scope="host",
        derived="all",
    )
    host_wait: float = option(
        "seconds to wait for a host that is missing",
        300.0,
        least=0,
        most=MOST_SECONDS,
        unit="S",
        scope="host",
    )
    deadlines: str | None = option(
        "seconds that a process may stay at start, compile, restore, step, evaluate, callback, "
        "checkpoint, end, or be silent",
        None,
        unit="PHASE=S,...",
        scope="host",
        derived="a step 20 times its median, at least 30 s; silent 30 s; others 10 minutes to an "
        "hour",
    )
    wall_time: str | None = option(
        "save and end in time for the end of an allocation of this length, counted from now",
        None,
        unit="[D-]HH:MM:SS",
        scope="host",
        derived="what Slurm or PBS say",
    )
    save_before_end: float | None = option(
        "so many seconds before it, or more if the run's checkpoints take longer",
        None,
        least=0,
        most=MOST_SECONDS,
        above=True,
        unit="S",
        scope="host",
        derived="120, at most a quarter of the allocation",
    )

    def check(self, hosts: int) -> None:
        """Raises an `InputError` if an option of supervision is impossible.

        Args:
            hosts: number of hosts of the job.
        """
        Deadlines.parse(self.deadlines or "")
        if self.min_hosts is not None and not 1 <= self.min_hosts <= hosts:
            raise InputError(
                "min_hosts", f"{self.min_hosts} of {hosts} hosts", f"give 1 to {hosts}"
            )

    def check_local(self, recipe: Recipe) -> None:
        """Raises an `InputError` if local hosts and their devices do not make up the mesh."""
        hosts = self.hosts or 1
        share = self.devices_per_host or recipe.mesh.devices // hosts
        if share * hosts != recipe.mesh.devices:
            raise InputError(
                "hosts",
                f"{hosts} hosts of {share} devices are not the {recipe.mesh.devices} of mesh "
                f"{recipe.mesh}",
                "make hosts x devices-per-host the devices of the mesh",
            )
