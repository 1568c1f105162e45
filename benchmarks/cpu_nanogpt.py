"""exajax against PyTorch on this machine's CPU: a step of the nanoGPT shape, side by side.

    python benchmarks/cpu_nanogpt.py

6 layers, 384 wide, 6 heads, a vocabulary of 256, 16 sequences of 256 tokens; AdamW and clipping.
Both sides start from the same weights, see the same tokens and take turns. Turns in which other
programs were at work do not count: it waits for a quiet machine, until every side has had enough
turns. PyTorch is eager and compiled, with `scaled_dot_product_attention`.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from sides import Turn, await_quiet, batches, exajax_side, take_turn, torch_side

from exajax.job.provenance import machine, versions
from exajax.models.dimensions import ModelConfig
from exajax.recipe.recipe import Recipe
from exajax.spmd.mesh import MeshSpec

NANOGPT = ModelConfig("nanogpt", "gpt", 6, 384, 6, 6, 1536, 256, 256, source="karpathy/nanoGPT")
TINY = ModelConfig("tiny", "gpt", 2, 64, 4, 4, 256, 256, 64, source="ours")
DATA = Path(__file__).parent / "data" / "cpu_nanogpt.json"


def recipe_of(model: ModelConfig, precision: str, batch: int) -> Recipe:
    return Recipe.of(
        model, MeshSpec(), global_batch=batch, precision=precision, remat="none", warmup_steps=2
    )


def compare(recipe: Recipe, args: argparse.Namespace) -> list[Turn]:
    """Returns the turns of every side, until each has enough quiet ones or time is up."""
    ours, params = exajax_side(recipe)
    first = params()
    sides = {
        "exajax": ours,
        "torch eager": torch_side(recipe, "cpu", compiled=False, params=first),
    }
    if not args.no_compile:
        sides["torch compiled"] = torch_side(recipe, "cpu", compiled=True, params=first)
    for side in sides.values():
        side(batches(recipe, 0, 2))
    turns: list[Turn] = []
    number, deadline_s = 0, time.perf_counter() + args.patience
    while number == 0 or (_fewest(turns, sides) < args.rounds and await_quiet(deadline_s)):
        given = batches(recipe, 2 + number * args.steps, args.steps)
        turns += [take_turn(name, side, given) for name, side in sides.items()]
        sides = dict(reversed(sides.items()))  # no side always follows the same other
        number += 1
    return turns


def _fewest(turns: list[Turn], sides: Iterable[str]) -> int:
    return min(sum(turn.quiet and turn.side == side for turn in turns) for side in sides)


def table(recipe: Recipe, turns: list[Turn]) -> list[dict[str, Any]]:
    """Returns a row for each side: median tokens/s of its quiet turns, and exajax's over them."""
    rows: list[dict[str, Any]] = []
    for side in dict.fromkeys(turn.side for turn in sorted(turns, key=lambda turn: turn.side)):
        quiet = [turn.step_s for turn in turns if turn.side == side and turn.quiet]
        rate = recipe.tokens / statistics.median(quiet) if quiet else None
        rows.append({"side": side, "quiet_turns": len(quiet), "tokens_per_s": rate})
    for row in rows:
        known = rows[0]["tokens_per_s"] and row["tokens_per_s"]
        row["exajax_over_it"] = rows[0]["tokens_per_s"] / row["tokens_per_s"] if known else None
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=7, help="quiet turns that each side needs")
    parser.add_argument("--steps", type=int, default=2, help="steps of a turn")
    parser.add_argument("--patience", type=float, default=240.0, help="seconds for a precision")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--tiny", action="store_true", help="a small model: a test of the script")
    parser.add_argument("--out", type=Path, default=DATA)
    args = parser.parse_args()
    model, batch = (TINY, 4) if args.tiny else (NANOGPT, 16)
    results = []
    print(f"{model.name}, {batch} x {model.seq} tokens, {machine()['processor']}")
    print("precision  side            quiet turns   tokens/s   exajax's over it")
    for precision in ("fp32", "bf16"):
        recipe = recipe_of(model, precision, batch)
        turns = compare(recipe, args)
        rows = table(recipe, turns)
        results.append({"precision": precision, "table": rows, "turns": [asdict(t) for t in turns]})
        for row in rows:
            rate, over = row["tokens_per_s"], row["exajax_over_it"]
            print(
                f"{precision:9}  {row['side']:14}  {row['quiet_turns']:11}   "
                + (f"{rate:8,.0f}   {over:.2f}" if over else "the machine was never quiet"),
                flush=True,
            )
    import torch

    about = {
        "kind": "measured",
        "machine": machine(),
        "versions": versions() | {"torch": torch.__version__},
        "threads": {"torch": torch.get_num_threads(), "cpus": os.cpu_count()},
        "model": model.name,
        "batch": [batch, model.seq],
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(about | {"results": results}, indent=1) + "\n")
    print(f"raw data: {args.out}")


if __name__ == "__main__":
    main()
