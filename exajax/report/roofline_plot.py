"""The roofline of a simulated step: its operations under the roofs of the chip, and the loss."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from exajax import units
from exajax.machine.cluster import Chip
from exajax.report.plots import IDEAL, LIMIT, SIMULATED, styled
from exajax.simulate.roofs import Row

COLORS = {
    "attention": "#14a098",
    "mlp": "#1f4e79",
    "experts": "#9a3412",
    "logits": "#7c3aed",
    "embed": "#a78bfa",
    "norm": "#5b8db8",
    "loss": "#be185d",
    "optimizer": "#7c9a72",
    "communication": SIMULATED,
    "other": IDEAL,
}
NO_PRODUCTS = 0.5
"""Where operations without products are drawn, FLOP/byte: at their bytes/s below the roof."""

Rows = Sequence[Row]


@styled
def roofline(title: str, rows: Rows, chip: Chip) -> Figure:
    """Returns the roofline of a step, and where its time goes and is lost.

    Args:
        title: what was simulated.
        rows: groups of operations, the longest first.
        chip: what they run on.
    """
    figure = Figure(figsize=(9.6, 4.0), layout="constrained")
    roof, parts = figure.subplots(1, 2, width_ratios=(1.45, 1))
    computed = [row for row in rows if not row.exposed and row.bytes]
    _roofs(roof, computed, chip)
    _dots(roof, computed)
    roof.set_title(f"{title}: roofline, simulated")
    _parts(parts, rows)
    return figure


def _roofs(axes: Axes, rows: Rows, chip: Chip) -> None:
    used = {row.precision for row in rows if row.precision} or set(chip.peak_flops)
    highest = max(chip.peak_flops[precision] for precision in used)
    most = max([*(row.intensity or 0.0 for row in rows), highest / chip.memory_bandwidth])
    x = np.geomspace(NO_PRODUCTS / 2, 4 * most, 200)
    for precision in sorted(used, key=lambda name: chip.peak_flops[name]):
        peak = chip.peak_flops[precision]
        axes.plot(x, np.minimum(peak, x * chip.memory_bandwidth), color="#4b5563", lw=1.4)
        name = f"{units.show(peak, 'FLOP/s')} {precision}"
        axes.annotate(name, (x[-1], peak), (-2, 4), textcoords="offset points", ha="right")
    bandwidth = units.show(chip.memory_bandwidth, "B/s")
    axes.set(xscale="log", yscale="log", xlim=(x[0], x[-1]))
    axes.set_ylim(top=3 * highest)
    at = math.sqrt(NO_PRODUCTS * highest / chip.memory_bandwidth)
    axes.annotate(
        f"{bandwidth} of memory",
        (at, at * chip.memory_bandwidth),
        (8, -8),
        textcoords="offset points",
    )
    axes.axvline(1.5 * NO_PRODUCTS, color=IDEAL, ls=":", lw=1)
    axes.set_xlabel("FLOP/byte; left of the dotted line: no matrix products, by bytes/s")
    axes.set_ylabel("FLOP/s of a device")


def _dots(axes: Axes, rows: Rows) -> None:
    total_s = sum(row.seconds for row in rows)
    seen = set()
    for row in rows:
        if row.seconds < 0.001 * total_s:
            continue
        x = row.intensity or NO_PRODUCTS
        y = row.attained_flops_per_s or NO_PRODUCTS * (row.attained_bytes_per_s or 0.0)
        part = row.part
        axes.scatter(
            x, y,
            s=20 + 1200 * row.seconds / total_s,
            color=COLORS[part],
            alpha=0.75,
            edgecolor="white",
            label=None if part in seen else part,
        )  # fmt: skip
        seen.add(part)
    for handle in axes.legend(loc="lower right", title="size: share of the time").legend_handles:
        if handle is not None:
            handle.set_sizes([40])  # type: ignore[attr-defined]


def _parts(axes: Axes, rows: Rows) -> None:
    """Bars of seconds by part and direction: what the roof allows, and what is lost against it."""
    named: dict[str, tuple[float, float]] = {}
    for row in rows:
        name = _name(row)
        roof_s, lost_s = named.get(name, (0.0, 0.0))
        named[name] = (roof_s + row.roof_s, lost_s + row.lost_s)
    total_s = sum(map(sum, named.values()))
    order = sorted(
        (name for name in named if sum(named[name]) >= 0.005 * total_s),
        key=lambda name: sum(named[name]),
    )
    at_roof = [named[name][0] for name in order]
    axes.barh(order, at_roof, 0.62, color="#1f4e79", label="at the roof, at line rate")
    axes.barh(order, [named[name][1] for name in order], 0.62, left=at_roof, color=LIMIT,
              alpha=0.55, label="lost against it")  # fmt: skip
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", labelsize=8.5)
    axes.set_xlabel("seconds of a step")
    axes.set_title("where the time goes, simulated")
    axes.legend(loc="lower right", fontsize=8.5)


def _name(row: Row) -> str:
    if row.exposed:
        return f"exposed {row.kind}"
    return f"{row.part} {row.direction}".strip()
