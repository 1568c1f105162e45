"""Plots of a run. Measured is always blue and solid, simulated always orange."""

import functools
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import FuncFormatter, NullLocator, PercentFormatter

from exajax.errors import InputError
from exajax.simulate.step_report import StepReport

MEASURED, SIMULATED, IDEAL, LIMIT = "#2563a8", "#d97706", "#9aa3af", "#b91c1c"
PARTS = {
    "compute": "#1f4e79",
    "memory_bound": "#5b8db8",
    "optimizer": "#7c9a72",
    "other": "#c4c9d1",
    "pipeline_bubble": "#a3a3a3",
    "stragglers": "#8b5e83",
}
EXPOSED = ("#d97706", "#eab308", "#b45309", "#f59e0b")
MEMORY = {
    "parameters": "#1f4e79",
    "gradients": "#5b8db8",
    "optimizer": "#7c9a72",
    "activations": "#b45309",
    "batch": "#c4c9d1",
    "temporaries": "#d9a566",
}
STYLE: Any = {
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "exajax",
}
Records = Sequence[Mapping[str, Any]]
"""Lines of `metrics.jsonl`."""

SUFFIXES = (".png", ".svg")
"""Of pictures that are written to a file."""


def styled(plot: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draws in `STYLE`, every text as it stands, and leaves the caller's own style as it was."""

    @functools.wraps(plot)
    def in_style(*args: Any, **options: Any) -> Figure:
        with matplotlib.rc_context(STYLE):
            figure = plot(*args, **options)
            _without_formulas(figure)
            return figure

    return in_style


def _without_formulas(figure: Figure) -> None:
    """Has every text but the numbers of axes shown as it stands.

    A `$` begins a formula for matplotlib, and texts come from files: names of models and machines,
    sources of tables. The numbers of logarithmic axes are formulas of its own.
    """
    numbers = {
        label
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
        for label in (tick.label1, tick.label2)
    }
    for text in figure.findobj(Text):
        if isinstance(text, Text) and text not in numbers:
            text.set_parse_math(False)


def check_file(path: Path) -> None:
    """Raises an `InputError` if no plot can be written there. Writes nothing."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(
            "plot", f"{path} is neither PNG nor SVG", f"end it in {' or '.join(SUFFIXES)}"
        )
    folder = path.absolute().parent
    if path.is_dir() or not (folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)):
        raise InputError("plot", f"cannot write to {path}", "give a file in a folder that is there")


def write(path: Path, figure: Figure) -> None:
    """Writes a figure, whole or not at all; raises an `InputError` if it cannot."""
    kind = path.suffix.lower().removeprefix(".")
    options: dict[str, Any] = {"dpi": 160} if kind == "png" else {"metadata": {"Date": None}}
    drawn, part = io.BytesIO(), path.with_name(f".{path.name}.part")
    with matplotlib.rc_context(STYLE):
        figure.savefig(drawn, format=kind, **options)
    try:
        part.write_bytes(drawn.getvalue())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise InputError(
            "plot", f"cannot write to {path}: {error.strerror}", "give another file"
        ) from error


def svg(figure: Figure) -> str:
    """Returns a figure as an SVG element, to be put into a page."""
    with matplotlib.rc_context(STYLE):
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()[text.getvalue().index("<svg") :]


def _thousands(value: float, _: object = None) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _over_devices(axes: Axes, devices: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(devices, [f"{n:,}" for n in devices])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("devices")


@styled
def scaling(
    model: str,
    small_model: str,
    curves: Mapping[str, Mapping[int, float]],
    measured: Mapping[str, Any],
    small: StepReport,
) -> Figure:
    """Throughput and efficiency of the full model, and the small model's measured point.

    Args:
        model: name of the full model.
        small_model: name of the model that was trained here.
        curves: `tokens_per_s` and `efficiency` by devices, simulated.
        measured: what was measured of the small model.
        small: its simulated step.
    """
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    throughput, efficiency, here = figure.subplots(1, 3)
    rates = curves["tokens_per_s"]
    if rates:
        devices = list(rates)
        first = devices[0]
        ideal = [rates[first] * n / first for n in devices]
        throughput.loglog(devices, ideal, "--", color=IDEAL, label="linear")
        throughput.loglog(devices, list(rates.values()), "o-", color=SIMULATED, label="simulated")
        _over_devices(throughput, devices)
        throughput.set_yticks([*rates.values()], [_thousands(rate) for rate in rates.values()])
        throughput.yaxis.set_minor_locator(NullLocator())
        throughput.legend()
        shares = list(curves["efficiency"].values())
        efficiency.axhline(1.0, ls="--", color=IDEAL)
        efficiency.plot(devices, shares, "o-", color=SIMULATED)
        _over_devices(efficiency, devices)
        efficiency.set_ylim(0, 1.1)
    else:
        for axes in (throughput, efficiency):
            axes.text(0.5, 0.5, "does not fit", ha="center", transform=axes.transAxes)
    throughput.set_title(f"{model}: tokens/s, simulated")
    efficiency.set_title("weak-scaling efficiency, simulated")
    efficiency.yaxis.set_major_formatter(PercentFormatter(1.0))
    _measured_and_simulated(here, measured, small)
    here.set_title(f"{small_model}: tokens/s here")
    return figure


def _measured_and_simulated(axes: Axes, measured: Mapping[str, Any], small: StepReport) -> None:
    count, rate = small.devices, small.tokens_per_s or 0.0
    axes.plot([count], [rate], "o", ms=9, color=SIMULATED, label="simulated")
    if measured["tokens_per_s"]:
        axes.plot([count], [measured["tokens_per_s"]], "D", ms=8, color=MEASURED, label="measured")
    axes.set_ylim(0, 1.35 * max(rate, measured["tokens_per_s"] or 0))
    axes.set_xticks([count], [f"{count}"])
    axes.set_xlabel("devices")
    axes.yaxis.set_major_formatter(FuncFormatter(_thousands))
    axes.legend(loc="lower right")


@styled
def training(records: Records, unigram_entropy: float, simulated_s: float) -> Figure:
    """Loss, learning rate and step time by step, as measured; the simulated time as a line."""
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    loss, times = figure.subplots(1, 2)
    trained = [r for r in records if "loss" in r]
    validated = [r for r in records if "validation_loss" in r]
    steps = [r["step"] for r in trained]
    loss.plot(steps, [r["loss"] for r in trained], color=MEASURED, lw=1.4, label="training")
    loss.plot(
        [r["step"] for r in validated],
        [r["validation_loss"] for r in validated],
        "D",
        color="#0f2f57",
        label="held out",
    )
    loss.axhline(unigram_entropy, ls="--", color=IDEAL, label="unigram entropy of held-out data")
    loss.set_title("loss in nats, measured")
    loss.set_xlabel("step")
    rated = [r for r in trained if "learning_rate" in r]
    if rated:
        rate = loss.twinx()
        rate.grid(visible=False)
        rate.set_ylabel("learning rate")
        rate.plot(
            [r["step"] for r in rated],
            [r["learning_rate"] for r in rated],
            color=IDEAL,
            lw=1,
            label="learning rate",
        )
        loss.plot([], [], color=IDEAL, lw=1, label="learning rate (right)")
    loss.legend()
    timed = [r for r in trained if "step_time_s" in r]
    times.plot(
        [r["step"] for r in timed],
        [r["step_time_s"] for r in timed],
        ".",
        color=MEASURED,
        label="measured",
    )
    times.axhline(simulated_s, color=SIMULATED, label="simulated")
    times.set_ylim(bottom=0)
    times.set_title("step time in seconds")
    times.set_xlabel("step")
    times.legend(loc="lower right")
    return figure


@styled
def anatomy(points: Sequence[StepReport]) -> Figure:
    """Where the simulated time and memory of each mesh go."""
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    time_axes, memory_axes = figure.subplots(1, 2)
    labels = [str(p.mesh) for p in points]
    _stack(time_axes, labels, [p.breakdown_s.parts() for p in points], _time_colors(points))
    time_axes.set_title("step time in seconds, simulated")
    sizes = [{k: v / 1e9 for k, v in p.memory_bytes.parts().items()} for p in points]
    _stack(memory_axes, labels, sizes, MEMORY)
    capacity = points[0].memory_bytes.capacity / 1e9
    memory_axes.axhline(capacity, color=LIMIT, ls="--", label=f"capacity {capacity:.0f} GB")
    memory_axes.set_title("peak memory of a device in GB, simulated")
    for axes in (time_axes, memory_axes):
        axes.set_xlabel("mesh")
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), reverse=True)
    return figure


def _time_colors(points: Sequence[StepReport]) -> dict[str, str]:
    exposed = sorted({name for p in points for name in p.breakdown_s.parts() if name not in PARTS})
    return PARTS | {name: EXPOSED[i % len(EXPOSED)] for i, name in enumerate(exposed)}


def _stack(
    axes: Axes,
    labels: Sequence[str],
    columns: Sequence[Mapping[str, float]],
    colors: Mapping[str, str],
) -> None:
    bottoms = [0.0] * len(columns)
    total = max(sum(column.values()) for column in columns)
    for part, color in colors.items():
        heights = [column.get(part, 0.0) for column in columns]
        if max(heights) < 0.002 * total:
            continue
        label = part.replace("_", " ")
        axes.bar(labels, heights, 0.62, bottom=bottoms, color=color, label=label)
        bottoms = [b + h for b, h in zip(bottoms, heights, strict=True)]
    axes.grid(axis="x", visible=False)
