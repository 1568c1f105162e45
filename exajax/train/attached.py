"""Trains on the devices that are attached: the step, its sinks, the loop, the result."""

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax

from exajax.errors import InputError
from exajax.files.writing import new_path
from exajax.job import compilation_cache, environment, goodput, runtime
from exajax.job.compilation_cache import Compilation
from exajax.job.events import read_events
from exajax.job.provenance import machine, provenance
from exajax.job.run_folder import RunFolder
from exajax.machine.chip_file import chip_of_device
from exajax.machine.cluster import load_cluster
from exajax.models import fp8
from exajax.recipe import workloads
from exajax.recipe.optimizer import stretched
from exajax.recipe.recipe import Recipe
from exajax.spmd import compiler_options
from exajax.spmd.step import StepOptions, TrainStep
from exajax.train import device_memory, inputs, summary
from exajax.train.checkpoint import published_weights
from exajax.train.data.image_batches import ImageBatches
from exajax.train.data.sampling import TextBatches
from exajax.train.data.skipping import Skipping
from exajax.train.data.tokenizer import KEPT
from exajax.train.loop import Fit, Profile, fit
from exajax.train.process import TrainingProcess
from exajax.train.sinks import history
from exajax.train.sinks.console import Console
from exajax.train.sinks.goodput import LiveGoodput
from exajax.train.sinks.prometheus import Prometheus
from exajax.train.sinks.records import JsonLines, Logger, SampleLog
from exajax.train.sinks.tensorboard import TensorBoard


def train(process: TrainingProcess, batches: TextBatches | ImageBatches) -> dict[str, Any]:
    """Trains as one process of a job that has joined; the first one returns the whole result."""
    return Attached(process, batches).run()


class Attached:
    """A training process whose devices are there.

    Args:
        process: what it was started with.
        batches: what it trains on.
    """

    def __init__(self, process: TrainingProcess, batches: TextBatches | ImageBatches) -> None:
        self._process, self._batches = process, batches
        self._options, self._path = process.options, process.options.run_dir
        self._devices = runtime.job_devices()
        self._cache = compilation_cache.enable(overwrite=environment.COMPILE_ANEW.get() is not None)
        if process.recipe.precision == "fp8":
            fp8.check(self._devices[0])
        self._mesh = process.recipe.mesh.build(self._devices)
        if process.first:  # it may take minutes, to say in the end that it does not fit
            process.say(
                f"compiling the step of {process.recipe.model.described}, "
                f"{process.recipe.tokens:,} tokens on mesh {process.recipe.mesh}"
            )
        self._recipe, self._step = device_memory.first_that_fits(
            process.recipe.levels,
            self._step_of,
            device_memory.capacity_bytes(jax.local_devices()[0]),
        )
        self._source = Skipping(process.hooks.batches(batches))
        self._compiled = ""
        self._folder: RunFolder | None = None
        live = process.first and process.events is not None
        self._live = LiveGoodput(self._path, process.events) if live and process.events else None

    def run(self) -> dict[str, Any]:
        """Trains; the first process returns the whole result."""
        result = self._fit()
        if not self._process.first:
            return {"interrupted": result.interrupted}
        found = self._result(result)
        if self._folder:
            when = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            self._folder.write(train=found | {"losses": None, "when": when})
        return found

    def _fit(self) -> Fit:
        process, options, recipe = self._process, self._options, self._recipe
        chip = load_cluster(options.cluster).chip if options.cluster else None
        chip = chip or chip_of_device(self._devices[0].device_kind)
        return fit(
            self._step,
            self._source,
            steps=recipe.steps,
            seed=recipe.seed,
            held_out=lambda: process.hooks.held_out(
                self._batches.held_out(options.evaluation_batches)
            ),
            evaluate_every=options.evaluate_every,
            before_writing=self._take_folder,
            checkpoints=self._path / "checkpoints",
            save_every=options.save_every,
            keep=options.keep_checkpoints or None,
            initial=self._published if options.init else None,
            about={
                "recipe": recipe.to_json(),
                "data": self._batches.identity,
                "init": options.init and str(options.init),
            },
            loggers=self._loggers,
            peak_flops=chip.peak(recipe.precision) if chip else None,
            policy=options.policy,
            host=process.host,
            profile=Profile(self._path / "profile" if process.first else None)
            if options.profile
            else None,
            progress=self._progress,
            events=process.events,
            before_commit=process.hooks.before_commit,
            local=options.local_checkpoints,
            local_every=options.local_every,
            callbacks=process.hooks.callbacks,
            measures={
                name: TrainStep.of(
                    dataclasses.replace(self._step.workload, loss=measure),
                    self._mesh,
                    **recipe.layout,
                ).evaluate
                for name, measure in workloads.measures(recipe, self._platform).items()
            },
        )

    @property
    def _platform(self) -> str:
        return str(self._devices[0].platform)

    def _step_of(self, recipe: Recipe) -> TrainStep:
        layout: StepOptions = {**recipe.layout, "skip_bad": self._options.on_nan == "skip"}
        workload = self._process.hooks.workload(workloads.workload(recipe, self._platform))
        return TrainStep.of(workload, self._mesh, **layout)

    def _published(self) -> Any:
        assert self._options.init
        return published_weights.start(self._step, self._options.init, self._recipe.model)

    def _progress(self, phase: str, step: int) -> None:
        self._process.hooks.progress(phase, step)
        if self._live:
            self._live.progress(phase, step)

    def _take_folder(self, compilation: Compilation) -> None:
        """Takes the run folder, once the step is known to fit the devices."""
        self._process.hooks.compiled(compilation)
        self._compiled = f"{compilation} ({self._cache})"
        if self._process.first and self._process.owns_folder:
            job = inputs.job_of(self._process.recipe, self._batches)
            self._folder = RunFolder.open(self._path, job, lock=False)
            self._folder.write(data=self._batches.corpus.to_json())

    def _loggers(self, done: int) -> Sequence[Logger]:
        """Announces the training and returns where its metrics go."""
        process, options, recipe = self._process, self._options, self._recipe
        path, number = self._path, process.placement.process
        if process.first:
            self._announce(done)
        port = options.metrics_port + number if options.metrics_port else 0
        served = Prometheus(port, number, recipe.steps, path / "prometheus")
        if number:
            return [served]
        if done:
            left = (
                f"{recipe.steps - done} steps to go" if done < recipe.steps else "nothing is left"
            )
            left += "; the given weights are not read" if options.init else ""
            process.say(f"  goes on from the checkpoint of step {done}: {left}")
        process.say(f"  Prometheus metrics of host 0: http://127.0.0.1:{served.port}/metrics")
        board = TensorBoard(path / "tensorboard" / "train", done)
        if self._live:
            self._live.sinks = [served, board]
        facts = {"program": recipe.digest, "schedule_steps": recipe.horizon}
        self._keep_tokenizer()
        numbers = self._source.number
        return [
            *([self._live] if self._live else []),
            served,
            JsonLines(path / "metrics.jsonl", done, facts),
            board,
            Console(process.out, recipe.steps),
            SampleLog(path / "samples.jsonl", done, lambda n: self._batches.ids(numbers(n))),
        ]

    def _announce(self, done: int) -> None:
        process, recipe = self._process, self._recipe
        if not done:
            self._check_nothing_is_gone()
        for line in [*changed_schedule(self._path, recipe, done), self._compiled]:
            process.say(line)
        process.say(
            f"training {recipe.model.described} on {process.placement.processes} processes x "
            f"{len(jax.local_devices())} {self._devices[0].device_kind} devices, mesh "
            f"{recipe.mesh}, {recipe.tokens:,} tokens a step ({process.placement.why}); run folder "
            f"{self._path}"
        )
        process.say("  data " + self._batches.corpus.describe().replace("\n", "\n  "))

    def _check_nothing_is_gone(self) -> None:
        """Raises an `InputError` if a run that begins had saved checkpoints: is a disk missing?"""
        saved = [
            event["step"]
            for event in read_events(self._path)
            if event["event"] == "checkpoint-saved" and event.get("tier") == "shared"
        ]
        if saved:
            raise InputError(
                "run_dir",
                f"{self._path} has had a checkpoint of step {saved[-1]}, and has none any more",
                "put its checkpoints back, or give another folder to begin anew",
            )

    def _keep_tokenizer(self) -> None:
        """Copies the tokenizer of a run's text into its folder: an export takes it along."""
        batches = self._batches
        content = batches.corpus.tokenizer_json if isinstance(batches, TextBatches) else None
        if content is None:
            return
        part = new_path(self._path / KEPT)
        part.write_bytes(content)
        part.replace(self._path / KEPT)

    def _result(self, result: Fit) -> dict[str, Any]:
        entropy = self._batches.corpus.unigram_entropy
        return summary.summarize(self._path, self._recipe) | {
            "resumed_from": result.resumed_from,
            "interrupted": result.interrupted,
            "run_dir": str(self._path),
            "goodput": goodput.goodput_of_run(self._path).to_json(),
            "compilation": dataclasses.asdict(result.compilation),
            "unigram_entropy": entropy,
            "below_unigram_entropy": (
                result.validation_loss is not None and result.validation_loss < entropy
            ),
            "data": self._batches.corpus.to_json(),
            "devices": {
                "count": len(self._devices),
                "processes": self._process.placement.processes,
                "kind": self._devices[0].device_kind,
            },
            "provenance": provenance(self._recipe, None, compiler_options.left_out())
            | {
                "kind": "measured",
                "machine": machine(),
                "launcher": self._process.placement.why,
            },
        }


def changed_schedule(run_dir: Path, recipe: Recipe, done: int) -> list[str]:
    """Returns a line of text if the steps before were made on another schedule, else nothing."""
    records = history.read(run_dir / "metrics.jsonl")
    horizons = [
        record["schedule_steps"]
        for record in records
        if record["step"] <= done and "schedule_steps" in record
    ]
    line = stretched(recipe, horizons[-1], done) if horizons else None
    return [line] if line else []
