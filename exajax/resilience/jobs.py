"""How a job starts: its supervisors, on this machine or where a launcher has put them."""

import argparse
import shutil
import uuid
from pathlib import Path

from exajax import distributed, flag_types, wall_time
from exajax.commands import train
from exajax.errors import InputError
from exajax.events import FOLDER
from exajax.recipe import Recipe
from exajax.resilience.deadlines import Deadlines
from exajax.resilience.elastic import Layouts
from exajax.resilience.leader import Policy
from exajax.resilience.lease import SILENT_S, UNKNOWN, Lease
from exajax.resilience.local_job import LocalJob
from exajax.resilience.supervisor import Place, Supervisor


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of supervision."""
    add = parser.add_argument_group("when something fails").add_argument
    add(
        "--restarts",
        type=flag_types.whole(0, flag_types.MOST_TIMES),
        default=3,
        metavar="N",
        help="attempts in a row that may fail without a newer checkpoint; 0: never try again",
    )
    add(
        "--max-backoff",
        type=flag_types.number(0, flag_types.MOST_SECONDS),
        default=60.0,
        metavar="S",
        help="longest wait between such attempts: 0, 1, 2, 4, ... seconds",
    )
    add(
        "--min-hosts",
        type=flag_types.whole(1, flag_types.MOST_DEVICES),
        metavar="N",
        help="go on with as few hosts, in fewer replicas, when others are lost (default: all)",
    )
    add(
        "--host-wait",
        type=flag_types.number(0, flag_types.MOST_SECONDS),
        default=300.0,
        metavar="S",
        help="seconds to wait for a host that is missing",
    )
    add(
        "--deadlines",
        default="",
        metavar="PHASE=S,...",
        help="seconds that a process may stay at start, compile, restore, step, evaluate, "
        "callback, checkpoint, end, or be silent (default: a step 20 times its median, at least "
        "30 s; silent 30 s; others 10 minutes to an hour)",
    )
    add(
        "--wall-time",
        metavar="HH:MM:SS",
        help="save and end in time for the end of an allocation of this length, counted from now "
        "(default: what Slurm or PBS say)",
    )
    add(
        "--save-before-end",
        type=flag_types.number(0, flag_types.MOST_SECONDS, above=True),
        metavar="S",
        help="so many seconds before it, or more if the run's checkpoints take longer "
        "(default: 120, at most a quarter of the allocation)",
    )


def check_flags(args: argparse.Namespace, hosts: int) -> None:
    """Raises an `InputError` if a flag of supervision is impossible.

    Args:
        args: the flags.
        hosts: of the job.
    """
    Deadlines.parse(args.deadlines)
    if args.min_hosts is not None and not 1 <= args.min_hosts <= hosts:
        raise InputError("--min-hosts", f"{args.min_hosts} of {hosts} hosts", f"give 1 to {hosts}")


def run(args: argparse.Namespace, recipe: Recipe) -> int:
    """Runs a job under supervision; returns its exit code."""
    run_dir = train.run_dir(args, recipe)
    name = distributed.launcher()
    wall_time.announce(args.wall_time, args.save_before_end)
    if name == "single" and args.hosts is not None:
        train.check_hosts(args, recipe)
        check_flags(args, args.hosts)
        train.check(args, recipe)
        try:
            return LocalJob(args.argv, args.hosts, run_dir).run()
        finally:
            _tidy(run_dir)
    placement = distributed.find()
    check_flags(args, placement.processes)
    distributed.check_share(placement, recipe.mesh)
    if name in ("single", "mpi"):
        # Elsewhere the hosts cannot tell each other yet, and one that refused alone would be waited
        # for: their training processes check the same, and agree on it once they have joined. Of a
        # local job, the parent has checked.
        problem: InputError | None = None
        try:
            train.check(args, recipe)
        except InputError as error:
            problem = error
        distributed.agree(placement, problem)
    place = Place(
        placement.process,
        placement.processes,
        placement.local_process,
        placement.job or uuid.uuid4().hex[:12],
        placement.address,
        name == "single" or name == "local" or placement.address.startswith("127."),
        placement.why,
        leaves_alone=name == "kubernetes",
    )
    layouts = Layouts(recipe, place.hosts, args.min_hosts or place.hosts)
    silent_s = SILENT_S[place.one_machine]
    settle_s = 5 * place.round_s
    policy = Policy(args.restarts, args.max_backoff, args.host_wait, layouts, silent_s, settle_s)
    deadlines = Deadlines.parse(args.deadlines)
    # What follows from the mesh must not change with it.
    argv = [*args.argv, f"--global-batch={recipe.global_batch}", f"--run-dir={run_dir}"]
    clock = wall_time.WallTime(run_dir, args.save_before_end)
    supervisor = Supervisor(place, argv, run_dir, deadlines, policy, clock)
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
