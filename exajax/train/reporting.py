"""What a training process reports while it trains: its run folder, its metrics, its progress."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from exajax.errors import InputError
from exajax.files.writing import new_path
from exajax.job import environment
from exajax.job.compilation_cache import Compilation
from exajax.job.events import read_events
from exajax.job.run_folder import RunFolder
from exajax.recipe.optimizer import describe_new_horizon
from exajax.recipe.recipe import Recipe
from exajax.train import inputs
from exajax.train.data.image_batches import ImageBatches
from exajax.train.data.skipping import Skipping
from exajax.train.data.text_batches import TextBatches
from exajax.train.data.tokenizer import KEPT
from exajax.train.hooks import Hooks
from exajax.train.process import TrainingProcess
from exajax.train.sinks import history
from exajax.train.sinks.console import Console
from exajax.train.sinks.goodput import LiveGoodput
from exajax.train.sinks.prometheus import Prometheus
from exajax.train.sinks.records import JsonLines, Logger, SampleLog
from exajax.train.sinks.tensorboard import TensorBoard


class Reporting(Hooks):
    """Takes the run folder once the step fits, and opens what metrics go to.

    Args:
        process: that trains.
        recipe: what it trains, its ZeRO level chosen.
        data: what the batches are of.
        batches: of the run, by the step's number.
        cache: what the compilation cache is, in words.
    """

    def __init__(
        self,
        process: TrainingProcess,
        recipe: Recipe,
        data: TextBatches | ImageBatches,
        batches: Skipping,
        cache: str,
    ) -> None:
        self._process, self._recipe, self._path = process, recipe, process.options.run_dir
        self._data, self._batches, self._cache = data, batches, cache
        self._compiled = ""
        self._folder: RunFolder | None = None
        attempt = environment.ATTEMPT.get()
        goodput = process.first and attempt is not None
        self._goodput = LiveGoodput(self._path, *attempt) if goodput and attempt else None

    def progress(self, phase: str, step: int) -> None:
        """Counts the time of the phase before."""
        if self._goodput:
            self._goodput.progress(phase, step)

    def compiled(self, compilation: Compilation) -> None:
        """Takes the run folder, once the step is known to fit the devices."""
        self._compiled = f"{compilation} ({self._cache})"
        if self._process.first and self._process.owns_folder:
            job = inputs.job_of(self._process.recipe, self._data)
            self._folder = RunFolder.open(self._path, job, lock=False)
            self._folder.write(data=self._data.corpus.to_json())

    def loggers(self, resumed_from: int) -> Sequence[Logger]:
        """Announces the training and returns where its metrics go."""
        process, options, steps = self._process, self._process.options, self._recipe.steps
        path, number = self._path, process.placement.process
        if process.first:
            self._announce(resumed_from)
        port = options.metrics_port + number if options.metrics_port else 0
        prometheus = Prometheus(port, number, steps, path / "prometheus")
        if number:
            return [prometheus]
        if resumed_from:
            left = f"{steps - resumed_from} steps to go"
            left = left if resumed_from < steps else "nothing is left"
            left += "; the given weights are not read" if options.init else ""
            process.say(f"  goes on from the checkpoint of step {resumed_from}: {left}")
        process.say(f"  Prometheus metrics of host 0: http://127.0.0.1:{prometheus.port}/metrics")
        board = TensorBoard(path / "tensorboard" / "train", resumed_from)
        if self._goodput:
            self._goodput.sinks = [prometheus, board]
        facts = {"program": self._recipe.digest, "schedule_steps": self._recipe.horizon}
        self._keep_tokenizer()
        return [
            *([self._goodput] if self._goodput else []),
            prometheus,
            JsonLines(path / "metrics.jsonl", resumed_from, facts),
            board,
            Console(process.out, steps),
            SampleLog(
                path / "samples.jsonl",
                resumed_from,
                lambda step: self._data.ids(self._batches.number(step)),
            ),
        ]

    def write(self, **results: Any) -> None:
        """Writes results into `run.json`, if it is this process's to write."""
        if self._folder:
            self._folder.write(**results)

    def _announce(self, resumed_from: int) -> None:
        process, recipe = self._process, self._recipe
        if not resumed_from:
            self._check_nothing_is_gone()
        for line in [*changed_schedule(self._path, recipe, resumed_from), self._compiled]:
            process.say(line)
        devices = jax.local_devices()
        process.say(
            f"training {recipe.model.summary} on {process.placement.processes} processes x "
            f"{len(devices)} {devices[0].device_kind} devices, mesh "
            f"{recipe.mesh}, {recipe.tokens:,} tokens a step ({process.placement.why}); run folder "
            f"{self._path}"
        )
        process.say("  data " + self._data.corpus.describe().replace("\n", "\n  "))

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
        data = self._data
        content = data.corpus.tokenizer_json if isinstance(data, TextBatches) else None
        if content is None:
            return
        part = new_path(self._path / KEPT)
        part.write_bytes(content)
        part.replace(self._path / KEPT)


def changed_schedule(run_dir: Path, recipe: Recipe, done: int) -> list[str]:
    """Returns a line of text if the steps before were made on another schedule, else nothing."""
    records = history.read(run_dir / "metrics.jsonl")
    horizons = [
        record["schedule_steps"]
        for record in records
        if record["step"] <= done and "schedule_steps" in record
    ]
    line = describe_new_horizon(recipe, horizons[-1], done) if horizons else None
    return [line] if line else []
