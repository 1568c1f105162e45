"""The three jobs that the project was founded on: the best plan for each on five machines.

    python benchmarks/reference_jobs.py [--verify]

The founding note gives GPT-3 on 256 GPUs ~50,000, LLaMA-2 70B on 512 ~120,000 and its target on
1,024 ~250,000, and calls them samples a second. What that would take of the peak is computed beside
what it takes if tokens are meant. Writes benchmarks/data/reference_jobs.json, all of it simulated
by the analytic engine, and by the compiled one as well with --verify.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from exajax.cli import simulate
from exajax.cli.plan_results import train_command
from exajax.job.provenance import versions
from exajax.machine.cluster import Cluster, load_cluster
from exajax.models.presets import lookup
from exajax.recipe.recipe import Recipe
from exajax.simulate import plan
from exajax.simulate.formulas.prediction import predict

OUT = Path(__file__).parent / "data" / "reference_jobs.json"


class Job(NamedTuple):
    """A job of the founding note.

    Attributes:
        model: preset.
        devices: GPUs; where a node has 12, the next number of whole nodes without other factors
            than 2 and 3, which is what a batch can be divided by.
        global_batch: sequences of a step, ours: of 3 to 5 million tokens, as these models had.
        said: the note's figure, a second.
    """

    model: str
    devices: int
    global_batch: int
    said: float


JOBS = (
    Job("gpt3-175b", 256, 1536, 50e3),
    Job("llama2-70b", 512, 1152, 120e3),
    Job("alphaexa-250b", 1024, 1152, 250e3),
)
TRIES = 4
"""Plans that are compiled at most until one fits as compiled too."""

MACHINES = ("dgx-a100", "dgx-h100", "polaris", "aurora", "frontier")


def main() -> None:
    """Plans every job on every machine, and prints and writes the best plans."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--verify", action="store_true", help="compile each best plan too")
    verify = parser.parse_args().verify
    rows = []
    for job in JOBS:
        for name in MACHINES:
            rows.append(row := planned(job, load_cluster(name), verify))
            print(line(row), flush=True)
    result = {"kind": "simulated", "engine": "analytic", "versions": versions(), "rows": rows}
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {OUT}")


def devices_of(job: Job, cluster: Cluster) -> int:
    """Returns the devices of a job on a machine."""
    return job.devices * 9 // 8 if cluster.devices_per_node % 3 == 0 else job.devices


def planned(job: Job, cluster: Cluster, verify: bool) -> dict[str, Any]:
    """Returns the best plan of a job on a machine, and what the note's figure would take there."""
    model, devices = lookup(job.model), devices_of(job, cluster)
    found = plan.search(
        plan.PlannedStep(model, job.global_batch, model.seq, "bf16"), cluster, devices
    )
    fitting = found.fits.nonzero()[0]
    peak = devices * cluster.chip.peak("bf16")
    sample_flops = model.step_flops(1, model.seq)
    row: dict[str, Any] = {
        "model": job.model,
        "cluster": cluster.name,
        "devices": devices,
        "nodes": devices // cluster.devices_per_node,
        "global_batch": job.global_batch,
        "said": job.said,
        "of_peak_if_samples": job.said * sample_flops / peak,
        "of_peak_if_tokens": job.said * sample_flops / model.seq / peak,
        "evaluated": len(found.layouts),
        "fitting": len(fitting),
        "plan": None,
    }
    if not len(fitting):
        return row
    best = [found.recipe(int(row)) for row in found.ranked(fitting)[: TRIES if verify else 1]]
    recipe = best[0]
    if verify:
        for recipe in best:
            row["compiled"] = compiled(recipe, cluster)
            if row["compiled"]["fits"]:
                break
    row["plan"] = predict(recipe, cluster).to_json() | {
        "remat": recipe.remat,
        "micro_batch": recipe.micro_batch,
        "interleave": recipe.interleave,
        "command": train_command(recipe, job.model),
    }
    return row


def compiled(recipe: Recipe, cluster: Cluster) -> dict[str, Any]:
    """Returns what the compiled engine says of a plan."""
    prediction = simulate.predict_lowest_level(recipe, cluster)[1]
    return {
        "step_time_s": prediction.step_time_s,
        "memory_bytes": prediction.compiled.memory.total,
        "fits": prediction.fits,
        "proxy": cluster.chip.proxy,
    }


def line(row: dict[str, Any]) -> str:
    """Returns a row in words."""
    head = f"{row['model']} on {row['devices']} devices of {row['cluster']} ({row['nodes']} nodes)"
    takes = (
        f"{row['said']:,.0f}/s is {row['of_peak_if_tokens']:.0%} of the peak in tokens, "
        f"{row['of_peak_if_samples']:,.0f} times the peak in samples"
    )
    best = row["plan"]
    if best is None:
        return f"{head}: nothing of {row['evaluated']:,} layouts fits; {takes}"
    told = f"{best['tokens_per_s']:,.0f} tokens/s ({best['samples_per_s']:.1f} samples/s), "
    told += f"MFU {best['mfu']:.1%}, {best['mesh']} remat {best['remat']}"
    if "compiled" in row:
        gap = best["step_time_s"] / row["compiled"]["step_time_s"] - 1
        told += f", {gap:+.1%} against the compiled engine"
    return f"{head}: {told}; {takes}"


if __name__ == "__main__":
    main()
