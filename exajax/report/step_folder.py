"""A simulated step as files: numbers, trace, roofline."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from exajax.errors import InputError
from exajax.job.runtime import json_text
from exajax.machine.cluster import Cluster
from exajax.program.operations import Program
from exajax.report import perfetto
from exajax.simulate.roofs import Row
from exajax.simulate.step_report import CompiledReport
from exajax.simulate.timeline import Event

FILES = ("prediction.json", perfetto.NAME, "roofline.csv", "roofline.png")


def check(path: Path) -> None:
    """Raises an `InputError` if a folder cannot be written to. Writes nothing."""
    if path.exists() and not path.is_dir():
        raise InputError("out", f"{path} is not a folder", "give a folder, or a name that is new")
    nearest = next(parent for parent in [path, *path.absolute().parents] if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError("out", f"cannot write to {path}", "give another folder")


def write(
    path: Path,
    report: CompiledReport,
    program: Program,
    events: Sequence[Event],
    rows: Sequence[Row],
    cluster: Cluster,
) -> None:
    """Writes `FILES`.

    Args:
        path: folder, made if it is not there.
        report: the simulated step, with its roofline.
        program: what one device does.
        events: when it does what.
        rows: every operation against its roof.
        cluster: where.

    Raises:
        InputError: it cannot be written.
    """
    from exajax.report import roofline_plot  # matplotlib, which no other prediction waits for

    title = f"{report.model} on {report.mesh}"
    trace = perfetto.simulated(f"{title} of {cluster.name}", program, events, cluster)
    figure = roofline_plot.roofline(title, report.roofline or (), cluster.chip)
    try:
        path.mkdir(parents=True, exist_ok=True)
        (path / "prediction.json").write_text(json_text(report.to_json()) + "\n")
        perfetto.write(path / perfetto.NAME, trace)
        with (path / "roofline.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, rows[0].to_json(), lineterminator="\n")
            table.writeheader()
            table.writerows(row.to_json() for row in rows)
        figure.savefig(path / "roofline.png", dpi=150)
    except OSError as error:
        raise InputError(
            "out", f"cannot write to {path}: {error.strerror}", "give another folder"
        ) from error
