"""TensorBoard logs through tensorboardX."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tensorboardX import SummaryWriter

from exajax.job.goodput import CAUSES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TAGS = {
    "loss": "train/loss",
    "validation_loss": "validation/loss",
    "validation_accuracy": "validation/accuracy",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "step_time_s": "speed/step_time_s",
    "tokens_per_s": "speed/tokens_per_s",
    "mfu": "speed/mfu",
    "data_wait_s": "speed/data_wait_s",
    "goodput": "goodput/ratio",
    **{f"lost_{cause}_s": f"goodput/lost_{cause}_s" for cause in CAUSES},
    "bad_steps": "health/bad_steps",
}


class TensorBoard:
    """Writes the metrics of a run.

    Args:
        folder: where TensorBoard looks.
        resumed_from: step that the run goes on from; what was written of later steps is hidden.
    """

    def __init__(self, folder: Path, resumed_from: int) -> None:
        self._folder = str(folder)
        self._writer = SummaryWriter(self._folder, purge_step=resumed_from + 1)

    def rewind(self, step: int) -> None:
        """Hides what was written of later steps."""
        self._writer.close()
        self._writer = SummaryWriter(self._folder, purge_step=step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Writes the values of a step."""
        for key, tag in TAGS.items():
            if key in values:
                self._writer.add_scalar(tag, values[key], step)

    def close(self) -> None:
        """Writes what is pending."""
        self._writer.close()


def write_scaling(
    folder: Path, runs: Mapping[str, Mapping[str, Mapping[int, float]]], figure: "Figure"
) -> None:
    """Writes curves over the number of devices, as scalars whose step is that number, and a figure.

    Args:
        folder: a folder below the one where TensorBoard looks.
        runs: name of a run, such as `simulated-llama2-70b`, to tag to devices to value. TensorBoard
            draws the same tag of several runs into one chart.
        figure: the picture of all of them, shown with the first run.
    """
    shutil.rmtree(folder, ignore_errors=True)  # one set of points, also when it is written again
    for name, curves in runs.items():
        with SummaryWriter(str(folder / name)) as writer:
            for tag, points in curves.items():
                for devices, value in sorted(points.items()):
                    writer.add_scalar(tag, value, devices)
            if name == next(iter(runs)):
                writer.add_figure("scaling/picture", figure, close=False)
