"""The part of `fit_collectives.py` that fits all-reduces between nodes of Frontier."""

import csv
import math
import statistics
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from collective_tables import fit_table, tables_toml
from scipy.optimize import least_squares

from exajax.machine.fabric import CollectiveTimes, Fabric, Network, Tree
from exajax.simulate.collectives import between_nodes
from exajax.simulate.collectives.between_nodes import Layout
from exajax.simulate.collectives.in_node import in_node_time_s

LIBRARY = "RCCL(MPICH backend, OFI/CXI)"
"""The rows that are RCCL with the OFI plugin; those of Cray-MPICH are not used."""

FITTED_NODES = 64
PER_NODE = 8
LINE = 100e9
LINK_LINE = 200e9
LARGE = 16 * 2**20
RANGE_OF_THREE = 1.693
"""Expected range of three draws from a normal distribution, in standard deviations."""

STARTS = [(latency, fill, line) for latency in (5e-6, 2e-5) for fill in (1e-6, 1e-4)
          for line in (0.6, 0.95)]  # fmt: skip

SOURCE = "RCCL on Frontier, ggracelii/mpich-rccl"


@dataclass(frozen=True)
class Row:
    """One cell: nodes, bytes, median seconds, and max / min over its repetitions."""

    nodes: int
    size: int
    seconds: float
    repetitions: int
    range: float


def read(path: Path, columns: tuple[str, str, str]) -> list[Row]:
    """Returns the rows of `LIBRARY`; `columns` are those of the median, least and most us."""
    rows = [row for row in csv.DictReader(path.open()) if row["lib"] == LIBRARY]
    found = []
    for row in rows:
        median, least, most = (float(row[name]) for name in columns)
        nodes, size, reps = int(row["nodes"]), int(row["bytes"]), int(row["reps"])
        found.append(Row(nodes, size, median * 1e-6, reps, most / least))
    return found


def predict(row: Row, link: Fabric, network: Network) -> float:
    """Returns the seconds of the model for a cell."""
    if row.nodes == 1:
        return in_node_time_s("all-reduce", row.size, PER_NODE, link)
    layout = Layout(row.nodes * PER_NODE, row.nodes, PER_NODE, 1, row.nodes)
    return between_nodes.time_s("all-reduce", row.size, layout, PER_NODE, link, network)[0]


def network_of(logs: np.ndarray, ring: float) -> Network:
    """Returns the network with these logarithms of latency, filling and efficiency of a tree."""
    latency_s, fill_s, tree = np.exp(logs).tolist()
    latencies = {"all-reduce": latency_s, "other": latency_s / 2}
    return Network(LINE, {"other": ring}, latencies, tree=Tree(tree, fill_s))


def fit_network(rows: list[Row], link: Fabric) -> Network:
    """Fits the three figures of trees, and takes the ring's efficiency from the largest job.

    One step of a ring is taken to be half a level of a tree, which passes it up and down: on so
    few nodes rings are never the faster by much, and their latency cannot be told.
    """
    most = max(row.nodes for row in rows)
    largest = [row for row in rows if row.nodes == most and row.size == 2**30]
    moved = 2 * 2**30 * (1 - 1 / (most * PER_NODE))
    ring = moved / statistics.median(row.seconds for row in largest) / LINE

    def residuals(logs: np.ndarray) -> list[float]:
        network = network_of(logs, ring)
        return [math.log(predict(row, link, network) / row.seconds) for row in rows]

    fits = [
        least_squares(
            residuals,
            np.log(start),
            bounds=([-math.inf, -math.inf, math.log(0.2)], [0.0, 0.0, 1e-9]),
            loss="soft_l1",
            f_scale=0.1,
        )
        for start in STARTS
    ]
    return network_of(np.minimum(min(fits, key=lambda fit: float(fit.cost)).x, 0.0), ring)


def fit(folder: Path, fabrics: Path) -> dict[str, Any]:
    """Fits Frontier's links and network, writes them, and returns the errors."""
    every = read(
        folder / "frontier_allreduce_1_8192nodes.csv",
        ("median_avg_us", "min_avg_us", "max_avg_us"),
    )
    table = fit_table({float(row.size): row.seconds for row in every if row.nodes == 1})
    times = {"all-reduce": {PER_NODE: table}}
    link = Fabric(LINK_LINE, {"other": 1.0}, {"other": 1e-6}, times)
    between = [row for row in every if row.nodes > 1]
    used = [row for row in between if row.nodes <= FITTED_NODES]
    network = fit_network(used, link)
    assert network.tree is not None
    few = fit_network([row for row in used if row.nodes <= 16], link)
    gradients = read(
        folder / "frontier_gradient_allreduce.csv", ("median_avg_us", "min_us", "max_us")
    )
    unseen = [row for row in between if FITTED_NODES < row.nodes <= 4096 and row.size >= LARGE]
    result = {
        "library": LIBRARY,
        "fitted": {"nodes": [2, FITTED_NODES], "rows": len(used)} | _summary(used, link, network),
        "coefficients": {
            "ring_efficiency": round(network.efficiency["other"], 4),
            "tree_efficiency": round(network.tree.efficiency, 4),
            "tree_fill_s": float(f"{network.tree.fill_s:.4g}"),
            "latency_s": float(f"{network.latency_s['all-reduce']:.4g}"),
        },
        "fitted_on_16_nodes_tried_on_32_and_64_from_16_MiB": _summary(
            [row for row in used if row.nodes > 16 and row.size >= LARGE], link, few
        ),
        "left_out_128_to_4096_nodes_from_16_MiB": _summary(unseen, link, network),
        "left_out_128_to_4096_nodes_below_16_MiB": _summary(
            [row for row in between if FITTED_NODES < row.nodes <= 4096 and row.size < LARGE],
            link,
            network,
        ),
        "by_nodes": _by(unseen, lambda row: row.nodes, link, network),
        "by_bytes": _by(unseen, lambda row: row.size, link, network),
        "gradients": {
            "not_fitted": len(gradients),
            "up_to_64_nodes": _summary([r for r in gradients if r.nodes <= 64], link, network),
            "beyond": _summary([r for r in gradients if r.nodes > 64], link, network),
        },
        "spread": spread(between),
    }
    largest = max((row for row in every if row.nodes == 1), key=lambda row: row.size)
    bus = 2 * largest.size * (1 - 1 / PER_NODE) / largest.seconds / LINK_LINE
    _write(fabrics, times, bus, table.seconds[0], network)
    for key, value in result.items():
        print(f"frontier {key}: {value}")
    return result


def spread(rows: list[Row]) -> dict[str, float]:
    """Returns the standard deviation of the logarithm of a time between three runs of a cell."""
    sigmas = [math.log(row.range) / RANGE_OF_THREE for row in rows if row.repetitions == 3]
    return {
        "cells": len(sigmas),
        "rms": round(math.sqrt(statistics.fmean(sigma**2 for sigma in sigmas)), 4),
        "median": round(statistics.median(sigmas), 4),
    }


def _summary(rows: list[Row], link: Fabric, network: Network) -> dict[str, Any]:
    errors = [predict(row, link, network) / row.seconds - 1 for row in rows]
    sizes = sorted(map(abs, errors))
    return {
        "rows": len(rows),
        "median_error": round(float(statistics.median(sizes)), 4),
        "mape": round(statistics.fmean(sizes), 4),
        "bias": round(float(statistics.median(errors)), 4),
    }


def _by(
    rows: list[Row], key: Callable[[Row], int], link: Fabric, network: Network
) -> dict[int, dict[str, Any]]:
    groups = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return {value: _summary(group, link, network) for value, group in sorted(groups.items())}


def _write(
    fabrics: Path,
    times: dict[str, dict[int, CollectiveTimes]],
    bus: float,
    first_s: float,
    network: Network,
) -> None:
    """Writes `xgmi-mi250x.toml` and `slingshot-11.toml`."""
    assert network.tree is not None
    head = "Written by benchmarks/fit_collectives.py"
    fabrics.joinpath("xgmi-mi250x.toml").write_text(
        f"""# xGMI of a node of 4 MI250X, 8 GCDs. {head}
bandwidth = ["200 GB/s", "between the GCDs of one MI250X, olcf/olcf-user-docs, systems/frontier_user_guide.rst; less between others"]

[efficiency] # of what was not measured
other = [{bus:.3g}, "that of the largest all-reduce of 8 GCDs, {SOURCE}; taken for all kinds"]
collective-permute = [0.25, "50 GB/s between GCDs of different MI250X, olcf/olcf-user-docs"]

[latency] # of what was not measured
other = ["{first_s * 0.69e6:.3g} us", "0.69 of the smallest all-reduce, as in NCCL on 8 A100; {SOURCE}"]
{tables_toml(times, SOURCE)}"""  # noqa: E501
    )
    latency = network.latency_s
    fitted = f"fitted to {SOURCE}, 2 to {FITTED_NODES} nodes"
    fabrics.joinpath("slingshot-11.toml").write_text(
        f"""# All-reduces of RCCL with the OFI plugin over Slingshot-11. {head}

[efficiency] # of rings
other = [{network.efficiency["other"]:.3g}, "all-reduce of 1 GiB on {FITTED_NODES} nodes, {SOURCE}; taken for all kinds"]

[latency] # over two nodes; a ring has it for each further node, a tree for each doubling
all-reduce = ["{latency["all-reduce"] * 1e6:.3g} us", "{fitted}"]
other = ["{latency["other"] * 1e6:.3g} us", "half of that of an all-reduce, which passes twice"]

[tree]
efficiency = [{network.tree.efficiency:.3g}, "{fitted}"]
fill = ["{network.tree.fill_s * 1e6:.3g} us", "{fitted}"]
"""  # noqa: E501
    )
