"""Predicted steps against published ones, as a picture."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogLocator, NullFormatter

from exajax.report.plots import IDEAL, styled

BAND = 0.1
"""Half the width of the band about the diagonal, as a share."""

HUES = [hue for index, hue in enumerate(colormaps["tab10"].colors) if index != 7]  # type: ignore[attr-defined]
COLORS = [*HUES, *([0.6 * part for part in hue] for hue in HUES)]
"""Of sources: bright ones and dark ones, without grey, which is the diagonal's."""

MARKERS = "osD^v"
"""Of sources: bright colours have the first, dark ones the second, then it starts again."""

NAME = 54
"""Letters of a source's name that the legend has room for."""


@styled
def predicted_against_published(
    rows: Sequence[Mapping[str, Any]], sources: Iterable[Mapping[str, Any]], engine: str
) -> Figure:
    """Returns the plot; a point on the diagonal is predicted as it was measured.

    Args:
        rows: as `exajax validate --json` has them; those without a prediction are left out.
        sources: the same; their order is that of the legend.
        engine: which predicted.
    """
    told = [row for row in rows if row["error"] is not None]
    by_source = {source["source"]: source for source in sources if source["expressed"]}
    styles = {
        name: (COLORS[index % len(COLORS)], MARKERS[index // len(HUES) % len(MARKERS)])
        for index, name in enumerate(by_source)
    }
    figure = Figure(figsize=(11.2, max(5.8, 1.6 + 0.23 * len(by_source))), layout="constrained")
    axes = figure.subplots()
    _diagonal(axes, [row[key] for row in told for key in ("measured_s", "predicted_s")])
    # A source of hundreds of rows would hide one of ten, and both what is fitted.
    for row in sorted(
        told, key=lambda row: (row["used_for_calibration"], -by_source[row["source"]]["expressed"])
    ):
        color, marker = styles[row["source"]]
        inside = "none" if row["used_for_calibration"] else color
        at = (row["measured_s"], row["predicted_s"])
        axes.plot(*at, marker, ms=4.5, mec=color, mfc=inside, mew=1.1, alpha=0.8)
    axes.set_xlabel("published step, seconds")
    axes.set_ylabel("simulated step, seconds")
    axes.set_title(f"simulated ({engine} engine) against published steps")
    figure.legend(
        handles=[*_of_sources(by_source, styles), *_of_lines()],
        loc="outside right upper",
        fontsize=8,
        title="source (rows that nothing was fitted on, their mean absolute error)",
        title_fontsize=8,
        alignment="left",
    )
    return figure


def _diagonal(axes: Axes, seconds: Sequence[float]) -> None:
    ends = (min(seconds) / 1.5, 1.5 * max(seconds)) if seconds else (0.1, 10.0)
    low, high = ([share * end for end in ends] for share in (1 - BAND, 1 + BAND))
    axes.fill_between(ends, low, high, color=IDEAL, alpha=0.35, lw=0)
    axes.plot(ends, ends, color=IDEAL, lw=1.2)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends, aspect="equal")
    narrow = ends[1] < 100 * ends[0]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(LogLocator(subs=(2, 5)))
        axis.set_minor_formatter("{x:g}" if narrow else NullFormatter())


def _of_sources(
    sources: Mapping[str, Mapping[str, Any]], styles: Mapping[str, tuple[Any, str]]
) -> list[Line2D]:
    handles = []
    for name, source in sources.items():
        color, marker = styles[name]
        short = name if len(name) <= NAME else f"{name[: NAME - 1].rstrip()}…"
        held_out = source["expressed"] - source["calibrated"]
        error = "-" if source["mape"] is None else f"{source['mape']:.1%}"
        label = f"{short} ({held_out}, {error})"
        handles.append(Line2D([], [], color=color, marker=marker, ls="", ms=5, label=label))
    return handles


def _of_lines() -> list[Line2D | Patch]:
    hollow = Line2D([], [], color="#4b5563", mfc="none", marker="o", ls="", ms=5)
    hollow.set_label("hollow: a factor was fitted on it")
    return [
        hollow,
        Line2D([], [], color=IDEAL, lw=1.2, label="as published"),
        Patch(color=IDEAL, alpha=0.3, lw=0, label=f"within {BAND:.0%}"),
    ]
