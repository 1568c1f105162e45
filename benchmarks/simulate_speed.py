"""How long `exajax simulate` takes for llama2-70b, and how much memory: cold, and from its cache.

    python benchmarks/simulate_speed.py

Every run is a process of its own with a cache folder of its own: nothing there, then what that run
left. A cold run and a cached one must print the same bytes.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # a checkout needs no installation

from exajax.job.provenance import machine, versions

MODEL = "llama2-70b"
AIMS_S = {"128x8": {"cold": 40.0, "cached": 3.0}, "2048x8": {"cold": 60.0, "cached": 3.0}}
"""By mesh: 1,024 and 16,384 devices."""
AIM_BYTES = 2e9


def simulate(mesh: str, cache: str) -> tuple[dict[str, float], bytes]:
    """Returns what one run took, and what it printed."""
    command = [sys.executable, "-m", "exajax", "simulate", "--json"]
    command += [f"--model={MODEL}", f"--mesh={mesh}"]
    root = str(Path(__file__).parent.parent)
    environment = os.environ | {"XDG_CACHE_HOME": cache, "PYTHONPATH": root}
    load, before, begin_s = os.getloadavg()[0], os.times(), time.perf_counter()
    said = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True
    ).stdout
    seconds, after = time.perf_counter() - begin_s, os.times()
    cpu_s = after.children_user + after.children_system
    cpu_s -= before.children_user + before.children_system
    return {"seconds": seconds, "cpu_s": cpu_s, "load_before": load}, said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    default = Path(__file__).parent / "data" / "simulate_speed.json"
    parser.add_argument("--out", type=Path, default=default)
    args = parser.parse_args()
    runs: dict[str, dict[str, list[dict[str, float]]]] = {}
    for mesh, aims in AIMS_S.items():
        runs[mesh] = {kind: [] for kind in aims}
        for _ in range(args.rounds):
            with tempfile.TemporaryDirectory() as cache:
                printed = []
                for kind in aims:
                    took, said = simulate(mesh, cache)
                    runs[mesh][kind].append(took)
                    printed.append(said)
                if len(set(printed)) > 1:
                    sys.exit(f"{mesh}: the cached run printed something else than the cold one")
        for kind, aim_s in aims.items():
            median_s = statistics.median(run["seconds"] for run in runs[mesh][kind])
            cpu_s = statistics.median(run["cpu_s"] for run in runs[mesh][kind])
            print(f"{MODEL} on {mesh}, {kind}: {median_s:.1f} s, {cpu_s:.1f} s of processor time")
            print(f"  {'within' if median_s <= aim_s else 'over'} the aim of {aim_s:.0f} s")
    peak_bytes = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(f"most memory of any run: {peak_bytes / 1e9:.2f} GB")
    about = {"kind": "measured", "machine": machine(), "versions": versions()}
    about |= {"model": MODEL, "cpus": os.cpu_count(), "aims_s": AIMS_S, "aim_bytes": AIM_BYTES}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(
        json.dumps(about | {"peak_bytes": peak_bytes, "runs": runs}, indent=1) + "\n"
    )
    print(f"raw data: {args.out}")


if __name__ == "__main__":
    main()
