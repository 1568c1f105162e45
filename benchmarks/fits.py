"""Does a layout fit? Both engines on layouts drawn at random whose memory is near the capacity.

    python benchmarks/fits.py --draw 40    # draws layouts, once: they are a part of the raw data
    python benchmarks/fits.py              # prices them with the formulas, and compiles new ones

Raw data: `benchmarks/data/fits.json`. What the formulas are short of there is where the margin of
the analytic engine's `fits` is from (`exajax/simulate/formulas/prediction.py`). Compiling takes
some seconds a layout, once: results of the compiled engine stay in the raw data.
"""

import argparse
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # a checkout needs no installation
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

from exajax.errors import InputError
from exajax.job.provenance import versions
from exajax.machine.cluster import load_cluster
from exajax.models.presets import lookup
from exajax.recipe.recipe import Recipe
from exajax.simulate import plan
from exajax.simulate.formulas import prediction as analytic
from exajax.simulate.prediction import predict_recipe
from exajax.spmd.mesh import MeshSpec

OUT = Path(__file__).parent / "data" / "fits.json"
SEED = 0
MODELS = ("gpt2-124m", "llama2-7b", "llama3-8b", "gpt3-1.3b", "mixtral-8x7b", "gpt3-6.7b")
CLUSTERS = ("polaris", "dgx-h100", "perlmutter")
DEVICES = (8, 16, 32, 64)
SEQUENCES = (1, 2, 4, 8, 16, 32, 64)
"""Of a step, for each device."""

LONGEST = 4096
"""Tokens of a sequence, where the model takes more."""

NEAR = (0.75, 1.15)
"""Memory by the formulas over the capacity: nearer, an error does not matter."""

PIPELINES = 0.3
"""Share of pipelines, which have most layouts."""

OPTIONS = ("global_batch", "micro_batch", "seq", "remat", "zero", "schedule", "interleave")


def draw(count: int) -> list[dict[str, Any]]:
    """Returns layouts: cluster, model, mesh and options, the models in turn."""
    chance = random.Random(SEED)
    drawn: list[dict[str, Any]] = []
    while len(drawn) < count:
        name, devices = chance.choice(CLUSTERS), chance.choice(DEVICES)
        model = lookup(MODELS[len(drawn) % len(MODELS)])
        batch = devices * chance.choice(SEQUENCES)
        cluster, work = load_cluster(name), plan.PlannedStep(model, batch, _seq(model), "bf16")
        try:
            found = plan.search(work, cluster, devices)
        except InputError:
            continue
        share = found.bytes / analytic.capacity_bytes(cluster)
        near = (share > NEAR[0]) & (share < NEAR[1])
        near &= (found.layouts.pipe > 1) == (chance.random() < PIPELINES)
        rows = near.nonzero()[0]
        if len(rows):
            if len(drawn) % 2:  # what a plan shows: the fastest of a mesh
                rows = found.ranked(rows)
            meshes = [str(found.recipe(int(row)).mesh) for row in found.ranked(rows)]
            mesh = chance.choice(meshes)
            of_mesh = [int(row) for row in chance.sample(list(rows), len(rows))]
            recipe = next(r for r in map(found.recipe, of_mesh) if str(r.mesh) == mesh)
            options = {key: getattr(recipe, key) for key in (*OPTIONS, "sequence_parallel")}
            which = {"cluster": name, "model": model.name, "mesh": str(recipe.mesh)}
            drawn.append(which | {"options": options})
    return drawn


def _seq(model: Any) -> int:
    return min(int(model.seq), LONGEST)


def recipe_of(row: dict[str, Any]) -> Recipe:
    """Returns the recipe of a layout."""
    return Recipe.of(lookup(row["model"]), MeshSpec.parse(row["mesh"]), **row["options"])


def price(row: dict[str, Any]) -> None:
    """Writes what both engines say of a layout into it, the compiled one where it has not yet."""
    recipe, cluster = recipe_of(row), load_cluster(row["cluster"])
    if "compiled" not in row:
        try:
            row["compiled"] = _said(predict_recipe(recipe, cluster).to_json())
        except (NotImplementedError, RuntimeError) as error:  # XLA's errors are RuntimeErrors
            row["compiled"] = {"refused": (str(error).splitlines() or [""])[0][:200]}
    row["analytic"] = _said(analytic.predict(recipe, cluster).to_json())
    if "refused" not in row["compiled"]:
        for what in ("step_time_s", "memory_bytes"):
            row[f"{what.split('_')[0]}_gap"] = row["analytic"][what] / row["compiled"][what] - 1


def _said(prediction: dict[str, Any]) -> dict[str, Any]:
    memory = prediction["memory_bytes"]
    return {
        "step_time_s": prediction["step_time_s"],
        "memory_bytes": memory["total"],
        "capacity": memory["capacity"],
        "fits": prediction["fits"],
        "parts": {key: value for key, value in memory.items() if key not in ("total", "capacity")},
        "breakdown_s": prediction["breakdown_s"],
    }


def line(row: dict[str, Any]) -> str:
    """Returns a row in words."""
    name = f"{row['cluster']} {row['model']} {row['mesh']} {row['options']}"
    if "refused" in row["compiled"]:
        return f"refused: {name}: {row['compiled']['refused']}"
    said, read = row["analytic"], row["compiled"]
    wrong = " WRONG" if said["fits"] and not read["fits"] else ""
    return (
        f"{said['step_time_s']:8.3f} {read['step_time_s']:8.3f} {row['step_gap']:+6.1%} "
        f"{said['memory_bytes'] / 1e9:7.1f} {read['memory_bytes'] / 1e9:7.1f} "
        f"{row['memory_gap']:+6.1%} of {read['capacity'] / 1e9:.1f} GB "
        f"{said['fits']!s:5} {read['fits']!s:5}{wrong}  {name}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--draw", type=int, metavar="N", help="draw so many layouts anew")
    args = parser.parse_args()
    rows = draw(args.draw) if args.draw else json.loads(OUT.read_text())["rows"]
    about = {"kind": "simulated", "versions": versions(), "seed": SEED, "near": NEAR}
    for row in [] if args.draw else rows:
        price(row)
        print(line(row), flush=True)
        OUT.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    OUT.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    wrong = [
        r for r in rows if r.get("analytic", {}).get("fits") and r["compiled"].get("fits") is False
    ]
    print(f"{len(wrong)} of {len(rows)} are said to fit and do not; raw data: {OUT}")


if __name__ == "__main__":
    main()
