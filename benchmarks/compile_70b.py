"""How long llama2-70b takes to compile ahead of time for 1,024 H100, mesh 128x8.

    python benchmarks/compile_70b.py

Every round is a process of its own, from cold: a described machine, no accelerator, no cache. The
aim is 20 s on two cores for building, tracing and compiling the step.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # a checkout needs no installation

from exajax.job.provenance import machine, versions
from exajax.machine.cluster import load_cluster
from exajax.models.presets import lookup
from exajax.recipe.recipe import Recipe
from exajax.spmd.mesh import MeshSpec

AIM_S = 20.0


def compile_once(model: str, mesh: str) -> dict[str, float]:
    """Returns seconds of every stage, in this process."""
    marks = [("begin", time.perf_counter())]

    def mark(name: str) -> None:
        marks.append((name, time.perf_counter()))

    from exajax.program import described_devices
    from exajax.program.compile import compile_step
    from exajax.recipe import text_workload
    from exajax.spmd.step import TrainStep

    cluster = load_cluster("dgx-h100")
    recipe = Recipe.of(lookup(model), MeshSpec.parse(mesh))
    mark("import")
    described = recipe.mesh.build(described_devices.described_devices(cluster, recipe.mesh.devices))
    workload = text_workload.workload(recipe, cluster.chip.platform)
    step = TrainStep.of(workload, described, zero=recipe.zero, precision=recipe.precision)
    mark("build")
    compile_step(step)
    mark("compile and read")
    pairs = itertools.pairwise(marks)
    return {name: end_s - begin_s for (_, begin_s), (name, end_s) in pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="llama2-70b")
    parser.add_argument("--mesh", default="128x8")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    default = Path(__file__).parent / "data" / "compile_70b.json"
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()
    if args.once:
        print(json.dumps(compile_once(args.model, args.mesh)))
        return
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, __file__, "--once", f"--model={args.model}", f"--mesh={args.mesh}"]
    rounds = []
    for _ in range(args.rounds):
        load, before = os.getloadavg()[0], os.times()
        cpu_before_s = before.children_user + before.children_system
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        used = os.times()
        stages = json.loads(done.stdout.splitlines()[-1])
        cpu_s = used.children_user + used.children_system - cpu_before_s
        total_s = sum(stages.values())
        rounds.append({"stages_s": stages, "total_s": total_s, "cpu_s": cpu_s, "load_before": load})
        parts = ", ".join(f"{name} {s:.1f}" for name, s in stages.items())
        print(
            f"{total_s:5.1f} s, {cpu_s:.1f} s of processor time: {parts} (load {load:.1f})",
            flush=True,
        )
    median_s = statistics.median(r["total_s"] for r in rounds)
    verdict = "within" if median_s <= AIM_S else "over"
    print(f"{args.model} on {args.mesh}: {median_s:.1f} s, {verdict} the aim of {AIM_S:.0f} s")
    about = {"kind": "measured", "machine": machine(), "versions": versions()}
    about |= {"model": args.model, "mesh": args.mesh, "cpus": os.cpu_count(), "aim_s": AIM_S}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(about | {"rounds": rounds}, indent=1) + "\n")
    print(f"raw data: {args.out}")


if __name__ == "__main__":
    main()
