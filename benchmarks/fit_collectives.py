"""Fits the times of collectives to measurements of others, and says how wrong the fit is.

    python benchmarks/fit_collectives.py [--measurements DIR]

Writes `meshes/fabrics/` and `data/fit_collectives.json`. In a node: NCCL, one table by chip,
fitted without a fifth of the cells, which give the errors. Between nodes: RCCL on up to 64 nodes
of Frontier; the errors are those on 128 nodes and more. The measurements are not a part of the
project: `nccl_*.csv` are the NCCL tables of ai-dynamo/aiconfigurator, `frontier_*.csv` the results
of ggracelii/mpich-rccl.
"""

import argparse
import csv
import json
import math
import random
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))  # a checkout needs no installation

import frontier_collectives
from collective_tables import fit_table, tables_toml

from exajax.machine.fabric import CollectiveTimes, Fabric
from exajax.simulate.collectives.in_node import in_node_time_s

HERE = Path(__file__).parent
FABRICS = HERE.parent / "meshes" / "fabrics"
SEED = 0
LEFT_OUT = 0.2
CHIPS = {
    "a100": ("nccl_a100_sxm.csv", "NVSwitch of A100 SXM, NVLink 3", "300 GB/s", None),
    "h100": ("nccl_h100_sxm.csv", "NVSwitch of H100 SXM, NVLink 4", "450 GB/s", 8),
    "h200": ("nccl_h200_sxm.csv", "NVSwitch of H200 SXM, NVLink 4", "450 GB/s", 8),
    "b200": ("nccl_b200_sxm.csv", "NVSwitch of B200 SXM, NVLink 5", "900 GB/s", 8),
    "gb200": ("nccl_gb200.csv", "NVSwitch of GB200, NVLink 5", "900 GB/s", None),
}
"""By name: file, title, line rate, and devices from which NVLink SHARP is taken to reduce."""

KINDS = {"alltoall": "all-to-all"}
Cell = tuple[str, int, float]  # kind, devices, bytes of the whole array


def read_nccl(path: Path) -> dict[Cell, list[float]]:
    """Returns the seconds of each cell. The file counts elements of two bytes, and ms."""
    cells = defaultdict(list)
    for row in csv.DictReader(path.open()):
        kind = KINDS.get(row["op_name"], row["op_name"].replace("_", "-"))
        size = {"half": 2.0}[row["nccl_dtype"]] * int(row["message_size"])
        cells[kind, int(row["num_gpus"]), size].append(float(row["latency"]) * 1e-3)
    return dict(cells)


def left_out(cells: Iterable[Cell]) -> set[Cell]:
    """Draws cells, never the smallest or largest of a table, between which it interpolates."""
    sizes = sorted({size for _, _, size in cells})
    inner = sorted(cell for cell in cells if sizes[0] < cell[2] < sizes[-1])
    return set(random.Random(SEED).sample(inner, round(LEFT_OUT * len(inner))))


def fit_tables(cells: dict[Cell, list[float]]) -> dict[str, dict[int, CollectiveTimes]]:
    """Returns the tables of a fabric."""
    points: dict[tuple[str, int], dict[float, float]] = defaultdict(dict)
    for (kind, ranks, size), seconds in cells.items():
        points[kind, ranks][size] = math.exp(statistics.fmean(map(math.log, seconds)))
    tables: dict[str, dict[int, CollectiveTimes]] = defaultdict(dict)
    for kind, ranks in sorted(points):
        tables[kind][ranks] = fit_table(points[kind, ranks])
    return dict(tables)


def errors(cells: dict[Cell, list[float]], link: Fabric) -> dict[str, list[float]]:
    """Returns predicted / measured - 1 of every row, by cell."""
    return {
        f"{kind} of {size:.0f} bytes, {ranks} devices": [
            round(in_node_time_s(kind, size, ranks, link) / measured - 1, 4) for measured in seconds
        ]
        for (kind, ranks, size), seconds in sorted(cells.items())
    }


def summary(rows: dict[str, list[float]]) -> dict[str, Any]:
    """Returns how large errors are."""
    sizes = [abs(error) for cell in rows.values() for error in cell]
    return {
        "rows": len(sizes),
        "median_error": round(statistics.median(sizes), 4),
        "mape": round(statistics.fmean(sizes), 4),
        "p90": round(float(np.quantile(sizes, 0.9)), 4),
    }


def fit_chip(chip: str, folder: Path) -> dict[str, Any]:
    """Fits a chip, writes its fabric, and returns the errors on what was left out."""
    file, title, line, in_switch = CHIPS[chip]
    cells = read_nccl(folder / file)
    out = left_out(cells)
    link = Fabric(
        float(line.split()[0]) * 1e9,
        {},
        {},
        fit_tables({cell: cells[cell] for cell in cells if cell not in out}),
        in_switch,
    )
    version = next(csv.DictReader((folder / file).open()))["version"]
    source = f"NCCL {version}, ai-dynamo/aiconfigurator"
    lines = [
        f"# {title}. Written by benchmarks/fit_collectives.py",
        f'bandwidth = ["{line}", "stas00/ml-engineering, network/README.md"]',
    ]
    if in_switch:
        lines.append(
            f'in_switch_from = [{in_switch}, "assumed: from {in_switch} devices on, large '
            'all-reduces are faster than the rings of fewer devices"]'
        )
    FABRICS.joinpath(f"nvswitch-{chip}.toml").write_text(
        "\n".join(lines) + "\n" + tables_toml(link.times, source)
    )
    rows = errors({cell: cells[cell] for cell in out}, link)
    found: dict[str, Any] = {"left_out": summary(rows)}
    for kind in sorted(link.times):
        found[kind] = summary({cell: row for cell, row in rows.items() if cell.startswith(kind)})
    if 8 in link.times["all-reduce"]:
        without = {kind: {2: t[2], 8: t[8]} for kind, t in link.times.items()}
        four = {cell: seconds for cell, seconds in cells.items() if cell[1] == 4}
        coarse = Fabric(link.bandwidth, {}, {}, without, in_switch)
        found["four_devices_from_two_and_eight"] = summary(errors(four, coarse))
    return found | {"errors": {cell: " ".join(map(str, row)) for cell, row in rows.items()}}


def main() -> None:
    """Fits everything and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measurements", type=Path, default=Path("../shared/measurements"))
    folder = parser.parse_args().measurements
    if not (folder / "nccl_h100_sxm.csv").exists():
        sys.exit(f"{folder}: no measurements there; give --measurements with their folder")
    result: dict[str, Any] = {
        "error": "predicted / measured - 1; median_error and mape are of its absolute value",
        "split": {
            "in_node": f"a seeded (seed {SEED}) fifth of the cells (kind, devices, bytes) between "
            "the smallest and the largest size",
            "between_nodes": "fitted on 2 to 64 nodes, left out 128 to 4,096. The form of the "
            "model was chosen by people who had seen the whole table; no figure in it was fitted "
            "to what is left out",
        },
        "in_node": {},
    }
    for chip in CHIPS:
        found = result["in_node"][chip] = fit_chip(chip, folder)
        print(f"{chip:6} in a node, left out: {found['left_out']}")
    result["between_nodes"] = frontier_collectives.fit(folder, FABRICS)
    (HERE / "data" / "fit_collectives.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
