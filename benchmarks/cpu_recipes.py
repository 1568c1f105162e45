"""Training steps measured on this machine's CPU, against the same steps simulated.

    python benchmarks/cpu_recipes.py

For every layout of processes and devices the machine is calibrated (`exajax calibrate`); then every
recipe is trained in fresh processes, `--runs` times, and simulated on what the calibration wrote.
Run-to-run spread is the largest median of a run over the smallest, less one: no simulation can be
better than that. Nothing else should run on the machine meanwhile.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # a checkout needs no installation

from exajax.job.provenance import machine, versions

OUT = Path(__file__).parent / "data" / "cpu_recipes.json"
AIM = 0.15
STEPS = 14


@dataclass(frozen=True)
class Case:
    """One recipe on one layout of this machine.

    Attributes:
        hosts: processes.
        devices: CPU devices of each.
        model: name of a preset.
        mesh: of hosts x devices devices.
        batch: sequences of a step.
        seq: tokens of each.
        remat: what is recomputed.
    """

    hosts: int
    devices: int
    model: str
    mesh: str
    batch: int
    seq: int
    remat: str = "selective"

    @property
    def flags(self) -> list[str]:
        """The recipe's flags."""
        return [
            f"--model={self.model}",
            f"--mesh={self.mesh}",
            f"--global-batch={self.batch}",
            f"--seq={self.seq}",
            f"--remat={self.remat}",
            "--precision=fp32",
            "--json",
        ]


CASES = (
    Case(1, 1, "gpt-tiny", "data=1", 4, 128),
    Case(1, 1, "llama-tiny", "data=1", 8, 128, "none"),
    Case(1, 1, "mixtral-tiny", "data=1", 4, 128),
    Case(1, 4, "llama-tiny", "2x2", 8, 128),
    Case(1, 4, "gpt-tiny", "fsdp=4", 8, 128),
    Case(1, 4, "gpt-tiny", "pipe=2,data=2", 8, 128),
    Case(2, 1, "gpt-tiny", "data=2", 8, 128, "none"),
    Case(2, 1, "llama-tiny", "fsdp=2", 16, 128),
    Case(2, 2, "llama-tiny", "2x2", 8, 128),
    Case(2, 2, "gpt-tiny", "2x2", 16, 128, "full"),
    Case(2, 2, "mixtral-tiny", "data=2,expert=2", 8, 128),
    Case(4, 1, "gpt-tiny", "data=4", 8, 128),
    Case(4, 1, "llama-tiny", "data=2,fsdp=2", 8, 128),
)


def exajax(argv: Sequence[str]) -> str:
    """Runs a command in a process of its own and returns what it prints."""
    root = str(Path(__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    done = subprocess.run(
        [sys.executable, "-m", "exajax", *argv],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(f"exajax {' '.join(argv)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout


def measure(case: Case, folder: Path, runs: int) -> list[float]:
    """Returns the median step of every run, in seconds."""
    found = []
    for run in range(runs):
        argv = ["train", *case.flags, f"--steps={STEPS}", "--metrics-port=0", "--save-every=1000"]
        argv += [f"--run-dir={folder / f'{run}'}"]
        if case.hosts > 1:
            argv += [f"--hosts={case.hosts}", f"--devices-per-host={case.devices}"]
        found.append(float(json.loads(exajax(argv))["step_time_s"]["p50"]))
    return found


def compare(case: Case, cluster: Path, folder: Path, runs: int) -> dict[str, Any]:
    """Trains and simulates a case."""
    simulated = json.loads(exajax(["simulate", *case.flags, f"--cluster={cluster}"]))
    measured = measure(case, folder, runs)
    median_s = statistics.median(measured)
    return {
        "case": asdict(case),
        "measured_s": measured,
        "simulated_s": simulated["step_time_s"],
        "error": simulated["step_time_s"] / median_s - 1,
        "spread": max(measured) / min(measured) - 1,
        "breakdown_s": simulated["breakdown_s"],
    }


def line(result: dict[str, Any]) -> str:
    """Returns a row of the table for people."""
    case = result["case"]
    where = f"{case['hosts']} x {case['devices']}  {case['model']:<13} {case['mesh']:<16}"
    return (
        f"{where} measured {statistics.median(result['measured_s']) * 1e3:7.1f} ms "
        f"(runs differ by {result['spread']:.0%}), simulated "
        f"{result['simulated_s'] * 1e3:7.1f} ms, {result['error']:+.0%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=2, help="of every recipe")
    parser.add_argument("--cases", type=int, default=len(CASES), help="how many of them")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    results, calibrations = [], {}
    with tempfile.TemporaryDirectory() as name:
        for number, case in enumerate(CASES[: args.cases]):
            layout = f"{case.hosts}x{case.devices}"
            cluster = Path(name) / f"local-{layout}.toml"
            if not cluster.exists():
                flags = [f"--hosts={case.hosts}", f"--devices-per-host={case.devices}"]
                exajax(["calibrate", *flags, f"--out={cluster}"])
                calibrations[layout] = cluster.read_text()
            results.append(compare(case, cluster, Path(name) / str(number), args.runs))
            print(line(results[-1]), flush=True)
    median = statistics.median(abs(result["error"]) for result in results)
    print(f"median error {median:.1%} of {len(results)} recipes (aim {AIM:.0%})")
    kept = {"kind": "measured, and simulated", "machine": machine(), "versions": versions()}
    kept |= {"median_error": median, "results": results, "calibrations": calibrations}
    args.out.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
