"""Figures of the parts that predictions rest on: kernels, collectives, formulas."""

import statistics
from collections.abc import Mapping

from tables import data, link, mean, percent, table, worst


def kernels() -> str:
    """Errors of the matrix product model on products that were left out of its fit."""
    rows = []
    for chip, found in sorted(data("fit_kernels.json")["chips"].items()):
        left_out = found["left out by rows"]
        some = [left_out["all"], left_out["above 1 GFLOP"]]
        rows.append(
            (
                chip,
                some[0]["rows"],
                *(f"{one[key]:.1f}%" for one in some for key in ("median_percent", "p90_percent")),
            )
        )
    return table(
        ("chip", "products left out", "median", "p90", "median above 1 GFLOP", "p90 above 1 GFLOP"),
        rows,
        "Time of bf16 matrix products, *simulated* against those *published* by "
        f"ai-dynamo/aiconfigurator, on the 30% left out of the fit: {link('fit_kernels.json')}.",
    )


def collectives() -> str:
    """Errors of the collective models on what was left out of their fits."""
    found = data("fit_collectives.json")
    rows = [
        (f"NCCL in a node of {chip.upper()}", one["left_out"]["rows"], *_errors(one["left_out"]))
        for chip, one in sorted(found["in_node"].items())
    ]
    between = found["between_nodes"]
    rows += [
        (f"RCCL on Frontier, {name}", one["rows"], *_errors(one))
        for name, one in (
            ("128 to 4,096 nodes, from 16 MiB", between["left_out_128_to_4096_nodes_from_16_MiB"]),
            (
                "128 to 4,096 nodes, below 16 MiB",
                between["left_out_128_to_4096_nodes_below_16_MiB"],
            ),
            ("gradients of whole models, beyond 64 nodes", between["gradients"]["beyond"]),
        )
    ]
    return table(
        ("collectives", "cells left out", "median error", "mean error"),
        rows,
        f"*Simulated* against times *published* by others: {link('fit_collectives.json')}. The form of"
        " the model between nodes was chosen by people who had seen the whole table.",
    )


def _errors(one: Mapping[str, float]) -> tuple[str, str]:
    return percent(one["median_error"]), percent(one["mape"])


def engines() -> str:
    """The analytic engine against the compiled one."""
    found = data("engines.json")["rows"]
    fits = [r for r in data("fits.json")["rows"] if r.get("step_gap") is not None]
    columns = ["layouts", "count"]
    for what in ("step time", "memory"):
        columns += [f"{what} within 10%", "mean gap", "largest"]
    rows = []
    for name, some in (
        (
            "layouts that constants of the formulas were chosen by",
            [r for r in found if r["fitted"]],
        ),
        ("other layouts", [r for r in found if not r["fitted"]]),
        ("drawn at random near the capacity", fits),
    ):
        gaps = [[r[key] for r in some] for key in ("step_gap", "memory_gap")]
        rows.append(
            (
                name,
                len(some),
                *(
                    text
                    for one in gaps
                    for text in (
                        sum(abs(g) <= 0.1 for g in one),
                        percent(mean(one)),
                        percent(worst(one)),
                    )
                ),
            )
        )
    drawn = data("fits.json")["rows"]
    wrong = sum(r["analytic"]["fits"] and not r["compiled"]["fits"] for r in fits)
    return table(
        columns,
        rows,
        f"Both sides *simulated*: {link('engines.json')}, and {link('fits.json')}, of whose "
        f"{len(drawn)} layouts {len(fits)} are compiled; of these the formulas say of {wrong} that they"
        " fit, and they do not.",
    )


def moved() -> str:
    """Bytes that the formulas say a pass moves, against compiled programs left out of their fit."""
    errors = [
        abs(direction["check_error"])
        for chip in ("a100", "h100")
        for family in data(f"fit_moved_{chip}.json")["bytes"].values()
        for policy in family.values()
        for direction in policy.values()
        if isinstance(direction, dict)
    ]
    files = " and ".join(link(f"fit_moved_{chip}.json") for chip in ("a100", "h100"))
    return (
        f"on compiled programs left out of the fit, the bytes of a pass are off by "
        f"{percent(statistics.median(errors))} in the median and {percent(max(errors))} at most "
        f"({len(errors)} passes, {files})"
    )
