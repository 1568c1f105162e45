"""The proof that training survives: hundreds of faults, and the end states compared to the bit.

    python benchmarks/chaos.py

Seeded runs of 2 to 4 processes of a tiny model, each beside the undisturbed run of the same recipe
(`exajax chaos`). Kills hit any process at any moment, at a pace that leaves half of the restarts
unfinished; the other kinds come one after another. A run that is done is kept in `--folder` and not
repeated, so that the script can be ended and started again. Nothing else should run meanwhile: it
takes about an hour and a half on 2 cores.
"""

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # a checkout needs no installation

from exajax.chaos import faults, faults_file
from exajax.chaos.faults import Fault
from exajax.job.events import read_events
from exajax.job.provenance import machine, versions

OUT = Path(__file__).parent / "data" / "chaos.json"

KILLS, OTHERS = 200, 10
"""Aims: kills in all, and faults of every other kind."""

KILLS_A_RUN, NANS_A_RUN = 25, 5

HOSTS = (2, 2, 3, 2, 2, 4)
"""Processes of a run under kills, by its seed."""

PACES = (0.3, 0.8, 0.8, 0.3, 0.3, 0.3)
"""Mean time between two kills, as a share of what it takes to start, by the seed: the quick ones
hit what starts again, the slow ones what trains and saves."""

FIRST_STEP, EVERY_STEPS = 30, 30
"""When the other kinds come."""

LIMIT_S = 1800.0
"""A run that takes longer hangs."""

MODEL = """name = "chaos"
family = "llama"
layers = 2
width = 64
heads = 4
kv_heads = 4
ffn = 128
vocab = 256
seq = 32
"""

ONE_AFTER_ANOTHER: Mapping[str, float | None] = {
    "stop": None,
    "terminate": None,
    "lost-coordinator": None,
    "stuck": None,
    "truncate": None,
    "bit-flip": None,
    "flip-parameter": None,
    "slow-host": 15.0,
    "slow-disk": 4.0,
    "full-disk": 4.0,
    "cut-network": 25.0,
}
"""Kinds that come once in a run, and how many seconds they last; None is for ever, or no time."""


@dataclass(frozen=True)
class Group:
    """Runs of one recipe, which share an undisturbed one.

    Attributes:
        name: of the group.
        hosts: processes.
        steps: of training.
        flags: of `exajax train`, beside those of all groups.
    """

    name: str
    hosts: int
    steps: int
    flags: tuple[str, ...] = ()

    def argv(self, folder: Path) -> list[str]:
        """The flags of the group's recipe."""
        return [
            f"--model={folder / 'model.toml'}",
            f"--data={folder / 'text.txt'}",
            f"--mesh={self.hosts}x1",
            f"--hosts={self.hosts}",
            f"--steps={self.steps}",
            "--global-batch=12",
            "--precision=fp32",
            "--save-every=10",
            "--restarts=20",
            "--max-backoff=2",
            "--deadlines=step=15,silent=8,start=60",
            *self.flags,
        ]


AUDITED = ("--zero=0", "--audit-every=5")
"""Every device holds all parameters, so that a flipped bit of one can be told from the others."""

GROUPS = {
    group.name: group
    for group in (
        *(Group(f"kills-{hosts}", hosts, 1500) for hosts in (2, 3, 4)),
        Group("others", 2, FIRST_STEP + EVERY_STEPS * len(ONE_AFTER_ANOTHER) + 50, AUDITED),
        Group("nan-skip", 2, 200, ("--on-nan=skip",)),
        Group("nan-roll-back", 2, 200, ("--on-nan=roll-back",)),
    )
}


def schedule(group: Group, seed: int, startup_s: float) -> tuple[Fault, ...]:
    """Returns the faults of a run.

    Args:
        group: that it is of.
        seed: of the schedule.
        startup_s: from the start of the undisturbed run to its first step.
    """
    if group.name.startswith("kills"):
        return faults.kills(seed, KILLS_A_RUN, group.hosts, PACES[seed % len(PACES)] * startup_s)
    draw = np.random.default_rng(seed)
    if group.name.startswith("nan"):
        steps = sorted(draw.choice(range(20, 160), NANS_A_RUN, replace=False).tolist())
        return tuple(Fault(i, "nan", "any", step=step) for i, step in enumerate(steps))
    kinds = draw.permutation(list(ONE_AFTER_ANOTHER)).tolist()
    return tuple(
        Fault(
            i,
            kind,
            int(draw.integers(group.hosts)),
            step=FIRST_STEP + i * EVERY_STEPS + int(draw.integers(10)),
            duration_s=ONE_AFTER_ANOTHER[kind],
        )
        for i, kind in enumerate(kinds)
    )


def exajax(argv: Sequence[str], log: Path) -> int:
    """Runs a command in a process of its own; returns its exit code."""
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    with log.open("w") as file:
        return subprocess.run(
            [sys.executable, "-m", "exajax", *argv],
            env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
            stdout=file,
            stderr=file,
            timeout=LIMIT_S,
        ).returncode


def undisturbed(group: Group, folder: Path) -> Path:
    """Returns the undisturbed run of a group; trains it if it is not there."""
    run_dir = folder / f"undisturbed-{group.name}"
    argv = ["train", *group.argv(folder), f"--run-dir={run_dir}", "--metrics-port=0"]
    log = run_dir.with_suffix(".log")
    if not (run_dir / "done").exists():
        shutil.rmtree(run_dir, ignore_errors=True)
        if exajax(argv, log):
            sys.exit(f"the undisturbed run failed:\n{log.read_text()[-2000:]}")
        (run_dir / "done").touch()
    return run_dir


def startup_s(run_dir: Path) -> float:
    """Returns the seconds from the start of a run to its second step, less compiling.

    Those who start again read the program from the cache.
    """
    events = read_events(run_dir)
    phases = [e for e in events if e["event"] == "phase" and e["host"] == 0]
    compiling, behind = (
        next(e["time"] for e in phases if e["phase"] == phase) for phase in ("compile", "restore")
    )
    second = next(e["time"] for e in phases if e["step"] == 2)
    return float(second - events[0]["time"] - (behind - compiling))


def measure(group: Group, seed: int, folder: Path) -> dict[str, Any]:
    """Returns the report of a seeded run; runs it if that is not there."""
    run_dir = folder / f"{group.name}-{seed}"
    kept = run_dir / "report.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    straight = undisturbed(group, folder)
    shutil.rmtree(run_dir, ignore_errors=True)
    run_dir.mkdir()
    (run_dir / "undisturbed").symlink_to(straight.absolute())
    planned = schedule(group, seed, startup_s(straight))
    faults_file.write(planned, run_dir / "planned.toml")
    argv = ["chaos", *group.argv(folder), f"--run-dir={run_dir}", "--json"]
    code = exajax([*argv, f"--faults={run_dir / 'planned.toml'}"], run_dir / "chaos.log")
    if not (run_dir / "chaos.json").exists():
        sys.exit(f"{run_dir} ended with {code}:\n{(run_dir / 'chaos.log').read_text()[-3000:]}")
    about = {"group": group.name, "hosts": group.hosts, "seed": seed, "steps": group.steps}
    report = about | json.loads((run_dir / "chaos.json").read_text())
    kept.write_text(json.dumps(report))
    return report


def runs(only: str | None, seeds: range | None, folder: Path) -> Iterator[dict[str, Any]]:
    """Yields the reports of runs until the aims are reached, or of the seeds that are named."""
    if only != "others":
        killed, number = 0, 0
        for seed in seeds or range(1, 1000):
            report = measure(GROUPS[f"kills-{HOSTS[seed % len(HOSTS)]}"], seed, folder)
            killed, number = killed + len(report["faults"]), number + 1
            yield report
            if not seeds and killed >= KILLS:
                break
    if only != "kills":
        for seed in seeds or range(1, OTHERS + 1):
            yield measure(GROUPS["others"], seed, folder)
        for seed in seeds or range(1, OTHERS // NANS_A_RUN // 2 + 1):
            yield measure(GROUPS["nan-skip"], seed, folder)
            yield measure(GROUPS["nan-roll-back"], seed, folder)


def summary(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what all runs have shown, by kind of fault."""
    struck = [fault for report in reports for fault in report["faults"]]
    kills = [fault for fault in struck if fault["kind"] == "kill"]
    by_kind = defaultdict(list)
    for fault in struck:
        by_kind[fault["kind"]].append(fault)
    promised = [report for report in reports if report["identity_promised"]]
    return {
        "runs": len(reports),
        "faults": len(struck),
        "kills": len(kills),
        "kills_by_process": Counter(fault["process"] for fault in kills),
        "kills_by_phase": Counter(fault["phase"] for fault in kills),
        "kills_of_rank_0": sum(f["process"] == "worker" and f["target"] == 0 for f in kills),
        "kills_while_committing": sum(fault["committing"] for fault in kills),
        "survived": sum(report["survived"] for report in reports),
        "identity_promised": len(promised),
        "identical": sum(report["end_state_identical"] for report in promised),
        "samples_missing": sum(report["samples_missing"] for report in promised),
        "samples_repeated": sum(report["samples_repeated"] for report in promised),
        "replayed_steps": sum(report["replayed_steps"] for report in reports),
        "orphans": sum(len(report["orphans"]) for report in reports),
        "half_checkpoints": sum(len(report["half_checkpoints"]) for report in reports),
        "stale_locks": sum(len(report["stale_locks"]) for report in reports),
        "not_recovered": sum(fault["recovered_s"] is None for fault in struck),
        "by_kind": {kind: _times(found) for kind, found in sorted(by_kind.items())},
    }


def _times(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    entry: dict[str, Any] = {"faults": len(found)}
    entry["in_time"] = sum(fault["in_time"] for fault in found)
    entry["unnoticed"] = sum(fault["detected_s"] is None for fault in found)
    for key in ("detected_s", "recovered_s"):
        known = sorted(fault[key] for fault in found if fault[key] is not None)
        if known:
            entry[key] = {"median": statistics.median(known), "most": known[-1]}
    return entry


def table(shown: Mapping[str, Any]) -> str:
    """Returns a summary for people."""
    lines = [f"{'':18}{'faults':>7}{'in time':>9}{'noticed after':>18}{'back after':>18}"]
    for kind, entry in shown["by_kind"].items():
        times = [
            f"{entry[key]['median']:6.1f} ..{entry[key]['most']:6.1f} s" if key in entry else "-"
            for key in ("detected_s", "recovered_s")
        ]
        lines.append(
            f"{kind:18}{entry['faults']:7}{entry['in_time']:9}{times[0]:>18}{times[1]:>18}"
        )
    return "\n".join(
        [
            *lines,
            f"{shown['kills']} kills in {shown['runs']} runs: {dict(shown['kills_by_process'])}, "
            f"{shown['kills_of_rank_0']} of rank 0, {shown['kills_while_committing']} with a "
            f"checkpoint half written; at {dict(shown['kills_by_phase'])}",
            f"{shown['survived']} of {shown['runs']} runs survived, {shown['identical']} of "
            f"{shown['identity_promised']} identical; samples {shown['samples_missing']} missing, "
            f"{shown['samples_repeated']} repeated; {shown['replayed_steps']} steps recomputed; "
            f"{shown['orphans']} orphans, {shown['half_checkpoints']} half checkpoints, "
            f"{shown['stale_locks']} stale locks",
        ]
    )


def held(report: Mapping[str, Any]) -> bool:
    """Returns whether a run came to the undisturbed one's end, and left nothing behind.

    A schedule that is longer than the run is no fault of the run's.
    """
    left = any(report[key] for key in ("orphans", "stale_locks", "half_checkpoints"))
    samples = report["samples_missing"] + report["samples_repeated"]
    same = report["end_state_identical"] and not samples
    # Steps that are left out for NaN leave out samples.
    return report["survived"] and not left and (same or not report["identity_promised"])


def line(report: Mapping[str, Any]) -> str:
    """Returns a line on one run."""
    state = "identical" if report["end_state_identical"] else "not identical"
    if not report["survived"]:
        state = "did not survive"
    late = [fault["kind"] for fault in report["faults"] if not fault["in_time"]]
    return (
        f"{report['group']} seed {report['seed']}: {len(report['faults'])} faults in "
        f"{report['wall_s']:.0f} s, {state}, {report['replayed_steps']} steps recomputed"
        + (f"; not in time: {', '.join(late)}" if late else "")
        + (f"; it was over before {later} more" if (later := len(report["not_injected"])) else "")
        + ("" if held(report) else "; NOT PASSED")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=("kills", "others"))
    parser.add_argument("--seeds", metavar="A-B", help="these seeds (default: as many as it takes)")
    parser.add_argument("--kept", action="store_true", help="only sum up the runs that are there")
    parser.add_argument("--folder", type=Path, default=Path("runs/chaos-proof"))
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    seeds = None
    if args.seeds:
        first, _, last = args.seeds.partition("-")
        seeds = range(int(first), int(last or first) + 1)
    folder = args.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.toml").write_text(MODEL)
    words = (f"{i} times {i % 7} is {i * (i % 7)}, and so it goes on.\n" for i in range(1500))
    (folder / "text.txt").write_text("".join(words))
    reports = []
    kept = (json.loads(path.read_text()) for path in sorted(folder.glob("*/report.json")))
    for report in kept if args.kept else runs(args.only, seeds, folder):
        print(line(report), flush=True)
        reports.append(report)
    shown = summary(reports)
    print(table(shown))
    data = {"kind": "measured", "machine": machine(), "versions": versions()}
    groups = [dataclasses.asdict(group) for group in GROUPS.values()]
    data |= {"summary": shown, "groups": groups, "runs": reports}
    args.out.write_text(json.dumps(data, indent=1) + "\n")
    sys.exit(not all(map(held, reports)))


if __name__ == "__main__":
    main()
