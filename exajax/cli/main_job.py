"""The main job on a machine without the mesh's devices: measure a twin, simulate the whole.

A small model of the same family is trained for real on two host processes; the full model's step
is compiled and simulated for the described machine; and the twin's step is simulated on this
machine, to hold measured against simulated. Every stage is a command of its own in processes of
its own, so that this one stays free to stop them.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import exajax
from exajax import units
from exajax.cli import flags, simulate, train
from exajax.cli.doctor import describe_devices
from exajax.errors import InputError
from exajax.job import local_hosts, provenance
from exajax.job.local_hosts import Process, StageFailed
from exajax.job.run_folder import RunFolder
from exajax.machine.cluster import Cluster, load_cluster
from exajax.recipe.recipe import Recipe
from exajax.recipe.small import small
from exajax.resilience.job import Job
from exajax.resilience.options import JobOptions
from exajax.roofline import Comparison
from exajax.simulate import step_report, weak_scaling
from exajax.simulate.step_report import CompiledReport
from exajax.spmd.mesh import MeshSpec
from exajax.train import inputs
from exajax.train.data.corpus import Corpus
from exajax.train.data.images import Images

CLUSTER = "dgx-h100"
HOSTS = 2
TWIN_MESH = MeshSpec(data=HOSTS, model=2)
AT_ONCE = 2
"""Ahead-of-time compiles that run side by side."""


@dataclasses.dataclass(frozen=True)
class Rehearsal:
    """One main job.

    Attributes:
        recipe: the full model on the whole mesh.
        twin: the small model of the same family, on this machine.
        cluster: where the full model would run.
        corpus: what the twin learns from.
        folder: where everything goes.
        args: the flags.
        not_kept: options of the recipe that the small model cannot keep, in words.
    """

    recipe: Recipe
    twin: Recipe
    cluster: Cluster
    corpus: Corpus | Images
    folder: RunFolder
    args: argparse.Namespace
    not_kept: tuple[str, ...]

    @property
    def logs(self) -> Path:
        """What the stages write to standard error."""
        return self.folder.path / "logs"

    @property
    def local(self) -> Path:
        """This machine as a cluster."""
        return self.folder.path / "local.toml"


def rehearse(args: argparse.Namespace, devices: dict[str, Any]) -> int:
    """Runs the main job and returns its exit code.

    Args:
        args: the flags of `exajax train`; `cluster` is where the full model would run.
        devices: what is attached here.
    """
    started_s = time.monotonic()
    job = prepare(args)
    announce(job, devices)
    calibrate(job)
    measured = train_twin(job)
    if measured["interrupted"]:
        raise local_hosts.Interrupted
    points = simulate_curve(job)
    twin = simulate_all(job, [job.twin])[0]
    comparison = compare(job, measured, twin)
    report(job, measured, points, twin, comparison)
    say(f"\ndone in {time.monotonic() - started_s:.0f} s")
    return 0


def say(text: str) -> None:
    """Prints a line at once."""
    print(text, flush=True)


def prepare(args: argparse.Namespace) -> Rehearsal:
    """Returns the job, checked as a whole before anything is written.

    Raises:
        InputError: anything in the flags, the text or the run folder cannot be used.
    """
    recipe = flags.recipe_of(args)
    cluster = load_cluster(args.cluster or CLUSTER)
    cluster.check(recipe.mesh.devices, recipe.precision)
    if args.init:
        raise InputError(
            "init",
            "a rehearsal trains a small twin, and these weights are of the full model",
            "leave it out, or run where the mesh's devices are",
        )
    recipe.flash(cluster.chip.platform)
    twin, not_kept = small(recipe, TWIN_MESH)
    options = train.options_of(args, recipe)
    batches = inputs.open_data(twin, options)
    identity = {
        "recipe": recipe.program,  # the mesh too: the folder's figures are simulated for it
        "twin": twin.program,
        "cluster": {"name": cluster.name, "sha256": cluster.digest},
        "data": batches.identity,
    }
    folder = RunFolder.open(options.run_dir, identity)
    job = Rehearsal(recipe, twin, cluster, batches.corpus, folder, args, tuple(not_kept))
    job.logs.mkdir(exist_ok=True)
    here = provenance.machine()
    if folder.content.get("machine", here) != here:
        job.local.unlink(missing_ok=True)  # the folder has moved to another machine
    folder.write(
        command=["python", "launch/multihost.py", *args.argv[1:]],
        versions=provenance.versions(),
        seeds={"parameters": recipe.seed, "data_order": recipe.seed},
        machine=here,
        data=batches.corpus.to_json(),
    )
    return job


def announce(job: Rehearsal, devices: dict[str, Any]) -> None:
    """Says what will be measured and what simulated."""
    recipe, cluster = job.recipe, job.cluster
    nodes = -(-recipe.mesh.devices // cluster.devices_per_node)
    axes = " x ".join(f"{axis} {size}" for axis, size in recipe.mesh.sizes.items() if size > 1)
    say(f"exajax {exajax.__version__}: {recipe.model.name} on mesh {recipe.mesh}")
    say(f"  mesh        {recipe.mesh.devices:,} devices: {axes or 'one device'}")
    say(
        f"  cluster     {cluster.title}: {nodes:,} of {cluster.nodes:,} nodes of "
        f"{cluster.devices_per_node} x {cluster.chip.title}"
    )
    say(
        f"  model       {recipe.model.summary}; "
        f"{recipe.global_batch} sequences of {recipe.seq:,} tokens a step"
    )
    say(f"  attached    {describe_devices(devices)}: not the mesh, so it is rehearsed")
    say(
        f"  measured    {job.twin.model.summary}, same family, trained here on {HOSTS} host "
        f"processes, mesh {job.twin.mesh} ({job.corpus.size}, {job.corpus.path})"
    )
    if job.not_kept:
        say(f"              with {'; '.join(job.not_kept)}")
    say("  data        " + job.corpus.describe().replace("\n", "\n  "))
    say(f"  simulated   {recipe.model.name} on {recipe.mesh}, its program compiled ahead of time")
    say(f"  run folder  {job.folder.path}")


def stage(processes: list[Process]) -> list[str]:
    """Runs the processes of a stage and returns what they captured.

    Raises:
        StageFailed: one of them failed; says what its log ends with.
        Interrupted: Ctrl-C.
    """
    results = local_hosts.run_together(processes)
    for process, (code, _) in zip(processes, results, strict=True):
        if code not in (0, 130):
            lines = process.log.read_text().splitlines() if process.log else []
            raise StageFailed(code, f"exajax {process.argv[0]} ended with {code}", lines)
    return [output for _, output in results]


def calibrate(job: Rehearsal) -> None:
    """Measures this machine, once for a run folder."""
    if job.local.exists():
        say("\n[1/4] this machine was measured before: " + str(job.local))
        return
    say("\n[1/4] measuring this machine: matrix products, memory, collectives (about 20 s)")
    argv = ["calibrate", f"--hosts={HOSTS}", "--devices-per-host=2", f"--out={job.local}", "--json"]
    processes = local_hosts.host_processes(argv, HOSTS, job.logs, local_hosts.CPU)
    stage([dataclasses.replace(p, stdout=local_hosts.CAPTURE) for p in processes])
    machine = load_cluster(str(job.local))
    say(
        f"  a device: {units.show(machine.chip.peak_flops['fp32'], 'FLOP/s')} fp32, "
        f"{units.show(machine.chip.memory_bandwidth, 'B/s')}; all-reduce in a process "
        f"{units.show(machine.link.latency('all-reduce'), 's')}, between processes "
        f"{units.show(machine.network.latency('all-reduce'), 's')} + "
        f"{units.show(machine.network.bandwidth, 'B/s')}"
    )


def train_twin(job: Rehearsal) -> dict[str, Any]:
    """Trains the twin on host processes of this machine and returns what was measured."""
    say(f"\n[2/4] training {job.twin.model.name} for real, {job.twin.steps} steps in total")
    result = job.logs / "train-result.json"
    result.unlink(missing_ok=True)
    options = dataclasses.replace(
        train.options_of(job.args, job.recipe),
        cluster=str(job.local),
        profile=job.args.profile is not False,
    )
    small = Job(job.twin, options, JobOptions(hosts=HOSTS), result=result)
    argv = ["job", str(small.write(job.logs / "train-job.json"))]
    stage([Process(argv, local_hosts.CPU, None, job.logs / "train.log")])
    measured = json.loads(result.read_text())
    say(train.describe(measured))
    losses = {"validation_loss": measured["validation_loss"], "unit": "nats"}
    job.folder.write(
        measured=measured | losses | {"where": job.folder.content["machine"], "losses": None}
    )
    return measured


def simulated(job: Rehearsal, recipe: Recipe) -> Path:
    """Returns the folder for the files of a simulated step."""
    return job.folder.path / "simulated" / f"{recipe.model.name}-{recipe.mesh}".replace("=", "")


def simulate_all(job: Rehearsal, recipes: Sequence[Recipe]) -> list[CompiledReport]:
    """Compiles and simulates recipes side by side, each in a process of its own.

    The twin is simulated on this machine, the full model on the described one.
    """
    given = {
        job.twin.model: (job.twin.model.name, str(job.local)),
        job.recipe.model: (job.args.model, job.args.cluster or CLUSTER),
    }
    processes = [
        Process(
            [
                "simulate",
                *flags.recipe_argv(recipe, given[recipe.model][0]),
                f"--cluster={given[recipe.model][1]}",
                f"--out={simulated(job, recipe)}",
                "--json",
            ],
            {},
            local_hosts.CAPTURE,
            job.logs / f"simulate-{recipe.model.name}-{recipe.mesh.devices}.log",
        )
        for recipe in recipes
    ]
    return [step_report.parse(output) for output in stage(processes)]


def simulate_curve(job: Rehearsal) -> list[CompiledReport]:
    """Simulates the whole mesh and smaller ones, and prints each."""
    say(f"\n[3/4] compiling {job.recipe.model.name} for {job.cluster.chip.title}, without one")
    whole = simulate_all(job, [job.recipe])[0]
    say("  " + simulate.describe(whole, job.cluster).replace("\n", "\n  "))
    recipes = weak_scaling.smaller(job.recipe, whole, job.cluster)
    points = [whole]
    for first in range(0, len(recipes), AT_ONCE):
        batch = recipes[first : first + AT_ONCE]
        say("  compiling the weak-scaling curve: " + ", ".join(str(r.mesh) for r in batch))
        points += simulate_all(job, batch)
    points.sort(key=lambda point: point.devices)
    say("  weak scaling, simulated:")
    efficiency = weak_scaling.curve(points)["efficiency"]
    for point in points:
        share = f"{efficiency[point.devices]:.1%}" if point.fits else "DOES NOT FIT"
        say(
            f"    {point.devices:>6,} devices ({point.mesh:>6})  "
            f"{units.show(point.step_time_s, 's'):>7}/step  "
            f"{point.tokens_per_s:>11,.0f} tokens/s  efficiency {share}  "
            f"{units.show(point.memory_bytes.total, 'B')} a device"
        )
    curve = [point.to_json() for point in points]
    job.folder.write(simulated={"whole": whole.to_json(), "curve": curve})
    return points


def compare(job: Rehearsal, measured: dict[str, Any], twin: CompiledReport) -> Comparison | None:
    """Prints the twin's step time on this machine, measured and simulated."""
    say("\n[4/4] measured against simulated, the same step on this machine")
    times = measured["step_time_s"]
    job.folder.write(simulated_twin=twin.to_json())
    if times["p50"] is None:
        say("  no step was timed; give more --steps")
        return None
    comparison = Comparison(times["p50"], times["p95"], twin.step_time_s)
    say(
        f"  measured {units.show(comparison.measured_s, 's')} (p95 "
        f"{units.show(comparison.measured_p95_s, 's')}), simulated "
        f"{units.show(comparison.simulated_s, 's')}: error {comparison.error:+.1%}"
    )
    job.folder.write(comparison=comparison.to_json())
    return comparison


def report(
    job: Rehearsal,
    measured: dict[str, Any],
    points: list[CompiledReport],
    twin: CompiledReport,
    comparison: Comparison | None,
) -> None:
    """Writes the scaling plots for TensorBoard and the page."""
    from exajax.report import perfetto, plots, site
    from exajax.train.sinks import tensorboard

    path = job.folder.path
    curves = weak_scaling.curve(points)
    name = job.recipe.model.name
    figure = plots.scaling(name, job.twin.model.name, curves, measured, twin)
    runs = {
        f"simulated-{name}": {f"scaling/{tag}": points for tag, points in curves.items()},
        f"simulated-{job.twin.model.name}": {
            "scaling/tokens_per_s": {twin.devices: twin.tokens_per_s or 0.0}
        },
    }
    if measured["tokens_per_s"]:
        runs[f"measured-{job.twin.model.name}"] = {
            "scaling/tokens_per_s": {measured["devices"]["count"]: measured["tokens_per_s"]}
        }
    tensorboard.write_scaling(path / "tensorboard" / "scaling", runs, figure)
    figure.savefig(path / "scaling.png", dpi=150)
    write_trace(job)
    site.write(path, job.recipe, job.twin, job.cluster, points, twin, measured, comparison)
    say(f"\nreport       {path / 'report.html'}")
    say(f"trace        {path / perfetto.NAME}, opens in ui.perfetto.dev")
    say(f"TensorBoard  tensorboard --logdir {path / 'tensorboard'}")
    say(f"numbers      {path / 'run.json'}, {path / 'metrics.jsonl'}")


def write_trace(job: Rehearsal) -> None:
    """Writes one trace of both simulated steps, and of the twin's measured one if it was traced."""
    from exajax.report import perfetto, profile

    whole, twin = (
        perfetto.read(simulated(job, recipe) / perfetto.NAME) for recipe in (job.recipe, job.twin)
    )
    traces = [whole, twin]
    seen = profile.newest(job.folder.path / "profile")
    if seen:
        title = f"{job.twin.model.name} on {job.twin.mesh} of this machine"
        traces.append(profile.trace(title, seen, perfetto.names_of(twin)))
    perfetto.write(job.folder.path / perfetto.NAME, perfetto.merged(traces))
