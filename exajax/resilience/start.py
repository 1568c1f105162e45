"""How a job starts: its supervisors, on this machine or where a launcher has put them."""

import shutil
import uuid
from pathlib import Path

from exajax.errors import InputError
from exajax.job import distributed, launchers, wall_time
from exajax.job.events import FOLDER
from exajax.resilience.deadlines import Deadlines
from exajax.resilience.elastic import Layouts
from exajax.resilience.job import Job
from exajax.resilience.leader import Policy
from exajax.resilience.lease import SILENT_S, UNKNOWN, Lease
from exajax.resilience.local_job import LocalJob
from exajax.resilience.supervisor import Place, Supervisor
from exajax.train import inputs


def supervise(job: Job) -> int:
    """Runs a job under supervision; returns its exit code.

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
        # Elsewhere the hosts cannot tell each other yet, and one that refused alone would be waited
        # for: their training processes check the same, and agree on it once they have joined. Of a
        # local job, the parent has checked.
        problem: InputError | None = None
        try:
            inputs.check(job.recipe, job.options, owns_folder=job.owns_folder)
        except InputError as error:
            problem = error
        distributed.agree_on_problem(launch, problem)
    place = Place(
        launch.process,
        launch.processes,
        launch.local_process,
        launch.job or uuid.uuid4().hex[:12],
        launch.address,
        name == "single" or name == "local" or launch.address.startswith("127."),
        launch.why,
        leaves_alone=name == "kubernetes",
    )
    layouts = Layouts(job.recipe, place.hosts, options.min_hosts or place.hosts)
    policy = Policy(
        options.restarts,
        options.max_backoff,
        options.host_wait,
        layouts,
        SILENT_S[place.one_machine],
        5 * place.round_s,
    )
    clock = wall_time.WallTime(run_dir, options.save_before_end)
    supervisor = Supervisor(place, job, Deadlines.parse(options.deadlines or ""), policy, clock)
    try:
        return supervisor.run()
    finally:
        if name == "single" or (supervisor.left_last and name != "local"):
            _tidy(run_dir)


def _tidy(run_dir: Path) -> None:
    """Removes what supervisors wrote in the folder of a job that ended before it trained."""
    control = run_dir / ".job"
    if (run_dir / "run.json").exists() or not control.exists():
        return
    if Lease(control, UNKNOWN, -1).holder() is not None:
        return  # another start of the same command, which has not come to training yet
    if any(control.glob("drain-*")):
        return  # which a person has put there
    for name in (".job", FOLDER, "logs"):
        shutil.rmtree(run_dir / name, ignore_errors=True)
    if not any(run_dir.iterdir()):
        run_dir.rmdir()
