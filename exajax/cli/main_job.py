"""The main job where the mesh's devices are not: train a small model, simulate the full model.

A small model of the same family is trained for real on two host processes; the full model's step
is compiled and simulated for the described machine; and the small model's step is simulated on this
machine, to compare its measured with its simulated time. Every stage runs in processes of its own,
so that this one can stop them at any moment.
"""

import argparse
import time
from typing import Any

import exajax
from exajax.cli import flags, train
from exajax.cli.doctor import describe_devices
from exajax.cli.main_job_report import write_report
from exajax.cli.main_job_stages import (
    CLUSTER,
    HOSTS,
    MainJob,
    calibrate,
    compare,
    simulate_small_model,
    simulate_weak_scaling,
    train_small_model,
)
from exajax.errors import InputError
from exajax.job import local_hosts, provenance
from exajax.job.run_folder import RunFolder
from exajax.machine.cluster import load_cluster
from exajax.recipe.small_recipe import shrink
from exajax.spmd.mesh import MeshSpec
from exajax.train import inputs

SMALL_MESH = MeshSpec(data=HOSTS, model=2)
"""Mesh of the small model: two CPU devices in each host process."""


def run_main_job(args: argparse.Namespace, devices: dict[str, Any]) -> int:
    """Runs the main job and returns its exit code.

    Args:
        args: the flags of `exajax train`; `cluster` is the machine to simulate.
        devices: the devices that are attached to this machine.
    """
    started_s = time.monotonic()
    job = prepare(args)
    announce(job, devices)
    calibrate(job)
    measured = train_small_model(job)
    if measured["interrupted"]:
        raise local_hosts.Interrupted
    points = simulate_weak_scaling(job)
    simulated = simulate_small_model(job)
    comparison = compare(job, measured, simulated)
    write_report(job, measured, points, simulated, comparison)
    print(f"\ndone in {time.monotonic() - started_s:.0f} s", flush=True)
    return 0


def prepare(args: argparse.Namespace) -> MainJob:
    """Checks all inputs before anything is written, and opens the run folder.

    Raises:
        InputError: a flag, the data or the run folder cannot be used.
    """
    recipe = flags.recipe_of(args)
    cluster = load_cluster(args.cluster or CLUSTER)
    cluster.check(recipe.mesh.devices, recipe.precision)
    if args.init:
        raise InputError(
            "init",
            "a small model is trained here, and these weights are of the full model",
            "leave it out, or run where the mesh's devices are",
        )
    recipe.flash(cluster.chip.platform)
    small_recipe, not_kept = shrink(recipe, SMALL_MESH)
    options = train.train_options(args, recipe)
    batches = inputs.open_data(small_recipe, options)
    identity = {
        "recipe": recipe.program,  # with the mesh, for which the folder's figures are simulated
        "twin": small_recipe.program,
        "cluster": {"name": cluster.name, "sha256": cluster.digest},
        "data": batches.identity,
    }
    folder = RunFolder.open(options.run_dir, identity)
    job = MainJob(recipe, small_recipe, cluster, batches.corpus, folder, args, tuple(not_kept))
    job.logs.mkdir(exist_ok=True)
    machine = provenance.machine()
    if folder.content.get("machine", machine) != machine:
        job.local_cluster.unlink(missing_ok=True)  # it was measured on another machine
    folder.write(
        command=["python", "launch/multihost.py", *args.argv[1:]],
        versions=provenance.versions(),
        seeds={"parameters": recipe.seed, "data_order": recipe.seed},
        machine=machine,
        data=batches.corpus.to_json(),
    )
    return job


def announce(job: MainJob, devices: dict[str, Any]) -> None:
    """Prints what will be measured and what simulated."""
    recipe, cluster = job.recipe, job.cluster
    nodes = -(-recipe.mesh.devices // cluster.devices_per_node)
    axes = " x ".join(f"{axis} {size}" for axis, size in recipe.mesh.sizes.items() if size > 1)
    lines = [
        f"exajax {exajax.__version__}: {recipe.model.name} on mesh {recipe.mesh}",
        f"  mesh        {recipe.mesh.devices:,} devices: {axes or 'one device'}",
        f"  cluster     {cluster.title}: {nodes:,} of {cluster.nodes:,} nodes of "
        f"{cluster.devices_per_node} x {cluster.chip.title}",
        f"  model       {recipe.model.summary}; "
        f"{recipe.global_batch} sequences of {recipe.seq:,} tokens a step",
        f"  attached    {describe_devices(devices)}: not the mesh, so a small model is trained",
        f"  measured    {job.small_recipe.model.summary}, same family, trained here on {HOSTS} "
        f"host processes, mesh {job.small_recipe.mesh} ({job.corpus.size}, {job.corpus.path})",
    ]
    if job.not_kept:
        lines.append(f"              with {'; '.join(job.not_kept)}")
    lines += [
        "  data        " + job.corpus.describe().replace("\n", "\n  "),
        f"  simulated   {recipe.model.name} on {recipe.mesh}, its program compiled ahead of time",
        f"  run folder  {job.folder.path}",
    ]
    print("\n".join(lines), flush=True)
