"""What a run has come to, from the history in its folder."""

from pathlib import Path
from typing import Any

from exajax.recipe.recipe import Recipe
from exajax.train.sinks import history
from exajax.train.sinks.records import percentiles


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
