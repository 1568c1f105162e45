"""The start of a supervised job, on this machine or under a launcher."""

import shutil
import uuid
from pathlib import Path

from exajax.errors import InputError
from exajax.job import distributed, launchers, wall_time
from exajax.job.events import FOLDER
from exajax.resilience.deadlines import Deadlines
from exajax.resilience.elastic import ElasticLayouts
from exajax.resilience.job import Job
from exajax.resilience.lease import SILENT_S, UNKNOWN, Lease
from exajax.resilience.local_job import LocalJob
from exajax.resilience.placement import HostPlacement
from exajax.resilience.policy import LeaderPolicy
from exajax.resilience.supervisor import Supervisor
from exajax.train import inputs


def supervise(job: Job) -> int:
    """Runs a job under supervision, or this host of it; returns the exit code.

    Raises:
        InputError: an option, the data or the run folder cannot be used.
    """
    options, run_dir = job.supervision, job.options.run_dir
    name = launchers.launcher()
    wall_time.set_end(options.wall_time, options.save_before_end)
    if name == "single" and options.hosts is not None:
        options.check_local(job.recipe)
        options.check(options.hosts)
        inputs.check(job.recipe, job.options, owns_folder=job.owns_folder)
        try:
            return LocalJob(job, options.hosts).run()
        finally:
            _tidy(run_dir)
    launch = launchers.detect()
    options.check(launch.processes)
    distributed.check_share(launch, job.recipe.mesh)
    if name in ("single", "mpi"):
        # With other launchers the hosts cannot communicate yet, and would wait for one that refuses
        # alone: their training processes make the same check once they have joined. The parent of a
        # local job has made it already.
        _agree_on_inputs(job, launch)
    placement = HostPlacement(
        launch.process,
        launch.processes,
        launch.local_process,
        launch.job or uuid.uuid4().hex[:12],
        launch.address,
        name == "single" or name == "local" or launch.address.startswith("127."),
        launch.why,
        leaves_alone=name == "kubernetes",
    )
    supervisor = Supervisor(
        placement,
        job,
        Deadlines.parse(options.deadlines or ""),
        _policy(job, placement),
        wall_time.WallTime(run_dir, options.save_before_end),
    )
    try:
        return supervisor.run()
    finally:
        if name == "single" or (supervisor.left_last and name != "local"):
            _tidy(run_dir)


def _agree_on_inputs(job: Job, launch: launchers.LaunchInfo) -> None:
    """Checks options, data and run folder; an error on any host is raised on all of them."""
    problem: InputError | None = None
    try:
        inputs.check(job.recipe, job.options, owns_folder=job.owns_folder)
    except InputError as error:
        problem = error
    distributed.agree_on_problem(launch, problem)


def _policy(job: Job, placement: HostPlacement) -> LeaderPolicy:
    """The leader's limits and delays, from the options of the job."""
    options = job.supervision
    return LeaderPolicy(
        options.restarts,
        options.max_backoff,
        options.host_wait,
        ElasticLayouts(job.recipe, placement.hosts, options.min_hosts or placement.hosts),
        SILENT_S[placement.one_machine],
        5 * placement.round_s,
    )


def _tidy(run_dir: Path) -> None:
    """Removes the supervisors' files from the folder of a job that ended before it trained."""
    control = run_dir / ".job"
    if (run_dir / "run.json").exists() or not control.exists():
        return
    if Lease(control, UNKNOWN, -1).holder() is not None:
        return  # another start of the same command holds it, and has not trained yet
    if any(control.glob("drain-*")):
        return  # a person has drained hosts
    for name in (".job", FOLDER, "logs"):
        shutil.rmtree(run_dir / name, ignore_errors=True)
    if not any(run_dir.iterdir()):
        run_dir.rmdir()
