"""Breaks a training job again and again, and compares what it came to with an undisturbed one."""

import argparse
import contextlib
import dataclasses
import signal
import statistics
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from exajax.chaos import disk, faults, faults_file, namespaces
from exajax.chaos import report as reports
from exajax.chaos import run as runs
from exajax.chaos.faults import Fault
from exajax.chaos.strikes import Scene
from exajax.cli import flag_types, train
from exajax.errors import InputError
from exajax.job import run_folder, runtime
from exajax.job.local_hosts import StageFailed
from exajax.recipe.recipe import Recipe
from exajax.resilience.deadlines import Deadlines
from exajax.resilience.job import Job
from exajax.train import inputs

HOSTS = 2

SMALL_DISK = 8
"""The small disk that is to be filled has room for so many times the undisturbed checkpoints."""


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
        why_not = namespaces.why_not()
        if why_not:
            fix = f"run it as root on Linux, or leave {' and '.join(sorted(kinds))} out"
            raise InputError("faults", f"no namespaces to be had here ({why_not})", fix)
        namespaces.enter()
    # Asked to end by anyone, it ends as after Ctrl-C and leaves nothing running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    out = runtime.claim_stdout(with_jax=False)
    began_s = time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - began_s:8.1f} s  {line}", file=sys.stderr, flush=True)

    report = _report(job, schedule, path, tell)
    print(runtime.json_text(report) if args.json else describe(report), file=out, flush=True)
    return int(not report["passed"])


def _name(args: argparse.Namespace, recipe: Recipe) -> str:
    """Returns the default name of the run folder: other seeds are other runs."""
    seeds = {"seed": recipe.seed, "faults": args.fault_seed}
    ends = "".join(f"-{what}{seed}" for what, seed in seeds.items() if seed)
    return f"chaos-{recipe.model.name}-{recipe.mesh}{ends}".replace("=", "")


def _schedule(args: argparse.Namespace) -> tuple[Fault, ...]:
    """Returns the faults, every one aimed at a host that is known beforehand or at the leader."""
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
    """Raises an `InputError` for what can be known to be wrong before anything is started."""
    job.supervision.check_local(job.recipe)
    job.supervision.check(job.supervision.hosts or 1)
    if (path / "disturbed").exists():
        raise InputError(
            "run_dir",
            f"{path} holds a disturbed run",
            f"give another `run_dir`, or remove {path / 'disturbed'}",
        )
    inputs.check(job.recipe, job.options)
    made, steps = _made(job.options.run_dir), job.recipe.steps
    if made is not None and made != steps:
        raise InputError(
            "steps",
            f"the undisturbed run in {path} has made {made}, and here are {steps}",
            f"give {made}, or another `run_dir`",
        )


def _report(
    job: Job, schedule: Sequence[Fault], path: Path, tell: Callable[[str], None]
) -> dict[str, Any]:
    undisturbed, disturbed = path / "undisturbed", path / "disturbed"
    mark, hosts = uuid.uuid4().hex, job.supervision.hosts or 1
    path.mkdir(parents=True, exist_ok=True)
    if _made(undisturbed) is None:
        tell("trains undisturbed")
        log = path / "undisturbed.log"
        code = runs.train(job, log, mark)
        if code:
            raise StageFailed(code, "the undisturbed training", log.read_text().splitlines())
    file = path / "faults.toml"
    faults_file.write(schedule, file)
    tell(f"trains under {len(schedule)} faults")
    with _surroundings(hosts, schedule, path) as network:
        scene = Scene(disturbed, hosts, mark, path / "fired", network)
        ended = runs.train_under(schedule, job.in_folder(disturbed), scene, file, tell)
    tell("compares")
    deadlines = Deadlines.parse(job.supervision.deadlines or "")
    report = reports.report(undisturbed, disturbed, job.recipe.steps, ended, deadlines)
    (path / "chaos.json").write_text(runtime.json_text(report, indent=1) + "\n")
    return report


@contextlib.contextmanager
def _surroundings(
    hosts: int, schedule: Sequence[Fault], path: Path
) -> Iterator[namespaces.Network | None]:
    """Gives a job the network and the disk that its faults need."""
    kinds = {fault.kind for fault in schedule}
    checkpoints = path / "disturbed" / "checkpoints"
    with contextlib.ExitStack() as stack:
        if "full-disk" in kinds:
            saved = path / "undisturbed" / "checkpoints"
            used = sum(f.stat().st_size for f in saved.rglob("*") if f.is_file())
            disk.mount_small(checkpoints, SMALL_DISK * used)
            stack.callback(disk.unmount_kept, checkpoints)
        network = None
        if "cut-network" in kinds:
            network = stack.enter_context(namespaces.Network(hosts, path / "network"))
        yield network


def _made(run_dir: Path) -> int | None:
    """Returns the steps of a run that is done, None if there is none."""
    result = (run_folder.read(run_dir) or {}).get("train", {})
    return None if result.get("interrupted", True) else int(result["step"])


def describe(report: dict[str, Any]) -> str:
    """Returns a report in words, with a table by kind of fault."""
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for fault in report["faults"]:
        name = f"{fault['kind']} {fault['process']}" if fault["kind"] == "kill" else fault["kind"]
        by_kind[name].append(fault)
    lines = [f"{'':20}{'faults':>8}{'detected':>10}{'recovered':>11}  (median seconds)"]
    for name, found in sorted(by_kind.items()):
        times = [_median(fault[key] for fault in found) for key in ("detected_s", "recovered_s")]
        late = sum(not fault["in_time"] for fault in found)
        note = f"  {late} not within the deadline" if late else ""
        lines.append(f"{name:20}{len(found):8}{times[0]:>10}{times[1]:>11}{note}")
    same = "the same bits" if report["end_state_identical"] else "other bits"
    if not report["survived"]:
        same = "no end state"
    lines += [
        f"{'survived' if report['survived'] else 'did not survive'}: {same} as undisturbed; "
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
