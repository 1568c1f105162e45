"""What a run has come to, as `exajax train --json` prints it."""

import dataclasses
from pathlib import Path
from typing import Any

from exajax.job import goodput, runtime
from exajax.job.provenance import machine, provenance
from exajax.recipe.recipe import Recipe
from exajax.spmd import compiler_options
from exajax.train.data.image_batches import ImageBatches
from exajax.train.data.text_batches import TextBatches
from exajax.train.loop import Fit
from exajax.train.process import TrainingProcess
from exajax.train.sinks import history
from exajax.train.sinks.records import percentiles


def result(
    process: TrainingProcess, recipe: Recipe, data: TextBatches | ImageBatches, fitted: Fit
) -> dict[str, Any]:
    """Returns the whole result of a job, on its first process.

    Args:
        process: that trained.
        recipe: what it trained, its ZeRO level chosen.
        data: what it trained on.
        fitted: how it ended.
    """
    path, devices = process.options.run_dir, runtime.job_devices()
    entropy, loss = data.corpus.unigram_entropy, fitted.validation_loss
    return summarize(path, recipe) | {
        "resumed_from": fitted.resumed_from,
        "interrupted": fitted.interrupted,
        "run_dir": str(path),
        "goodput": goodput.goodput_of_run(path).to_json(),
        "compilation": dataclasses.asdict(fitted.compilation),
        "unigram_entropy": entropy,
        "below_unigram_entropy": loss is not None and loss < entropy,
        "data": data.corpus.to_json(),
        "devices": {
            "count": len(devices),
            "processes": process.placement.processes,
            "kind": devices[0].device_kind,
        },
        "provenance": provenance(recipe, None, compiler_options.left_out())
        | {"kind": "measured", "machine": machine(), "launcher": process.placement.why},
    }


def summarize(path: Path, recipe: Recipe) -> dict[str, Any]:
    """Returns what the history in a run folder says: steps, losses and times."""
    records = history.read(path / "metrics.jsonl")
    trained = [record for record in records if "loss" in record]
    validated = [record for record in records if "validation_loss" in record]
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
