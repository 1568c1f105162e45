"""TensorBoard logs through tensorboardX."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tensorboardX import SummaryWriter

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TAGS = {
    "loss": "train/loss",
    "validation_loss": "validation/loss",
    "grad_norm": "train/grad_norm",
    "step_time_s": "speed/step_time_s",
    "tokens_per_s": "speed/tokens_per_s",
    "mfu": "speed/mfu",
}


class TensorBoard:
    """Writes the metrics of a run.

    Args:
        folder: where TensorBoard looks.
        resumed_from: step that the run goes on from; what was written of later steps is hidden.
    """

    def __init__(self, folder: Path, resumed_from: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=resumed_from + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the values of a step."""
        for key, tag in TAGS.items():
            if key in values:
                self._writer.add_scalar(tag, values[key], step)

    def close(self) -> None:
        """Writes what is pending."""
        self._writer.close()


def write_scaling(
    folder: Path, curves: Mapping[str, Mapping[int, float]], figure: "Figure"
) -> None:
    """Writes curves over the number of devices, as scalars whose step is that number, and a figure.

    Args:
        folder: where TensorBoard looks; a folder of its own keeps the two kinds of step apart.
        curves: tag, such as `scaling/tokens_per_s (simulated)`, to devices to value.
        figure: the picture of all of them.
    """
    for old in folder.glob("events.*"):
        old.unlink()  # one set of points, also when the command is run again
    with SummaryWriter(str(folder)) as writer:
        for tag, points in curves.items():
            for devices, value in sorted(points.items()):
                writer.add_scalar(tag, value, devices)
        writer.add_figure("scaling/picture", figure, close=False)
