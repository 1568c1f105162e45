"""How fast `exajax plan` is: whole commands, from start to answer.

    python benchmarks/plan_speed.py [--rounds N]

Writes benchmarks/data/plan_speed.json: seconds of each command, and the layouts that it priced a
second, measured on this machine.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from exajax.job.provenance import machine, versions

OUT = Path(__file__).parent / "data" / "plan_speed.json"

SEARCHES = (
    ("gpt3-175b", "selene", 1024, 1536),
    ("gpt3-175b", "selene", 1024, 3072),
    ("llama3-405b", "dgx-h100", 1024, 2048),
    ("mixtral-8x7b", "frontier", 512, 1024),
)
"""Model, cluster, devices, global batch."""


def main() -> None:
    """Runs every search, and prints and writes what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="of all searches")
    rounds = parser.parse_args().rounds
    rows = [
        {"round": number, **searched(*search)} for number in range(rounds) for search in SEARCHES
    ]
    result = {"kind": "measured", "machine": machine(), "versions": versions(), "rows": rows}
    OUT.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written to {OUT}")


def searched(model: str, cluster: str, devices: int, global_batch: int) -> dict[str, Any]:
    """Returns what one command took."""
    flags = [f"--model={model}", f"--cluster={cluster}", f"--devices={devices}"]
    argv = [sys.executable, "-m", "exajax", "plan", *flags, f"--global-batch={global_batch}"]
    begun = time.perf_counter()
    done = subprocess.run([*argv, "--json"], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - begun
    found = json.loads(done.stdout)
    rate = found["evaluated"] / found["seconds"]
    print(
        f"{model} on {devices} of {cluster}, batch {global_batch}: {found['evaluated']:,} layouts "
        f"in {seconds:.1f} s, start-up included; {rate:,.0f} a second",
        flush=True,
    )
    return {
        "model": model,
        "cluster": cluster,
        "devices": devices,
        "global_batch": global_batch,
        "layouts": found["evaluated"],
        "whole_command_s": seconds,
        "layouts_per_s": rate,
    }


if __name__ == "__main__":
    main()
