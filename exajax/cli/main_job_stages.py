"""The stages of the main job: measure this machine, train, simulate, compare."""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exajax import units
from exajax.cli import simulate, train
from exajax.cli.simulate_job import SimulateJob
from exajax.job import local_hosts
from exajax.job.local_hosts import Process, StageFailed
from exajax.job.run_folder import RunFolder
from exajax.machine.cluster import Cluster, load_cluster
from exajax.recipe.recipe import Recipe
from exajax.resilience.job import Job
from exajax.resilience.options import JobOptions
from exajax.roofline import Comparison
from exajax.simulate import step_report, weak_scaling
from exajax.simulate.step_report import CompiledReport
from exajax.train.data.corpus import Corpus
from exajax.train.data.images import Images

CLUSTER = "dgx-h100"
HOSTS = 2
PARALLEL_COMPILES = 2
"""Ahead-of-time compiles that run at the same time."""


@dataclasses.dataclass(frozen=True)
class MainJob:
    """One main job.

    Attributes:
        recipe: the full model on the full mesh.
        small_recipe: the small model of the same family, on this machine.
        cluster: the described machine of the full model.
        corpus: the small model's data.
        folder: the run folder.
        args: the flags.
        not_kept: options of the recipe that the small model cannot keep, in words.
    """

    recipe: Recipe
    small_recipe: Recipe
    cluster: Cluster
    corpus: Corpus | Images
    folder: RunFolder
    args: argparse.Namespace
    not_kept: tuple[str, ...]

    @property
    def logs(self) -> Path:
        """Folder for the standard error of the stages."""
        return self.folder.path / "logs"

    @property
    def local_cluster(self) -> Path:
        """File of this machine's measured cluster description."""
        return self.folder.path / "local.toml"

    def step_folder(self, recipe: Recipe) -> Path:
        """Folder for the files of a simulated step."""
        name = f"{recipe.model.name}-{recipe.mesh}".replace("=", "")
        return self.folder.path / "simulated" / name


def calibrate(job: MainJob) -> None:
    """Measures this machine, once for a run folder."""
    if job.local_cluster.exists():
        _print(f"\n[1/4] this machine was measured before: {job.local_cluster}")
        return
    _print("\n[1/4] measuring this machine: matrix products, memory, collectives (about 20 s)")
    flags = [f"--hosts={HOSTS}", "--devices-per-host=2", f"--out={job.local_cluster}", "--json"]
    processes = local_hosts.host_processes(["calibrate", *flags], HOSTS, job.logs, local_hosts.CPU)
    _run([dataclasses.replace(p, stdout=local_hosts.CAPTURE) for p in processes])
    machine = load_cluster(str(job.local_cluster))
    _print(
        f"  a device: {units.show(machine.chip.peak_flops['fp32'], 'FLOP/s')} fp32, "
        f"{units.show(machine.chip.memory_bandwidth, 'B/s')}; all-reduce in a process "
        f"{units.show(machine.link.latency('all-reduce'), 's')}, between processes "
        f"{units.show(machine.network.latency('all-reduce'), 's')} + "
        f"{units.show(machine.network.bandwidth, 'B/s')}"
    )


def train_small_model(job: MainJob) -> dict[str, Any]:
    """Trains the small model on host processes of this machine, and returns its result."""
    recipe = job.small_recipe
    _print(f"\n[2/4] training {recipe.model.name} for real, {recipe.steps} steps in total")
    result = job.logs / "train-result.json"
    result.unlink(missing_ok=True)
    options = dataclasses.replace(
        train.train_options(job.args, job.recipe),
        cluster=str(job.local_cluster),
        profile=job.args.profile is not False,
    )
    training = Job(recipe, options, JobOptions(hosts=HOSTS), result=result)
    argv = ["job", str(training.write(job.logs / "train-job.json"))]
    _run([Process(argv, local_hosts.CPU, None, job.logs / "train.log")])
    measured: dict[str, Any] = json.loads(result.read_text())
    _print(train.describe(measured))
    losses = {"validation_loss": measured["validation_loss"], "unit": "nats"}
    job.folder.write(
        measured=measured | losses | {"where": job.folder.content["machine"], "losses": None}
    )
    return measured


def simulate_small_model(job: MainJob) -> CompiledReport:
    """Simulates the small model's step on this machine."""
    return _simulate(job, [job.small_recipe], str(job.local_cluster))[0]


def simulate_weak_scaling(job: MainJob) -> list[CompiledReport]:
    """Simulates the full model on its mesh and on smaller ones, and prints each result."""
    cluster = job.args.cluster or CLUSTER
    _print(f"\n[3/4] compiling {job.recipe.model.name} for {job.cluster.chip.title}, without one")
    full = _simulate(job, [job.recipe], cluster)[0]
    _print("  " + simulate.describe(full, job.cluster).replace("\n", "\n  "))
    recipes = weak_scaling.smaller_meshes(job.recipe, full, job.cluster)
    points = [full]
    for first in range(0, len(recipes), PARALLEL_COMPILES):
        batch = recipes[first : first + PARALLEL_COMPILES]
        _print("  compiling the weak-scaling curve: " + ", ".join(str(r.mesh) for r in batch))
        points += _simulate(job, batch, cluster)
    points.sort(key=lambda point: point.devices)
    _print("  weak scaling, simulated:")
    efficiency = weak_scaling.curve(points)["efficiency"]
    for point in points:
        share = f"{efficiency[point.devices]:.1%}" if point.fits else "DOES NOT FIT"
        _print(
            f"    {point.devices:>6,} devices ({point.mesh:>6})  "
            f"{units.show(point.step_time_s, 's'):>7}/step  "
            f"{point.tokens_per_s:>11,.0f} tokens/s  efficiency {share}  "
            f"{units.show(point.memory_bytes.total, 'B')} a device"
        )
    curve = [point.to_json() for point in points]
    job.folder.write(simulated={"whole": full.to_json(), "curve": curve})
    return points


def compare(job: MainJob, measured: dict[str, Any], simulated: CompiledReport) -> Comparison | None:
    """Prints the small model's step time on this machine, measured and simulated."""
    _print("\n[4/4] measured against simulated, the same step on this machine")
    times = measured["step_time_s"]
    job.folder.write(simulated_twin=simulated.to_json())
    if times["p50"] is None:
        _print("  no step was timed; give more --steps")
        return None
    comparison = Comparison(times["p50"], times["p95"], simulated.step_time_s)
    _print(
        f"  measured {units.show(comparison.measured_s, 's')} (p95 "
        f"{units.show(comparison.measured_p95_s, 's')}), simulated "
        f"{units.show(comparison.simulated_s, 's')}: error {comparison.error:+.1%}"
    )
    job.folder.write(comparison=comparison.to_json())
    return comparison


def _simulate(job: MainJob, recipes: Sequence[Recipe], cluster: str) -> list[CompiledReport]:
    """Compiles and simulates recipes at the same time, each in a process of its own."""
    processes = []
    for recipe in recipes:
        name = f"simulate-{recipe.model.name}-{recipe.mesh.devices}"
        file = SimulateJob(recipe, cluster, job.step_folder(recipe)).write(
            job.logs / f"{name}.json"
        )
        log = job.logs / f"{name}.log"
        processes.append(Process(["job", str(file)], {}, local_hosts.CAPTURE, log))
    return [step_report.parse(output) for output in _run(processes)]


def _run(processes: list[Process]) -> list[str]:
    """Runs the processes of a stage; returns their captured standard output.

    Raises:
        StageFailed: one of them failed; the message ends with its log.
        Interrupted: Ctrl-C.
    """
    results = local_hosts.run_together(processes)
    for process, (code, _) in zip(processes, results, strict=True):
        if code not in (0, 130):
            lines = process.log.read_text().splitlines() if process.log else []
            name = process.log.stem if process.log else process.argv[0]
            raise StageFailed(code, f"{name} ended with {code}", lines)
    return [output for _, output in results]


def _print(text: str) -> None:
    print(text, flush=True)
