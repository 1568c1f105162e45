"""Figures of how far predicted steps are from published and measured ones."""

import functools
import statistics
from typing import Any

from tables import data, link, mean, percent, table, worst

from exajax import units
from exajax.machine import software, software_of_rows
from exajax.validate import memory, step_times
from exajax.validate import tables as tables_of_rows


def _published(calibrated: bool = False) -> list[dict[str, Any]]:
    rows = data("published_jax.json")["rows"]
    return [r for r in rows if r["error"] is not None and r["used_for_calibration"] == calibrated]


def trust() -> str:
    """How far off predictions are, in five lines."""
    cloud = [r for r in _published() if "DGXC" in r["source"]]
    older = [r["error"] for r in _published() if "DGXC" not in r["source"]]
    errors = {
        name: [r["error"] for r in cloud if name in r["source"]] for name in ("MaxText", "Pax")
    }
    fitted = _published(calibrated=True)
    shipped, others = _sources()
    low, high = min(s["mape"] for s in others), max(s["mape"] for s in others)
    cpu = [r["error"] for r in data("cpu_recipes.json")["results"]]
    return "\n".join(
        (
            f"- **JAX on 64 to 512 H100** (NVIDIA's DGX Cloud benchmarks, *published*): step times of "
            f"MaxText are off by {percent(mean(errors['MaxText']))} on average "
            f"({len(errors['MaxText'])} rows, {percent(worst(errors['MaxText']), 0)} at most), of "
            f"Pax, whose software profile is fitted on {len(fitted)} other rows, by "
            f"{percent(mean(errors['Pax']))} ({len(errors['Pax'])} rows).",
            f"- **Older JAX runs** on A100 and H100: {percent(statistics.fmean(map(abs, older)), 0)} "
            f"on average and {percent(worst(older), 0)} at most ({len(older)} rows).",
            f"- **The formulas that plan**, on rows that they were not fitted on: "
            f"{percent(min(s['mape'] for s in shipped), 0)} to "
            f"{percent(max(s['mape'] for s in shipped), 0)} by source in the tables that ship, "
            f"{percent(low, 0)} to {percent(high, 0)} in others.",
            f"- **On a CPU**, {len(cpu)} small recipes *measured* here: "
            f"{percent(statistics.median(map(abs, cpu)), 0)} in the median, "
            f"{percent(worst(cpu), 0)} at most.",
            "- **Not validated**: chips of AMD, Intel and Google, priced by their own peaks and links on"
            " a program compiled for an A100. Predictions for them say so. Nothing has been measured on"
            " a GPU by us yet.",
        )
    )


def published_jax() -> str:
    """Compiled predictions against published JAX steps, by source and precision."""
    groups: dict[tuple[str, ...], list[float]] = {}
    for row in _published():
        key = (row["source"], row["profile"], row["software"].split()[0])
        groups.setdefault(key, []).append(row["error"])
    rows = [
        (
            *key,
            len(errors),
            percent(mean(errors)),
            f"{100 * statistics.fmean(errors):+.1f}%",
            percent(worst(errors)),
        )
        for key, errors in sorted(groups.items())
    ]
    unknown = [r for r in data("published_jax.json")["rows"] if r["reason"]]
    reasons = ", ".join(sorted({row["reason"] for row in unknown}))
    return table(
        ("source", "software profile", "precision", "rows", "mean error", "bias", "largest"),
        rows,
        f"Step times *simulated* by the compiled engine against *published* ones, without the "
        f"{len(_published(calibrated=True))} rows that a profile was fitted on. {len(unknown)} more have"
        f" no prediction ({reasons}). Every row: {link('published_jax.json')}.",
    )


@functools.cache
def _shipped() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the errors in time and in memory on the tables that ship, by `exajax validate`."""
    files = sorted(software_of_rows.TABLES.glob("*.csv"))
    rows = [row for path in files for row in tables_of_rows.read_table(path)]
    checked = [one for row in rows if (one := memory.check(row))]
    return step_times.summary(map(step_times.check, rows)), memory.summary(checked)


def _sources() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the errors of sources that ship, as of today, and of others, as they were measured."""
    shipped = [one for one in _shipped()[0] if one["mape"] is not None]
    here = {one["source"] for one in _shipped()[0]}
    kept = data("fit_software.json")["sources"]
    return shipped, [s for s in kept if s["mape"] is not None and s["source"] not in here]


def sources() -> str:
    """Analytic predictions against published steps, by source."""
    rows = [
        (
            one["source"],
            ships,
            one["expressed"] - one["calibrated"],
            *(percent(one[key]) for key in ("median_error", "mape", "null_mape")),
        )
        for ships, some in zip(("yes", "no"), _sources(), strict=True)
        for one in sorted(some, key=lambda one: one["mape"])
    ]
    return table(
        ("source", "ships", "rows", "median error", "mean error", "null model"),
        rows,
        "Step times *simulated* by the analytic engine against *published* ones, on the rows that "
        "nothing was fitted on; the null model is one efficiency for everything. Those that ship are "
        f"computed anew for this page, the others are from {link('fit_software.json')}, with the sources "
        "of which no row can be expressed.",
    )


def memory_of_rows() -> str:
    """Analytic predictions against published figures of memory."""
    rows = [
        (
            one["source"],
            one["kind"],
            one["expressed"],
            *(percent(one[key]) for key in ("median_error", "bias", "largest_error")),
        )
        for one in _shipped()[1]
    ]
    return table(
        ("source", "memory of a device", "rows", "median error", "bias", "largest"),
        rows,
        "*Simulated* by the analytic engine against *published* figures of the tables that ship. The "
        "form of the working memory of Megatron-LM was chosen by the peaks on B200.",
    )


def profiles() -> str:
    """What was fitted of each software profile, and on how many rows."""
    seconds = ("host_s", "host_collective_s", "step_s")
    rows = []
    for name in software.names():
        one = software.load(name, "profile")
        factors = [f"{getattr(one, key):.3g}" for key in ("matmul", "memory", "shards")]
        times = [units.show(getattr(one, key), "s") if getattr(one, key) else "" for key in seconds]
        rows.append((f"`{name}`", one.title, len(one.fitted_on), *factors, *times))
    return table(
        (
            "profile",
            "software",
            "rows fitted on",
            "products",
            "memory",
            "shards",
            "host: kernel",
            "collective",
            "step",
        ),
        rows,
        "Factors on the time of matrix products, of operations that wait for memory, and of gathering "
        "parameters; what the host adds to a kernel, a collective and a step. Fitted to the *published*"
        " steps that each file in `meshes/software/` names.",
    )


def cpu_recipes() -> str:
    """Small recipes on CPU devices, measured and simulated."""
    found = data("cpu_recipes.json")
    rows = []
    for one in found["results"]:
        case = one["case"]
        rows.append(
            (
                case["model"],
                f"`{case['mesh']}`",
                case["hosts"],
                units.show(statistics.median(one["measured_s"]), "s"),
                units.show(one["simulated_s"], "s"),
                f"{100 * one['error']:+.0f}%",
                percent(one["spread"], 0),
            )
        )
    errors = [one["error"] for one in found["results"]]
    return table(
        ("model", "mesh", "processes", "measured", "simulated", "error", "between two runs"),
        rows,
        f"Median of the absolute error {percent(statistics.median(map(abs, errors)))}, largest "
        f"{percent(worst(errors))}; {found['machine']['processor']}, {link('cpu_recipes.json')}.",
    )
