"""Both pricing engines on the same layouts: step time and memory, side by side.

    python benchmarks/engines.py
    python benchmarks/engines.py --formulas    # what was compiled stays, and only new layouts are

The compiled engine reads the program that XLA makes of a step, the analytic one has formulas of
sizes. Compiling takes some seconds a layout, once: the programs stay in exajax's cache. Rows marked
`fitted` were looked at when the shares and bytes of the analytic engine were chosen
(`exajax/meshes/programs/xla.toml`), the others after that.
"""

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # a checkout needs no installation
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

from exajax.job.provenance import versions
from exajax.machine.cluster import Cluster, load_cluster
from exajax.models.presets import lookup
from exajax.recipe.recipe import Recipe
from exajax.simulate.formulas import prediction as analytic
from exajax.simulate.prediction import predict_recipe
from exajax.spmd.mesh import MeshSpec

AIM = 0.1
"""Most that the step times may differ by, over the compiled engine's."""

Layout = tuple[str, str, str, dict[str, Any]]

FITTED: list[Layout] = [
    ("dgx-a100", "gpt3-1.3b", "data=8", {"zero": 0, "global_batch": 64, "micro_batch": 4}),
    ("dgx-a100", "gpt2-1.5b", "data=16", {"zero": 1, "global_batch": 128, "micro_batch": 4}),
    ("dgx-a100", "gpt3-6.7b", "data=16", {"zero": 2, "global_batch": 64, "micro_batch": 2}),
    ("dgx-a100", "gpt3-13b", "8x8", {"global_batch": 64, "micro_batch": 4}),
    (
        "dgx-a100",
        "gpt3-175b",
        "pipe=8,data=4,model=8",
        {"zero": 1, "global_batch": 128, "remat": "full"},
    ),
    ("dgx-h100", "llama2-7b", "fsdp=32", {"global_batch": 64}),
    ("dgx-h100", "llama2-7b", "data=8", {"zero": 3, "global_batch": 16, "remat": "none"}),
    ("polaris", "llama2-13b", "16x4", {"global_batch": 64}),
    ("dgx-h100", "llama2-70b", "128x8", {}),
    ("dgx-h100", "llama2-70b", "16x8", {"remat": "full", "global_batch": 64}),
    ("dgx-h100", "llama2-70b", "fsdp=64,model=8", {"remat": "none", "global_batch": 64}),
    ("dgx-h100", "llama2-70b", "pipe=8,data=4,model=8", {"zero": 1, "global_batch": 128}),
    (
        "dgx-h100",
        "llama2-70b",
        "pipe=4,data=4,model=8",
        {"zero": 1, "global_batch": 64, "schedule": "interleaved", "interleave": 2},
    ),
    (
        "dgx-h100",
        "llama2-70b",
        "pipe=4,data=4,model=8",
        {"zero": 1, "global_batch": 32, "schedule": "gpipe"},
    ),
    ("perlmutter", "llama3-8b", "fsdp=32", {"global_batch": 32, "remat": "full"}),
    ("dgx-h100", "llama3-8b", "data=8,context=4", {"global_batch": 8, "seq": 8192}),
    ("dgx-b200", "llama3-70b", "fsdp=64", {"global_batch": 64}),
    (
        "dgx-h100",
        "llama3-405b",
        "pipe=9,data=4,model=8",
        {"zero": 1, "global_batch": 72, "remat": "full", "seq": 8192},
    ),
    ("dgx-h100", "mixtral-8x7b", "data=8,expert=8", {"global_batch": 64}),
    ("dgx-h100", "mixtral-8x7b", "data=4,expert=4,model=4", {"global_batch": 64}),
    ("dgx-a100", "vit-l", "data=64", {"global_batch": 4096, "zero": 0}),
    ("dgx-h100", "llama2-7b", "fsdp=8", {"global_batch": 16, "precision": "fp8"}),
    ("dgx-h100", "llama2-7b", "fsdp=32", {"global_batch": 32, "attention": "unfused"}),
    ("dgx-h100", "llama2-70b", "16x8", {"global_batch": 32, "sequence_parallel": False}),
    (
        "dgx-h100",
        "llama2-7b",
        "data=4,fsdp=8",
        {"zero": 0, "global_batch": 64, "remat": "save-qkv"},
    ),
    ("dgx-h100", "llama2-7b", "fsdp=32", {"global_batch": 128, "micro_batch": 1}),
    ("frontier", "llama2-7b", "fsdp=64", {"global_batch": 64}),
    ("aurora", "llama2-13b", "fsdp=48,model=2", {"global_batch": 48}),
    (
        "dgx-a100",
        "gpt3-1.3b",
        "data=8",
        {"zero": 3, "global_batch": 16, "micro_batch": 2, "remat": "none"},
    ),
    (
        "dgx-a100",
        "gpt3-1.3b",
        "data=8",
        {"zero": 3, "global_batch": 16, "micro_batch": 2, "remat": "none", "attention": "unfused"},
    ),
    ("dgx-a100", "vit-l", "data=8", {"zero": 1, "global_batch": 256, "remat": "none"}),
    (
        "dgx-a100",
        "gpt3-1.3b",
        "data=8",
        {"zero": 3, "global_batch": 16, "micro_batch": 2, "remat": "attention"},
    ),
    ("dgx-h100", "llama2-7b", "data=8", {"zero": 3, "global_batch": 8, "remat": "attention"}),
    (
        "dgx-h100",
        "llama2-7b",
        "data=8",
        {"zero": 3, "global_batch": 8, "remat": "save-dots-except-mlp"},
    ),
    (
        "dgx-h100",
        "llama2-7b",
        "data=8",
        {"zero": 3, "global_batch": 8, "remat": "save-dots-except-mlp-wi"},
    ),
    ("dgx-h100", "llama2-7b", "data=8", {"zero": 3, "global_batch": 8, "remat": "offload"}),
    (
        "dgx-h100",
        "llama2-7b",
        "data=8",
        {"zero": 3, "global_batch": 8, "remat": "none", "attention": "unfused"},
    ),
    (
        "dgx-h100",
        "mixtral-8x7b",
        "data=8,expert=8",
        {"global_batch": 64, "seq": 4096, "remat": "none"},
    ),
    (
        "dgx-h100",
        "mixtral-8x7b",
        "data=8,expert=8",
        {"global_batch": 64, "seq": 4096, "remat": "full"},
    ),
    ("dgx-h100", "llama2-7b", "data=2,model=4", {"zero": 1, "global_batch": 16}),
    ("dgx-h100", "llama2-7b", "data=4,model=2", {"zero": 1, "global_batch": 4}),
    ("dgx-h100", "llama2-13b", "data=8,model=8", {"zero": 2, "global_batch": 32, "remat": "full"}),
    ("dgx-h100", "llama2-70b", "pipe=4,fsdp=4,model=8", {"global_batch": 64, "remat": "full"}),
    ("dgx-h100", "llama2-7b", "pipe=4,data=8", {"zero": 2, "global_batch": 128, "remat": "none"}),
    ("dgx-a100", "gpt3-175b", "fsdp=32,model=8", {"global_batch": 32, "remat": "full"}),
    ("dgx-h100", "llama2-70b", "fsdp=128", {"global_batch": 128, "remat": "full"}),
    ("dgx-h100", "llama2-7b", "data=8", {"zero": 0, "global_batch": 8}),
    ("dgx-h100", "llama2-7b", "data=8", {"zero": 1, "global_batch": 8}),
    ("dgx-h100", "llama2-7b", "data=8", {"zero": 2, "global_batch": 8}),
    ("dgx-h100", "gpt3-13b", "data=4,model=8", {"zero": 1, "global_batch": 32}),
    ("dgx-a100", "gpt3-1.3b", "data=4,model=2", {"zero": 1, "global_batch": 32}),
    ("dgx-h100", "llama3-8b", "data=4,context=2", {"zero": 3, "global_batch": 8, "seq": 8192}),
    ("dgx-h100", "llama3-8b", "context=8", {"global_batch": 1}),
    ("dgx-h100", "gpt2-124m", "fsdp=8", {"global_batch": 256, "remat": "full", "zero": 0}),
    ("dgx-h100", "llama2-70b", "4x8", {}),
]
"""Cluster, model, mesh and options of layouts that the analytic engine's constants are from."""

HELD_OUT: list[Layout] = [
    ("dgx-h100", "llama3-8b", "fsdp=16", {"global_batch": 64, "micro_batch": 2}),
    ("dgx-h100", "llama3-8b", "4x8", {"global_batch": 16}),
    ("dgx-a100", "llama2-13b", "fsdp=16", {"global_batch": 32, "remat": "full"}),
    ("dgx-a100", "gpt3-2.7b", "data=16", {"zero": 3, "global_batch": 64}),
    ("polaris", "llama2-7b", "fsdp=16", {"global_batch": 16}),
    ("perlmutter", "gpt2-1.5b", "data=16", {"zero": 2, "global_batch": 64}),
    ("frontier", "llama2-13b", "fsdp=32,model=2", {"global_batch": 64}),
    ("dgx-b200", "llama3-70b", "fsdp=8,model=8", {"global_batch": 32, "remat": "full"}),
    ("dgx-b200", "llama3-8b", "data=8", {"zero": 1, "global_batch": 32, "micro_batch": 1}),
    ("dgx-h100", "mixtral-8x7b", "fsdp=4,expert=8", {"global_batch": 32, "seq": 4096}),
    ("dgx-h100", "vit-l", "data=16", {"zero": 1, "global_batch": 1024}),
    ("dgx-h100", "llama2-70b", "pipe=4,data=2,model=8", {"zero": 1, "global_batch": 64}),
    ("dgx-a100", "gpt3-13b", "pipe=4,data=8", {"zero": 1, "global_batch": 64}),
    ("dgx-h100", "llama2-13b", "pipe=2,fsdp=8", {"global_batch": 64}),
    ("dgx-h100", "llama3-405b", "fsdp=64,model=8", {"global_batch": 64, "remat": "full"}),
    ("dgx-h100", "gpt3-175b", "fsdp=32,model=8", {"global_batch": 64}),
    ("dgx-h100", "llama2-13b", "fsdp=16", {"global_batch": 32, "remat": "save-qkv"}),
    ("dgx-a100", "llama2-7b", "data=2,fsdp=8", {"zero": 0, "global_batch": 32}),
    ("alps", "llama3-70b", "fsdp=16,model=4", {"global_batch": 32}),
    (
        "dgx-h100",
        "gpt3-6.7b",
        "data=8",
        {"zero": 2, "global_batch": 64, "micro_batch": 2, "attention": "unfused"},
    ),
    ("dgx-h100", "llama2-7b", "fsdp=16", {"global_batch": 64, "precision": "fp8", "remat": "full"}),
    ("dgx-h100", "gpt3-13b", "data=4,model=4", {"zero": 1, "global_batch": 32}),
    ("dgx-h100", "llama2-13b", "data=2,model=8", {"zero": 1, "global_batch": 16}),
    ("dgx-a100", "gpt3-6.7b", "data=2,model=8", {"zero": 0, "global_batch": 32, "micro_batch": 4}),
    ("aurora", "llama2-7b", "data=3,fsdp=16", {"zero": 0, "global_batch": 48}),
    ("perlmutter", "llama2-13b", "fsdp=16,model=4", {"global_batch": 64}),
    ("frontier", "gpt3-6.7b", "fsdp=32", {"global_batch": 64}),
    ("polaris", "gpt3-2.7b", "fsdp=32", {"global_batch": 64, "remat": "full"}),
    ("dgx-b200", "mixtral-8x7b", "fsdp=8,expert=8", {"global_batch": 64, "seq": 8192}),
    ("dgx-h100", "llama3-8b", "fsdp=8", {"global_batch": 16, "remat": "offload"}),
    ("dgx-a100", "vit-b", "data=8", {"zero": 0, "global_batch": 512}),
    (
        "dgx-h100",
        "llama2-70b",
        "pipe=8,data=2,model=4",
        {"zero": 1, "global_batch": 64, "remat": "full"},
    ),
    ("dgx-h100", "llama2-70b", "8x8", {}),
    (
        "dgx-h100",
        "llama3-8b",
        "fsdp=8",
        {"global_batch": 64, "seq": 4096, "remat": "full"},
    ),
]
"""Layouts that they are not from."""


def compare(recipe: Recipe, cluster: Cluster, before: dict[str, Any] | None) -> dict[str, Any]:
    """Returns step time (seconds) and memory (bytes) of a layout, simulated by both engines.

    Args:
        recipe: the step.
        cluster: where.
        before: what was said of it before; the compiled engine is not asked again.
    """
    row: dict[str, Any] = {}
    if before:
        row = {key: before[key] for key in ("loops_of_unknown_length", "compiled")}
    else:
        compiled = predict_recipe(recipe, cluster).to_json()
        row["loops_of_unknown_length"] = compiled["program"]["loops_of_unknown_length"]
        row["compiled"] = _said(compiled)
    row["analytic"] = _said(analytic.predict(recipe, cluster).to_json())
    for what in ("step_time_s", "memory_bytes"):
        row[f"{what.split('_')[0]}_gap"] = row["analytic"][what] / row["compiled"][what] - 1
    return row


def _said(prediction: dict[str, Any]) -> dict[str, Any]:
    return {
        "step_time_s": prediction["step_time_s"],
        "memory_bytes": prediction["memory_bytes"]["total"],
        "breakdown_s": prediction["breakdown_s"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = Path(__file__).parent / "data" / "engines.json"
    parser.add_argument("--out", type=Path, default=default)
    parser.add_argument(
        "--formulas", action="store_true", help="keep what the compiled engine said before"
    )
    args = parser.parse_args()
    known = json.loads(default.read_text())["rows"] if args.formulas else []
    layouts = [(True, one) for one in FITTED] + [(False, one) for one in HELD_OUT]
    print("          step time, s               memory, GB")
    print("  formulas  program    gap   formulas  program   gap   layout")
    rows = []
    for fitted, (name, model, mesh, options) in layouts:
        recipe = Recipe.of(lookup(model), MeshSpec.parse(mesh), **options)
        which = {"cluster": name, "model": model, "mesh": mesh, "options": options}
        before = next((row for row in known if which.items() <= row.items()), None)
        row = compare(recipe, load_cluster(name), before)
        rows.append(which | {"fitted": fitted} | row)
        said, read = row["analytic"], row["compiled"]
        print(
            f"{said['step_time_s']:10.3f} {read['step_time_s']:8.3f} {row['step_gap']:+6.1%} "
            f"{said['memory_bytes'] / 1e9:10.1f} {read['memory_bytes'] / 1e9:8.1f} "
            f"{row['memory_gap']:+5.0%}   {name} {model} {mesh} "
            + " ".join(f"{key}={value}" for key, value in options.items())
            + (" (fitted)" if fitted else ""),
            flush=True,
        )
    for fitted, title in ((True, "fitted"), (False, "held out")):
        gaps = [abs(row["step_gap"]) for row in rows if row["fitted"] is fitted]
        print(
            f"{title}: {sum(gap <= AIM for gap in gaps)} of {len(gaps)} step times within "
            f"{AIM:.0%}, mean {statistics.mean(gaps):.1%}, most {max(gaps):.1%}"
        )
    about = {"kind": "simulated", "versions": versions(), "aim": AIM}
    args.out.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    print(f"raw data: {args.out}")


if __name__ == "__main__":
    main()
