"""Bytes that XLA's programs of our step move besides products: counted, and fitted to their sizes.

    python benchmarks/fit_moved.py --chip h100

Compiles steps of 16 layers on one device, of which one size after the other is changed (about 90
programs, 8 minutes on a core), and adds up the bytes of the operations of a pass over the layers
that are no product. Least squares of relative errors give the bytes for each number of a token:
the tables of `exajax/meshes/programs/xla.toml`. The program of sizes `check` is left
out of the fit and shows its error.
"""

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import nnls

sys.path.insert(0, str(Path(__file__).parent.parent))  # a checkout needs no installation
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

from exajax.job.provenance import versions
from exajax.machine.cluster import load_cluster
from exajax.models.dimensions import ModelConfig
from exajax.models.presets import lookup
from exajax.program import compiled_recipe
from exajax.program.operations import Program, flatten
from exajax.recipe.recipe import Recipe
from exajax.spmd.mesh import MeshSpec

CLUSTERS = {"h100": "dgx-h100", "a100": "dgx-a100"}
LAYERS, SEQ = 16, 2048
POLICIES = ("none", "selective", "save-dots-except-mlp", "save-qkv", "full", "offload")
BASE = {"width": 2048, "heads": 16, "kv_heads": 8, "ffn": 8192, "batch": 2, "seq": SEQ}
SIZES: Mapping[str, Mapping[str, int]] = {
    "base": {},
    "width": {"width": 4096, "heads": 32},
    "ffn": {"ffn": 16384},
    "tokens": {"batch": 4},
    "keys": {"kv_heads": 16},
    "check": {"width": 3072, "heads": 24, "ffn": 10240, "batch": 6},
}
NAMES = {"llama": "llama2-7b", "gpt": "gpt3-1.3b"}


def sizes_of(family: str, changes: Mapping[str, int]) -> dict[str, int]:
    sizes = BASE | dict(changes)
    return sizes | ({"kv_heads": sizes["heads"]} if family == "gpt" else {})


def moved(family: str, remat: str, attention: str, sizes: Mapping[str, int], chip: str) -> Any:
    """Returns the bytes that the passes over a layer move, ahead and back."""
    fields = {k: v for k, v in sizes.items() if k not in ("batch", "seq")}
    model: ModelConfig = dataclasses.replace(
        lookup(NAMES[family]), layers=LAYERS, vocab=1024, **fields
    )
    recipe = Recipe.of(
        model,
        MeshSpec.parse("data=1"),
        global_batch=sizes["batch"],
        seq=sizes["seq"],
        remat=remat,
        attention=attention,
        zero=0,
    )
    return (
        np.array(
            passes(compiled_recipe.load_or_compile(recipe, load_cluster(CLUSTERS[chip])).program)
        )
        / LAYERS
    )


def passes(program: Program) -> tuple[int, int]:
    """Adds up the bytes by pass: stacks of zeros are what the forward pass fills.

    What has no name was moved out of a pass by the compiler, most of it gradients.
    """
    ahead = back = 0
    for op, times in flatten(program):
        scope = op.op_name.removeprefix("jit(update)/").split("/")[0]
        if op.kind != "memory":
            continue
        if scope == "jvp(layers)" or (not scope and "broadcast" in op.name):
            ahead += op.bytes * times
        elif scope == "transpose(jvp(layers))" or not scope:
            back += op.bytes * times
    return ahead, back


def columns(family: str, sizes: Mapping[str, int]) -> list[float]:
    """Numbers of the stream, of queries, keys and values, of the feed-forward; parameters."""
    T, D, F = sizes["batch"] * sizes["seq"], sizes["width"], sizes["ffn"]
    heads = D * (1 + 2 * sizes["kv_heads"] / sizes["heads"])
    parameters = D * heads + D * D + (3 if family == "llama" else 2) * D * F
    return [T * D, T * heads, T * F, parameters]


def fit(family: str, remat: str, chip: str, kv: Any) -> dict[str, Any]:
    """Fits one policy; `kv` are llama's bytes of keys and values, which gpt's sizes do not tell."""
    names = [name for name in SIZES if family == "llama" or name != "keys"]
    sizes = {name: sizes_of(family, SIZES[name]) for name in names}
    bytes_ = {name: moved(family, remat, "flash", sizes[name], chip) for name in names}
    rows = {name: np.array(columns(family, sizes[name])) for name in names}
    found: dict[str, Any] = {}
    for side, direction in enumerate(("ahead", "back")):
        fitted = [name for name in names if name != "check"]
        known = kv[direction]["kv"] if kv else 0.0
        free = [0, 2, 3] if kv else [0, 1, 2, 3]
        left = np.array([bytes_[name][side] - known * rows[name][1] for name in fitted])
        scale = np.array([bytes_[name][side] for name in fitted])
        matrix = np.array([rows[name][free] for name in fitted]) / scale[:, None]
        got, _ = nnls(matrix, left / scale)
        each = np.zeros(4)
        each[free] = got
        if kv:
            each[1] = known
        error = each @ rows["check"] / bytes_["check"][side] - 1
        labels = ("stream", "kv", "ffn", "parameters")
        found[direction] = dict(zip(labels, each.tolist(), strict=True)) | {"check_error": error}
    wide = sizes_of(family, {})
    narrow = wide | {"batch": 4, "seq": SEQ // 2}  # as many tokens, half the scores
    two = [moved(family, remat, "unfused", one, chip) for one in (wide, narrow)]
    scores = wide["batch"] * SEQ * SEQ * wide["heads"] / 2
    for side, direction in enumerate(("ahead", "back")):
        found[direction]["scores"] = float((two[0] - two[1])[side] / scores)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chip", choices=CLUSTERS, required=True)
    args = parser.parse_args()
    tables: dict[str, dict[str, Any]] = {"llama": {}, "gpt": {}}
    for family, table in tables.items():
        for remat in POLICIES:
            kv = tables["llama"][remat] if family == "gpt" else None
            table[remat] = fit(family, remat, args.chip, kv)
            for direction, each in table[remat].items():
                show = " ".join(f"{name} {value:6.1f}" for name, value in each.items())
                print(f"{family:6} {remat:22} {direction:6} {show}", flush=True)
    out = Path(__file__).parent / "data" / f"fit_moved_{args.chip}.json"
    about = {"kind": "counted in compiled programs", "versions": versions()}
    out.write_text(json.dumps(about | {"sizes": SIZES, "bytes": tables}, indent=1) + "\n")
    print(f"raw data: {out}")


if __name__ == "__main__":
    main()
