"""exajax against PyTorch on one GPU: tokens/s and MFU of three models, in under ten minutes.

    python benchmarks/gpu_training.py

gpt2-124m, a llama of 1.3 G parameters, and a llama as wide as a 7B with few layers. Both sides run
in bf16 with fp32 masters and moments, AdamW and clipping; PyTorch is compiled, with fused AdamW and
`scaled_dot_product_attention`, which takes a flash kernel. Each runs in a process of its own, one
after the other on the same chip; a side whose library is not there, or that runs out of memory, is
left out and says so. MFU counts the FLOPs of `ModelConfig.step_flops`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from sides import batches, exajax_side, take_turn, torch_side

from exajax.job.provenance import machine, versions
from exajax.machine.chip_file import chip_of_device
from exajax.models.dimensions import ModelConfig
from exajax.models.presets import PRESETS
from exajax.recipe.recipe import Recipe
from exajax.spmd.mesh import MeshSpec

SIDES = ("exajax", "torch")
BUDGET_S = 570.0
"""For all sides of all models: a call of ten minutes ends by itself."""


def llama(name: str, layers: int, width: int, heads: int, ffn: int, seq: int) -> ModelConfig:
    return ModelConfig(name, "llama", layers, width, heads, heads, ffn, 32_000, seq, source="ours")


# Sequences of a step: what leaves room on 80 GB when nothing is recomputed.
JOBS: dict[str, tuple[ModelConfig, int]] = {
    "gpt2-124m": (PRESETS["gpt2-124m"], 16),
    "llama-1.3b": (llama("llama-1.3b", 24, 2048, 16, 5504, 2048), 8),
    "llama-7b-wide": (llama("llama-7b-wide", 6, 4096, 32, 11008, 4096), 4),
}
TINY: dict[str, tuple[ModelConfig, int]] = {
    "gpt-tiny": (PRESETS["gpt-tiny"], 2),
    "llama-tiny": (PRESETS["llama-tiny"], 2),
}


def measure(side: str, model: ModelConfig, batch: int, args: argparse.Namespace) -> dict[str, Any]:
    """Returns what one side measured on the device that it finds, in this process."""
    # remat none on both sides: PyTorch, too, keeps what the backward pass needs.
    recipe = Recipe.of(model, MeshSpec(), global_batch=batch, remat="none", warmup_steps=2)
    begin_s = time.perf_counter()
    if side == "exajax":
        import jax

        platform, device = jax.default_backend(), jax.devices()[0].device_kind
    else:
        import torch

        platform = "gpu" if torch.cuda.is_available() else "cpu"
        device = torch.cuda.get_device_name() if platform == "gpu" else "cpu"
    if platform != "gpu" and not args.tiny:
        sys.exit(f"{side} finds no GPU; --tiny tries the script without one")
    if side == "exajax":
        run, _ = exajax_side(recipe)
        attention = "flash" if recipe.flash(platform) else "unfused"
    else:
        run = torch_side(recipe, platform.replace("gpu", "cuda"), compiled=not args.eager)
        attention = "scaled_dot_product_attention"
    run(batches(recipe, 0, 3))
    ready_s = time.perf_counter() - begin_s
    seconds = []
    for number in range(args.rounds):
        turn = take_turn(side, run, batches(recipe, 3 + number * args.steps, args.steps))
        seconds.append(turn.step_s)
    chip = chip_of_device(device)
    step_s = statistics.median(seconds)
    return {
        "side": side,
        "model": model.name,
        "device": device,
        "batch": [batch, recipe.seq],
        "attention": attention,
        "ready_s": ready_s,
        "step_times_s": seconds,
        "last_loss": turn.losses[-1],
        "tokens_per_s": recipe.tokens / step_s,
        "mfu": recipe.flops / step_s / chip.peak("bf16") if chip else None,
    }


def in_child(side: str, name: str, args: argparse.Namespace, left_s: float) -> dict[str, Any]:
    """Measures in a process of its own, so that each side has the device's memory to itself."""
    command = [sys.executable, __file__, "--side", side, "--model", name]
    command += [f"--rounds={args.rounds}", f"--steps={args.steps}"] + ["--tiny"] * args.tiny
    command += ["--eager"] * args.eager
    begin_s = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(left_s, 1.0))
    except subprocess.TimeoutExpired:
        return {"side": side, "model": name, "left_out": f"over the {BUDGET_S:.0f} s of the call"}
    last = (done.stdout.strip().splitlines() or [""])[-1]
    if done.returncode or not last.startswith("{"):
        why = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"side": side, "model": name, "left_out": why, "stderr": done.stderr[-4000:]}
    return json.loads(last) | {"process_s": time.perf_counter() - begin_s}


def show(result: dict[str, Any]) -> str:
    """Returns one line of the table."""
    if "left_out" in result:
        return f"{result['model']:14} {result['side']:7} left out: {result['left_out'][:120]}"
    mfu = f"{result['mfu']:6.1%}" if result["mfu"] else "   n/a"
    return (
        f"{result['model']:14} {result['side']:7} {result['tokens_per_s']:10,.0f} tokens/s  "
        f"MFU {mfu}  {statistics.median(result['step_times_s']) * 1e3:8.1f} ms  "
        f"{result['attention']}, ready in {result['ready_s']:.0f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="steps of a round")
    parser.add_argument("--tiny", action="store_true", help="small models: a test of the script")
    parser.add_argument("--model", choices=[*JOBS, *TINY], help="this one alone")
    parser.add_argument("--eager", action="store_true", help="PyTorch without torch.compile")
    parser.add_argument("--out", type=Path, help="default: benchmarks/data/gpu_DEVICE.json")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    jobs = TINY if args.tiny else JOBS
    if args.model and args.model not in jobs:
        parser.error(f"--model {args.model} goes {'without' if args.tiny else 'with'} --tiny")
    if args.side:
        print(json.dumps(measure(args.side, *jobs[args.model], args)))
        return
    if args.model:
        jobs = {args.model: jobs[args.model]}
    begin_s, results = time.perf_counter(), []
    for name in jobs:
        pair = {}
        for side in SIDES:
            left_s = BUDGET_S - (time.perf_counter() - begin_s)
            pair[side] = in_child(side, name, args, left_s)
            results.append(pair[side])
            print(show(pair[side]), flush=True)
        if all("tokens_per_s" in result for result in pair.values()):
            ratio = pair["exajax"]["tokens_per_s"] / pair["torch"]["tokens_per_s"]
            print(f"{name:14} exajax / torch {ratio:.3f}")
    device = next((r["device"] for r in results if "device" in r), "none")
    out = (
        args.out or Path(__file__).parent / "data" / f"gpu_{device.replace(' ', '-').lower()}.json"
    )
    about = {"kind": "measured", "device": device, "machine": machine(), "versions": all_versions()}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(about | {"results": results}, indent=1) + "\n")
    print(f"raw data: {out}, {time.perf_counter() - begin_s:.0f} s in all")


def all_versions() -> dict[str, str]:
    import importlib.metadata

    found = versions()
    for package in ("torch", "triton", "jax-cuda13-plugin"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    # Large blocks that PyTorch frees must be of use to others of another size.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
    main()
