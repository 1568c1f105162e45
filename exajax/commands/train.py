"""Trains a model on the devices that are attached, or on host processes of this machine."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from exajax import cluster as clusters
from exajax import distributed, environment, flag_types, flags, goodput, run_folder, runtime, units
from exajax.errors import InputError
from exajax.events import read_events
from exajax.files.writing import new_path
from exajax.provenance import machine, provenance, start_versions
from exajax.recipe import Recipe
from exajax.report.live_goodput import LiveGoodput
from exajax.resilience import watchdog
from exajax.resilience.injection import inside as injection
from exajax.run_folder import RunFolder
from exajax.train import history
from exajax.train.bad_steps import ON_NAN, ON_SPIKE, Policy
from exajax.train.data.corpus import load_corpus
from exajax.train.data.sampling import TextBatches
from exajax.train.data.skipping import Skipping
from exajax.train.data.tokenizer import KEPT
from exajax.train.image_batches import ImageBatches
from exajax.train.images import load_images
from exajax.train.metrics import JsonLines, Logger, SampleLog, percentiles

EVALUATION_BATCHES = 8

OPTIONS = ("on_nan", "on_spike", "audit_every", "save_every", "local_every", "profile")
"""Flags beside the recipe's that decide, on every process alike, what the loop turns to."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    flags.add_recipe_flags(parser)
    flags.add_run_flags(parser)
    parser.add_argument(
        "--init",
        type=flag_types.path,
        metavar="DIR",
        help="begin with the weights of a folder in Hugging Face's form",
    )
    add = parser.add_argument_group("where").add_argument
    add(
        "--hosts",
        type=flag_types.whole(1, flag_types.MOST_DEVICES),
        metavar="H",
        help="start so many host processes on this machine",
    )
    add(
        "--devices-per-host",
        type=flag_types.whole(1, flag_types.MOST_DEVICES),
        metavar="D",
        help="devices of each (default: an equal part)",
    )
    add(
        "--cluster",
        type=flag_types.name,
        help="machine whose peak the MFU refers to (default: that of the chip)",
    )
    add(
        "--profile",
        action=argparse.BooleanOptionalAction,
        help="trace a step with JAX's profiler, into RUN_DIR/profile (default: in a rehearsal)",
    )
    from exajax.resilience import jobs

    jobs.add_flags(parser)
    # What the main job starts: it owns the run folder's run.json, and reads the result from a file.
    add("--result", type=flag_types.name, help=argparse.SUPPRESS)
    add(
        "--save-every",
        type=flag_types.whole(1, flag_types.MOST_STEPS),
        default=50,
        metavar="N",
        help="steps between checkpoints",
    )
    add(
        "--keep-checkpoints",
        type=flag_types.whole(0, flag_types.MOST_STEPS),
        default=2,
        metavar="N",
        help="how many of the newest stay in the run folder, besides those in damaged/; 0: all",
    )
    add(
        "--local-checkpoints",
        type=flag_types.path,
        metavar="DIR",
        help="save on a disk of each host too",
    )
    add(
        "--local-every",
        type=flag_types.whole(1, flag_types.MOST_STEPS),
        default=10,
        metavar="N",
        help="steps between those",
    )
    add = parser.add_argument_group("faults").add_argument
    add("--on-nan", choices=ON_NAN, default="stop", help="where loss or gradient is not finite")
    add("--on-spike", choices=ON_SPIKE, default="ignore", help="where the loss leaps up")
    add(
        "--audit-every",
        type=flag_types.whole(0, flag_types.MOST_STEPS),
        default=0,
        metavar="K",
        help="steps between comparisons of what replicas hold and compute; 0 for none",
    )


def run(args: argparse.Namespace) -> int:
    """Trains as one process of a job, or supervises those that do."""
    recipe = flags.recipe_of(args)
    if environment.ROLE.get() != "worker":
        from exajax.resilience import jobs

        return jobs.run(args, recipe)
    out = runtime.claim_stdout()
    result = train(args, recipe, sys.stderr if args.json else out)
    if not distributed.speaks():
        pass
    elif args.result:
        Path(args.result).write_text(runtime.to_json(result))
    else:
        print(runtime.to_json(result) if args.json else describe(result), file=out, flush=True)
    return 130 if result["interrupted"] else 0


def open_data(args: argparse.Namespace, recipe: Recipe) -> TextBatches | ImageBatches:
    """Returns the batches that the flags name, of what the recipe's model reads.

    Raises:
        InputError: the data or the tokenizer cannot be used, or not with this model.
    """
    if recipe.model.family == "vit":
        if args.tokenizer:
            raise InputError("--tokenizer", f"{recipe.model.name} reads images", "leave it out")
        images = load_images(args.data, recipe.model)
        return ImageBatches(images, recipe.global_batch, recipe.seed)
    corpus = load_corpus(args.data, args.tokenizer, recipe.seq, recipe.model.vocab, args.bad_lines)
    return TextBatches(corpus, recipe.global_batch, recipe.seed, recipe.packed)


def check(args: argparse.Namespace, recipe: Recipe) -> TextBatches | ImageBatches:
    """Returns the data, once all that can be known to be wrong is ruled out. Writes nothing.

    Raises:
        InputError: a flag, the data or the run folder cannot be used.
    """
    if args.local_checkpoints:
        run_folder.check_writable(Path(args.local_checkpoints), "--local-checkpoints")
    policy_of(args)
    if args.cluster:
        clusters.load_cluster(args.cluster).chip.peak(recipe.precision)
    batches = open_data(args, recipe)
    if args.init:
        from exajax.train import initial

        initial.check(args.init, recipe.model)
    if not args.result:
        run_folder.check(run_dir(args, recipe), job_of(recipe, batches))
    return batches


def check_hosts(args: argparse.Namespace, recipe: Recipe) -> None:
    """Raises an `InputError` if local hosts and their devices do not make up the mesh."""
    if args.hosts < 1:
        raise InputError("--hosts", f"{args.hosts} is less than 1", "give a whole number from 1 on")
    share = args.devices_per_host or recipe.mesh.devices // args.hosts
    if share * args.hosts != recipe.mesh.devices:
        raise InputError(
            "--hosts",
            f"{args.hosts} hosts of {share} devices are not the {recipe.mesh.devices} of mesh "
            f"{recipe.mesh}",
            "make hosts x devices-per-host the devices of the mesh",
        )


def policy_of(args: argparse.Namespace) -> Policy:
    """Returns what the flags say to do about bad arithmetic."""
    return Policy(args.on_nan, args.on_spike, args.audit_every)


def run_dir(args: argparse.Namespace, recipe: Recipe) -> Path:
    """Returns the run folder, by default named for model and mesh."""
    return Path(args.run_dir or f"runs/{recipe.model.name}-{recipe.mesh}".replace("=", ""))


def job_of(recipe: Recipe, batches: TextBatches | ImageBatches) -> dict[str, Any]:
    """Returns what makes two runs the same job: not the mesh, and not how many steps."""
    return {"recipe": recipe.job, "data": batches.identity}


def _start(
    args: argparse.Namespace, recipe: Recipe, batches: TextBatches | ImageBatches
) -> dict[str, Any]:
    """Returns what must be equal on all hosts, as JSON: versions, recipe, options and data."""
    return {
        "versions": start_versions(),
        "recipe": recipe.to_json(),
        "options": {name.replace("_", "-"): getattr(args, name) for name in OPTIONS},
        "data": {"identity": batches.identity, "text": batches.corpus.to_json()},
    }


def train(args: argparse.Namespace, recipe: Recipe, out: TextIO) -> dict[str, Any]:
    """Trains as this process's part of the job; the first process returns the whole result."""
    placement = distributed.find()
    path, first = run_dir(args, recipe), placement.process == 0
    watch = watchdog.supervised(path, first)
    inside = injection.of_environment(path)
    live = LiveGoodput(path, watch.events) if watch and first else None
    problem: InputError | None = None
    batches: TextBatches | ImageBatches | None = None
    try:
        batches = check(args, recipe)
    except InputError as error:
        problem = error
    distributed.initialize(placement, recipe.mesh)

    import jax

    from exajax.train import same_start

    facts = {} if batches is None else _start(args, recipe, batches)
    same_start.check(watch.events.host if watch else placement.process, problem, facts)
    assert batches  # or there had been a problem

    from exajax import compilation_cache, memory
    from exajax.compilation_cache import Compilation
    from exajax.models import fp8, workloads
    from exajax.step import Layout, TrainStep
    from exajax.train import initial
    from exajax.train.loop import Every, Profile, Progress, fit

    devices = runtime.devices()
    cache = compilation_cache.enable(anew=environment.COMPILE_ANEW.get() is not None)
    if watch:
        watch.reads_cache = True
    if recipe.precision == "fp8":
        fp8.check(devices[0])
    mesh = recipe.mesh.build(devices)
    chip = clusters.load_cluster(args.cluster).chip if args.cluster else None
    chip = chip or clusters.chip_of_device(devices[0].device_kind)
    watching: list[Progress] = [told for told in (watch, live and live.progress, inside) if told]

    def before_commit(number: int) -> None:
        inside.before_commit(number)
        if watch:
            watch.check_current(number)

    opened: list[RunFolder] = []
    compiled: list[str] = []

    def progress(phase: str, at: int) -> None:
        for told in watching:
            told(phase, at)

    def open_folder(compilation: Compilation) -> None:
        """Takes the run folder, once the step is known to fit the devices."""
        if watch:
            watch.reads_cache = compilation.cache == "hit"
        if first:
            compiled.append(f"{compilation} ({cache})")
        if first and not args.result:
            opened.append(RunFolder.open(path, job_of(recipe, batches), lock=False))
            opened[0].write(data=batches.corpus.to_json())

    def loggers(done: int) -> Sequence[Logger]:
        if first and not done:
            _check_nothing_is_gone(path)
        if first:
            for line in [*changed_schedule(path, recipe, done), *compiled]:
                print(line, file=out, flush=True)
            print(
                f"training {recipe.model.described} on {placement.processes} processes x "
                f"{len(jax.local_devices())} {devices[0].device_kind} devices, mesh {recipe.mesh}, "
                f"{recipe.tokens:,} tokens a step ({placement.why}); run folder {path}",
                file=out,
                flush=True,
            )
            print("  data " + batches.corpus.describe().replace("\n", "\n  "), file=out, flush=True)
        kept = _loggers(args, recipe, path, placement.process, done, out, live)
        if not first:  # a second writer would take the file away from the first
            return kept
        _keep_tokenizer(path, batches)
        ids = SampleLog(path / "samples.jsonl", done, lambda n: batches.ids(source.number(n)))
        return [*kept, ids]

    platform = devices[0].platform

    def step_of(recipe: Recipe) -> TrainStep:
        layout: Layout = {**recipe.layout, "skip_bad": args.on_nan == "skip"}
        workload = inside.workload(workloads.workload(recipe, platform))
        return TrainStep.of(workload, mesh, **layout)

    capacity = memory.capacity_bytes(jax.local_devices()[0])
    recipe, step = memory.first_that_fits(recipe.levels, step_of, capacity)
    source = Skipping(inside.batches(batches))
    result = fit(
        step,
        source,
        steps=recipe.steps,
        seed=recipe.seed,
        held_out=lambda: inside.held_out(batches.held_out(EVALUATION_BATCHES)),
        before_writing=open_folder,
        checkpoints=path / "checkpoints",
        save_every=args.save_every,
        keep=args.keep_checkpoints or None,
        initial=(lambda: initial.start(step, args.init, recipe.model)) if args.init else None,
        about={
            "recipe": recipe.to_json(),
            "data": batches.identity,
            "init": args.init and str(args.init),
        },
        loggers=loggers,
        peak_flops=chip.peak(recipe.precision) if chip else None,
        policy=policy_of(args),
        host=watch.events.host if watch else None,
        profile=Profile(path / "profile" if first else None) if args.profile else None,
        progress=progress,
        events=watch.events if watch else None,
        before_commit=before_commit,
        local=args.local_checkpoints,
        local_every=args.local_every,
        callbacks=[Every(1, inside.flip)] if inside.flips else [],
        measures={
            name: TrainStep.of(
                dataclasses.replace(step.workload, loss=measure),
                mesh,
                **recipe.layout,
            ).evaluate
            for name, measure in workloads.measures(recipe, platform).items()
        },
    )
    if not first:
        return {"interrupted": result.interrupted}
    entropy = batches.corpus.unigram_entropy
    summary = summarize(path, recipe) | {
        "resumed_from": result.resumed_from,
        "interrupted": result.interrupted,
        "run_dir": str(path),
        "goodput": goodput.account(path).to_json(),
        "compilation": dataclasses.asdict(result.compilation),
        "unigram_entropy": entropy,
        "below_unigram_entropy": (
            result.validation_loss is not None and result.validation_loss < entropy
        ),
        "data": batches.corpus.to_json(),
        "devices": {
            "count": len(devices),
            "processes": placement.processes,
            "kind": devices[0].device_kind,
        },
        "provenance": provenance(recipe, None)
        | {"kind": "measured", "machine": machine(), "launcher": placement.why},
    }
    for folder in opened:
        when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        folder.write(train=summary | {"losses": None, "when": when})
    return summary


def _keep_tokenizer(path: Path, batches: TextBatches | ImageBatches) -> None:
    """Copies the tokenizer of a run's text into its folder: an export takes it along."""
    content = batches.corpus.tokenizer_json if isinstance(batches, TextBatches) else None
    if content is None:
        return
    part = new_path(path / KEPT)
    part.write_bytes(content)
    part.replace(path / KEPT)


def changed_schedule(path: Path, recipe: Recipe, done: int) -> list[str]:
    """Returns a line of text if the steps before were made on another schedule, else nothing."""
    from exajax.optimizer import stretched

    made = [r for r in history.read(path / "metrics.jsonl") if r["step"] <= done]
    horizons = [r["schedule_steps"] for r in made if "schedule_steps" in r]
    line = stretched(recipe, horizons[-1], done) if horizons else None
    return [line] if line else []


def _check_nothing_is_gone(path: Path) -> None:
    """Raises an `InputError` if a run that begins had saved checkpoints: a disk may be missing."""
    saved = [
        event["step"]
        for event in read_events(path)
        if event["event"] == "checkpoint-saved" and event.get("tier") == "shared"
    ]
    if saved:
        raise InputError(
            "--run-dir",
            f"{path} has had a checkpoint of step {saved[-1]}, and has none any more",
            "put its checkpoints back, or give another folder to begin anew",
        )


def _loggers(
    args: argparse.Namespace,
    recipe: Recipe,
    path: Path,
    process: int,
    done: int,
    out: TextIO,
    live: LiveGoodput | None,
) -> list[Logger]:
    from exajax.report.prometheus import Prometheus
    from exajax.report.tensorboard import TensorBoard
    from exajax.report.terminal import Console

    port = args.metrics_port + process if args.metrics_port else 0
    served = Prometheus(port, process, recipe.steps, path / "prometheus")
    if process:
        return [served]
    if done:
        left = f"{recipe.steps - done} steps to go" if done < recipe.steps else "nothing is left"
        left += "; --init is not read" if args.init else ""
        print(f"  goes on from the checkpoint of step {done}: {left}", file=out, flush=True)
    print(f"  Prometheus metrics of host 0: http://127.0.0.1:{served.port}/metrics", file=out)
    board = TensorBoard(path / "tensorboard" / "train", done)
    if live:
        live.sinks = [served, board]
    return [
        *([live] if live else []),
        served,
        JsonLines(
            path / "metrics.jsonl",
            done,
            {"program": recipe.digest, "schedule_steps": recipe.horizon},
        ),
        board,
        Console(out, recipe.steps),
    ]


def summarize(path: Path, recipe: Recipe) -> dict[str, Any]:
    """Returns the history of a run folder in the form that `exajax train --json` promises."""
    records = history.read(path / "metrics.jsonl")
    trained = [record for record in records if "loss" in record]
    validated = [r for r in records if "validation_loss" in r]
    last = validated[-1] if validated else {}
    # Losses are of the whole history, times of this recipe alone: others were of another mesh.
    timed = [r for r in trained if "step_time_s" in r and r.get("program") == recipe.digest]
    times = percentiles(record["step_time_s"] for record in timed)
    mfus = percentiles(record["mfu"] for record in timed if "mfu" in record)
    typical = times["p50"]
    waited_s = sum(record.get("data_wait_s", 0.0) for record in timed)
    return {
        "kind": "measured",
        "step": trained[-1]["step"] if trained else 0,
        "loss": trained[-1]["loss"] if trained else None,
        "losses": [record["loss"] for record in trained],
        "learning_rate": trained[-1].get("learning_rate") if trained else None,
        "schedule_steps": recipe.horizon,
        "validation_loss": last.get("validation_loss"),
        "validation_accuracy": last.get("validation_accuracy"),
        "step_time_s": times,
        "tokens_per_s": recipe.tokens / typical if typical else None,
        "mfu": mfus["p50"],
        "data_wait": waited_s / sum(r["step_time_s"] for r in timed) if timed else None,
    }


def describe(result: dict[str, Any]) -> str:
    """Returns the result of a run in words."""
    times = result["step_time_s"]
    speed = "no step was timed"
    if times["p50"]:
        speed = (
            f"p50 {units.show(times['p50'], 's')}, p95 {units.show(times['p95'], 's')} a step, "
            f"{result['tokens_per_s']:,.0f} tokens/s, {result['data_wait']:.2%} waiting for data"
        )
    accuracy = result["validation_accuracy"]
    named = "" if accuracy is None else f", {accuracy:.1%} of the held-out images named right"
    state = "interrupted" if result["interrupted"] else "done"
    again = ", give the same command to go on" if result["interrupted"] else ""
    side = "below" if result["below_unigram_entropy"] else "not below"
    loss = (
        "nothing was evaluated yet"
        if result["validation_loss"] is None
        else f"validation loss {result['validation_loss']:.3f} nats, {side} the held-out data's "
        f"unigram entropy of {result['unigram_entropy']:.3f}{named}"
    )
    return (
        f"{state} at step {result['step']}{again}\n"
        f"measured: {speed}\n"
        f"measured: {loss}\n"
        f"measured: {goodput.Goodput.from_json(result['goodput']).describe()}"
    )
