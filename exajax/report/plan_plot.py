"""Every layout as a point, time against memory, and those that no other one beats in both."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from exajax.report.plots import IDEAL, LIMIT, SIMULATED, styled
from exajax.simulate.formulas.prediction import capacity_bytes
from exajax.simulate.plan import PricedLayouts

POINTS = 20_000
"""Layouts that are drawn at most, chosen evenly of all."""


@styled
def draw(found: PricedLayouts) -> Figure:
    """Draws all layouts, the Pareto front, a device's memory and the best that fits."""
    figure = Figure(figsize=(8.0, 4.2), layout="constrained")
    axes = figure.subplots()
    shown = np.linspace(0, len(found.layouts) - 1, min(POINTS, len(found.layouts))).astype(int)
    gb, front = found.bytes / 1e9, found.front()
    axes.plot(gb[shown], found.step_s[shown], ".", ms=2, color=IDEAL, alpha=0.4, rasterized=True)
    axes.step(
        gb[front], found.step_s[front], "-", where="post", color=SIMULATED, label="Pareto front"
    )
    axes.plot(gb[front], found.step_s[front], ".", ms=6, color=SIMULATED)
    limit = capacity_bytes(found.cluster) / 1e9
    axes.axvline(limit, color=LIMIT, ls="--", lw=1, label=f"{limit:.0f} GB a device")
    fitting = found.fits.nonzero()[0]
    if len(fitting):
        best = found.ranked(fitting)[0]
        label = f"best that fits: {found.step_s[best]:.3g} s, {found.recipe(int(best)).mesh}"
        axes.plot(gb[best], found.step_s[best], "*", ms=14, color=LIMIT, label=label)
    axes.set_xscale("log")
    axes.set_yscale("log")
    fastest = found.step_s.min()
    axes.set_ylim(0.8 * fastest, 16 * fastest)
    axes.set_xlim(0.7 * gb.min(), max(4 * limit, 1.5 * gb[front].max()))
    axes.set_xlabel("memory of a device at the peak, GB")
    axes.set_ylabel("step time, s")
    work = found.work
    axes.set_title(
        f"{work.model.name} on {found.layouts.devices[0]:,} x {found.cluster.chip.title}, batch "
        f"{work.global_batch:,}: {len(found.layouts):,} layouts, simulated"
    )
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.legend(loc="upper right", frameon=True, edgecolor="none", framealpha=0.95)
    return figure
