"""Step times that others measured with JAX on A100 and H100, against simulated ones.

    python benchmarks/published_jax.py [--tables ../shared/published] [--rows TEXT ...]

Every row that can be expressed is compiled ahead of time for the machine it ran on and priced. A
software profile's factors are fitted on the rows that `meshes/software/*.toml` names, and on no
other; errors are those of the rows that no factor was fitted on. `--fit pax-2024` fits a profile's
factors again and prints them.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # a checkout needs no installation
os.environ["JAX_PLATFORMS"] = "cpu"  # whatever is attached, it is compiled for described devices
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


from scipy.optimize import least_squares

from exajax.job.provenance import versions
from exajax.machine import software
from exajax.machine.cluster import load_cluster
from exajax.machine.software import SoftwareProfile
from exajax.simulate import variability
from exajax.simulate.prediction import Prediction
from exajax.simulate.timeline import lay_out
from exajax.validate import tables as published
from exajax.validate.tables import PublishedRow

TABLES = ("dgxc_jax_h100.csv", "jaxtoolbox_pax_maxtext.csv")
OUT = Path(__file__).parent / "data" / "published_jax.json"

AMENDED = {
    # NVIDIA/dgxc-benchmarking, paxml/paxml_mod_configs.py: SAVE_QKV_OUT_PROJ.
    "dgxc-pax-175b-fp8-128": {"recompute_policy": "save_dots_except_mlp"},
    "dgxc-pax-175b-fp8-512": {"recompute_policy": "save_dots_except_mlp"},
}
"""What a table leaves out and its source's own files say."""


LIMITS = ([1.0, 1.0, 0.0], [2.0, 2.0, 0.2])
"""What the factors of a software profile (`matmul`, `memory`, `step_s`) may be."""


def software_of(row: PublishedRow) -> SoftwareProfile:
    """Returns the software profile of a row, by its source: Pax has one of its own."""
    return software.load("pax-2024", "software") if "Pax" in row.source else software.AS_MEASURED


def predict(row: PublishedRow) -> Prediction:
    """Compiles and prices a row's recipe on its machine, with its software profile."""
    import exajax
    from exajax.recipe import workloads

    assert row.recipe is not None
    machine = load_cluster(row.cluster)
    machine = dataclasses.replace(machine, software=software_of(row))
    recipe = row.recipe
    workload = workloads.workload(recipe, machine.chip.platform)
    return exajax.predict(workload, recipe.mesh, machine, **recipe.step_options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tables", type=Path, default=Path("../shared/published"))
    parser.add_argument("--rows", nargs="*", default=[""], help="rows whose id has one of these")
    parser.add_argument(
        "--fit", metavar="PROFILE", help="fit the factors of a software profile, and end"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    if not args.tables.is_dir():
        sys.exit(f"--tables: there is no folder {args.tables}; give the folder of published tables")
    tables = [published.read_table(args.tables / table, AMENDED) for table in TABLES]
    rows = [row for table in tables for row in table]
    if args.fit:
        print(
            fit([row for row in rows if row.row_id in software.load(args.fit, "--fit").fitted_on])
        )
        return
    results = []
    for row in rows:
        if any(part in row.row_id for part in args.rows):
            results.append(compare(row))
            print(line(results[-1]), flush=True)
    summary = summarise(results)
    print(json.dumps(summary, indent=2))
    kept = {"kind": "simulated against published", "versions": versions(), "summary": summary}
    args.out.write_text(json.dumps(kept | {"rows": results}, indent=1) + "\n")


def compare(row: PublishedRow) -> dict[str, Any]:
    """Returns a row's measured and predicted seconds, or why there is no prediction."""
    result: dict[str, Any] = {
        "row_id": row.row_id,
        "source": row.source,
        "software": row.precision,
        "measured_s": row.measured_s,
        "predicted_s": None,
        "error": None,
        "used_for_calibration": False,
        "reason": row.reason,
    }
    if row.reason:
        return result
    prediction = predict(row)
    assert row.measured_s is not None
    machine = prediction.cluster
    spent = prediction.breakdown
    return result | {
        "predicted_s": prediction.step_time_s,
        "error": prediction.step_time_s / row.measured_s - 1,
        "profile": machine.software.name,
        "used_for_calibration": row.row_id in machine.software.fitted_on,
        "memory_bytes": prediction.compiled.memory.total,
        "breakdown_s": dataclasses.asdict(spent),
    }


def fit(rows: Sequence[PublishedRow]) -> SoftwareProfile:
    """Returns the factors with the least squares of the relative errors on some rows."""
    predictions = [predict(row) for row in rows]

    def with_factors(factors: Sequence[float]) -> SoftwareProfile:
        matmul, memory, step_s = (float(factor) for factor in factors)
        fitted_on = tuple(row.row_id for row in rows)
        return SoftwareProfile("fitted", "", matmul, memory, step_s, fitted_on=fitted_on)

    def errors(factors: Sequence[float]) -> list[float]:
        return [
            repriced(prediction, with_factors(factors)) / (row.measured_s or 1.0) - 1
            for row, prediction in zip(rows, predictions, strict=True)
        ]

    return with_factors(least_squares(errors, [1.1, 1.1, 0.02], bounds=LIMITS).x)


def repriced(prediction: Prediction, software: SoftwareProfile) -> float:
    """Returns the step time of a compiled program with another software profile."""
    machine = dataclasses.replace(prediction.cluster, software=software)
    compiled = prediction.compiled
    spent = lay_out(compiled.program, machine, compiled.bubble)
    return float(variability.of(spent, compiled.devices, machine).p50_s)


def line(result: dict[str, Any]) -> str:
    """Returns a row of the table for people."""
    if result["predicted_s"] is None:
        return f"{result['row_id']:<40} not expressed: {result['reason']}"
    fitted = " (fitted on)" if result["used_for_calibration"] else ""
    return (
        f"{result['row_id']:<40} measured {result['measured_s']:7.3f} s, simulated "
        f"{result['predicted_s']:7.3f} s, {result['error']:+.1%}{fitted}"
    )


def summarise(results: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns errors by software profile and precision, of rows that were not fitted on."""
    found: dict[str, list[float]] = {}
    for result in results:
        if result["error"] is not None and not result["used_for_calibration"]:
            precision = "fp8" if "fp8" in result["software"] else "bf16"
            key = f"{result['source'].split(':')[0]}, {result['profile']}, {precision}"
            found.setdefault(key, []).append(result["error"])
    return {
        key: {
            "rows": len(errors),
            "mape": statistics.fmean(map(abs, errors)),
            "bias": statistics.fmean(errors),
        }
        for key, errors in found.items()
    }


if __name__ == "__main__":
    main()
