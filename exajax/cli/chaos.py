"""Breaks a training job again and again, and compares what it came to with an undisturbed one."""

import argparse
import contextlib
import dataclasses
import logging
import signal
import statistics
import uuid
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from exajax.chaos import disk, faults, faults_file, namespaces
from exajax.chaos.faults import Fault
from exajax.chaos.injections import JobUnderTest
from exajax.chaos.report import chaos_report
from exajax.chaos.run import train_under_faults, train_undisturbed
from exajax.cli import flag_types, train
from exajax.cli.terminal import log_with_elapsed_time
from exajax.errors import InputError
from exajax.job import run_folder, runtime
from exajax.job.local_hosts import StageFailed
from exajax.recipe.recipe import Recipe
from exajax.resilience.deadlines import Deadlines
from exajax.resilience.job import Job
from exajax.train import inputs

HOSTS = 2

SMALL_DISK = 8
"""Size of the disk for `full-disk` faults, in multiples of the undisturbed run's checkpoints."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags: those of `exajax train`, and what to break."""
    train.add_flags(parser)
    add = parser.add_argument_group("what to break").add_argument
    add(
        "--kills",
        type=flag_types.whole(1, flag_types.MOST_TIMES),
        metavar="K",
        help="kill any process at any moment, so many times",
    )
    add(
        "--mean-gap",
        type=flag_types.number(0, flag_types.MOST_SECONDS, above=True),
        default=20.0,
        metavar="S",
        help="seconds between two kills",
    )
    add(
        "--fault-seed",
        type=flag_types.whole(0, flag_types.MOST_SEED),
        default=0,
        metavar="N",
        help="of the kills",
    )
    add("--faults", type=flag_types.path, metavar="FILE", help="a schedule of faults, in TOML")


def run(args: argparse.Namespace) -> int:
    """Trains twice, undisturbed and disturbed, and reports."""
    args.hosts = args.hosts or HOSTS
    named = args.run_dir
    job = dataclasses.replace(train.job_of(args), json=False)
    schedule = _schedule(args)
    path = named or Path(f"runs/{_name(args, job.recipe)}")
    job = job.in_folder(path / "undisturbed")
    job = dataclasses.replace(job, options=dataclasses.replace(job.options, metrics_port=0))
    _check(job, path)
    kinds = {fault.kind for fault in schedule} & {"cut-network", "full-disk"}
    if kinds:
        why = namespaces.why_unavailable()
        if why:
            fix = f"run it as root on Linux, or leave {' and '.join(sorted(kinds))} out"
            raise InputError("faults", f"no namespaces to be had here ({why})", fix)
        namespaces.enter()
    # SIGTERM is handled as Ctrl-C is, which leaves nothing running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    out = runtime.claim_stdout(with_jax=False)
    report = _report(job, schedule, path, log_with_elapsed_time("exajax.chaos"))
    print(runtime.json_text(report) if args.json else describe(report), file=out, flush=True)
    return int(not report["passed"])


def _name(args: argparse.Namespace, recipe: Recipe) -> str:
    """The default name of the run folder, which names seeds other than 0."""
    seeds = {"seed": recipe.seed, "faults": args.fault_seed}
    suffix = "".join(f"-{name}{seed}" for name, seed in seeds.items() if seed)
    return f"chaos-{recipe.model.name}-{recipe.mesh}{suffix}".replace("=", "")


def _schedule(args: argparse.Namespace) -> tuple[Fault, ...]:
    """The faults to inject; random hosts are drawn here, so that the schedule names them."""
    if args.kills is None and args.faults is None:
        raise InputError("kills", "nothing says what to break", "give `kills` or `faults`")
    if args.kills is not None and args.faults is not None:
        raise InputError("kills", "`faults` says already what to break", "give one of the two")
    if args.faults:
        schedule = faults_file.read(args.faults)
    else:
        schedule = faults.kills(args.fault_seed, args.kills, args.hosts, args.mean_gap)
    faults_file.check_targets(schedule, args.hosts)
    return tuple(
        dataclasses.replace(fault, target=fault.host(args.hosts))
        if fault.target == "any"
        else fault
        for fault in schedule
    )


def _check(job: Job, path: Path) -> None:
    """Raises an `InputError` for everything that can be checked before a process is started."""
    job.supervision.check_local(job.recipe)
    job.supervision.check(job.supervision.hosts or 1)
    if (path / "disturbed").exists():
        raise InputError(
            "run_dir",
            f"{path} holds a disturbed run",
            f"give another `run_dir`, or remove {path / 'disturbed'}",
        )
    inputs.check(job.recipe, job.options)
    done, steps = _steps_done(job.options.run_dir), job.recipe.steps
    if done is not None and done != steps:
        raise InputError(
            "steps",
            f"the undisturbed run in {path} has made {done}, and here are {steps}",
            f"give {done}, or another `run_dir`",
        )


def _report(
    job: Job, schedule: Sequence[Fault], path: Path, logger: logging.Logger
) -> dict[str, Any]:
    """Trains without and under faults, and writes the comparison to `chaos.json`."""
    undisturbed, disturbed = path / "undisturbed", path / "disturbed"
    mark, hosts = uuid.uuid4().hex, job.supervision.hosts or 1
    path.mkdir(parents=True, exist_ok=True)
    if _steps_done(undisturbed) is None:
        logger.info("trains undisturbed")
        log = path / "undisturbed.log"
        code = train_undisturbed(job, log, mark)
        if code:
            raise StageFailed(code, "the undisturbed training", log.read_text().splitlines())
    file = path / "faults.toml"
    faults_file.write(schedule, file)
    logger.info("trains under %d faults", len(schedule))
    with _network_and_disk(hosts, schedule, path) as network:
        target = JobUnderTest(disturbed, hosts, mark, path / "fired", network)
        run = train_under_faults(schedule, job.in_folder(disturbed), target, file)
    logger.info("compares")
    deadlines = Deadlines.parse(job.supervision.deadlines or "")
    report = chaos_report(undisturbed, disturbed, job.recipe.steps, run, deadlines)
    (path / "chaos.json").write_text(runtime.json_text(report, indent=1) + "\n")
    return report


@contextlib.contextmanager
def _network_and_disk(
    hosts: int, schedule: Sequence[Fault], path: Path
) -> Iterator[namespaces.HostNetwork | None]:
    """A context with the network and the small disk that the faults of a schedule need."""
    kinds = {fault.kind for fault in schedule}
    checkpoints = path / "disturbed" / "checkpoints"
    with contextlib.ExitStack() as stack:
        if "full-disk" in kinds:
            saved = path / "undisturbed" / "checkpoints"
            used = sum(f.stat().st_size for f in saved.rglob("*") if f.is_file())
            disk.mount_tmpfs(checkpoints, SMALL_DISK * used)
            stack.callback(disk.unmount_and_keep, checkpoints)
        network = None
        if "cut-network" in kinds:
            network = stack.enter_context(namespaces.HostNetwork(hosts, path / "network"))
        yield network


def _steps_done(run_dir: Path) -> int | None:
    """The number of steps of a finished run, None unless it has finished."""
    result = (run_folder.read(run_dir) or {}).get("train", {})
    return None if result.get("interrupted", True) else int(result["step"])


def describe(report: dict[str, Any]) -> str:
    """The report for the terminal, with a table by kind of fault."""
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for fault in report["faults"]:
        name = f"{fault['kind']} {fault['process']}" if fault["kind"] == "kill" else fault["kind"]
        by_kind[name].append(fault)
    lines = [f"{'':20}{'faults':>8}{'detected':>10}{'recovered':>11}  (median seconds)"]
    for name, group in sorted(by_kind.items()):
        times = [_median(fault[key] for fault in group) for key in ("detected_s", "recovered_s")]
        late = sum(not fault["in_time"] for fault in group)
        note = f"  {late} not within the deadline" if late else ""
        lines.append(f"{name:20}{len(group):8}{times[0]:>10}{times[1]:>11}{note}")
    bits = "the same bits" if report["end_state_identical"] else "other bits"
    if not report["survived"]:
        bits = "no end state"
    lines += [
        f"{'survived' if report['survived'] else 'did not survive'}: {bits} as undisturbed; "
        f"samples: {report['samples_missing']} missing, {report['samples_repeated']} repeated",
        f"{report['replayed_steps']} steps recomputed, {report['starts']} starts, "
        f"{report['attempts']} attempts in {report['wall_s']:.0f} s, "
        f"goodput {report['goodput']:.1%}",
    ]
    for key in ("not_injected", "orphans", "half_checkpoints", "stale_locks"):
        if report[key]:
            lines.append(f"{key.replace('_', ' ')}: {', '.join(map(str, report[key]))}")
    return "\n".join(lines)


def _median(values: Iterator[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.2f}" if known else "-"
