"""Errors of predicted step times against published ones, by source, and those of a null model."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import spearmanr

from exajax.errors import InputError
from exajax.machine.cluster import Cluster
from exajax.recipe.recipe import Recipe
from exajax.simulate.formulas import engine
from exajax.simulate.formulas.shared.layouts import Layouts
from exajax.simulate.formulas.shared.work import Work
from exajax.validate.tables import PublishedRow

NULL_EFFICIENCY = 0.4493
"""Of the null model: the mean over the ten rows of table 1 of arXiv:2104.04473
(`benchmarks/fit_software.py --null`)."""

Price = Callable[[Recipe, Cluster], float]
"""Predicts the seconds of a step; raises `InputError` where it cannot."""


@dataclass(frozen=True)
class StepTimeCheck:
    """A published step time, and its prediction.

    Attributes:
        row: the measurement.
        predicted_s: seconds of a step, None where it cannot be predicted.
        null_s: the same by the null model.
        calibrated: whether the row's software profile was fitted on it.
        reason: why nothing was predicted, else empty.
    """

    row: PublishedRow
    predicted_s: float | None
    null_s: float | None
    calibrated: bool
    reason: str

    @property
    def error(self) -> float | None:
        """Predicted / measured - 1."""
        return _error(self.predicted_s, self.row.measured_s)

    @property
    def null_error(self) -> float | None:
        """Error of the null model: its prediction / measured - 1."""
        return _error(self.null_s, self.row.measured_s)

    def to_json(self) -> dict[str, Any]:
        """The row as JSON of `exajax validate`."""
        return {
            "row_id": self.row.row_id,
            "source": self.row.source,
            "predicted_s": self.predicted_s,
            "measured_s": self.row.measured_s,
            "error": self.error,
            "null_s": self.null_s,
            "software": self.row.profile.name,
            "used_for_calibration": self.calibrated,
            "assumed": list(self.row.assumed),
            "unvalidated": list(self.row.unvalidated),
            "reason": self.reason,
        }


def _error(predicted_s: float | None, measured_s: float | None) -> float | None:
    return predicted_s / measured_s - 1 if predicted_s and measured_s else None


def check(row: PublishedRow, price: Price | None = None) -> StepTimeCheck:
    """The check of a row's step time.

    Args:
        row: the published row.
        price: predicts a step time; by default the analytic engine.
    """
    if row.reason or row.recipe is None:
        return StepTimeCheck(row, None, None, False, row.reason)
    try:
        machine = row.machine()
        _check_slices(row.recipe, machine)
        least_s = least_step_s(row.recipe, machine)
        if row.measured_s and row.measured_s < least_s:
            reason = f"at the peak of its devices its products alone take {least_s:.3g} s"
            return StepTimeCheck(row, None, None, False, reason)
        predicted_s = (price or step_s)(row.recipe, machine)
        null_s = null_step_s(row.recipe, machine)
    except InputError as error:
        return StepTimeCheck(row, None, None, False, str(error))
    calibrated = row.row_id in machine.software.fitted_on
    return StepTimeCheck(row, predicted_s, null_s, calibrated, "")


def _check_slices(recipe: Recipe, machine: Cluster) -> None:
    """Raises an `InputError` for a mesh over several slices: of what joins them nothing is said."""
    if machine.network.topology == "torus-3d" and recipe.mesh.devices > machine.devices:
        raise InputError(
            "num_gpus",
            f"{recipe.mesh.devices} devices are more than a slice of {machine.name} has",
            f"give at most {machine.devices}",
        )


def least_step_s(recipe: Recipe, machine: Cluster) -> float:
    """Seconds of a step below which a measurement is impossible.

    6 x parameters x tokens: nothing recomputed, and no attention, which sources count differently.
    """
    flops = 6.0 * recipe.tokens * recipe.model.matmul_parameters
    return flops / (recipe.mesh.devices * machine.chip.peak(recipe.precision))


def step_s(recipe: Recipe, machine: Cluster) -> float:
    """Seconds of a step by the analytic engine."""
    layouts = Layouts.of_recipes([recipe], flash=machine.chip.attention is not None)
    times, _ = engine.step(Work.of(recipe, machine), layouts)
    return float(times.step_s[0])


def null_step_s(recipe: Recipe, machine: Cluster, efficiency: float = NULL_EFFICIENCY) -> float:
    """Seconds of a step by the null model, which any other has to beat.

    F / (n x e x peak) x (1 + (p - 1) / (v x m)): all FLOPs, recomputed ones too, at one efficiency
    e of all devices, and the bubble of a pipeline of p stages with v parts and m micro-batches.
    F counts scores that the causal mask hides too, as the rows that e is from (equation 3 of
    arXiv:2104.04473).
    """
    flops = recipe.model.step_flops(recipe.global_batch, recipe.seq, recipe.remat, scores=1.0)
    peak = machine.chip.peak(recipe.precision)
    bubble = (recipe.mesh.pipe - 1) / (recipe.interleave * recipe.micro_batches)
    return flops / (recipe.mesh.devices * efficiency * peak) * (1 + bubble)


def summary(checked: Iterable[StepTimeCheck]) -> list[dict[str, Any]]:
    """Statistics of the errors by source, over rows that no software profile was fitted on."""
    by_source: dict[str, list[StepTimeCheck]] = {}
    for one in checked:
        by_source.setdefault(one.row.source, []).append(one)
    return [_source_summary(source, rows) for source, rows in by_source.items()]


def _source_summary(source: str, rows: Sequence[StepTimeCheck]) -> dict[str, Any]:
    predicted = [row for row in rows if row.error is not None]
    held_out = [row for row in predicted if not row.calibrated]
    errors = [row.error for row in held_out if row.error is not None]
    null = [row.null_error for row in held_out if row.null_error is not None]
    return {
        "source": source,
        "software": sorted({row.row.profile.name for row in rows}),
        "unvalidated": sorted({what for row in rows for what in row.row.unvalidated}),
        "rows": len(rows),
        "expressed": len(predicted),
        "calibrated": len(predicted) - len(held_out),
        **_statistics(errors, ""),
        **_statistics(null, "null_"),
        "rank_correlation": _rank_correlation(held_out),
    }


def _statistics(errors: Sequence[float], prefix: str) -> dict[str, float | None]:
    if not errors:
        return {f"{prefix}{name}": None for name in ("median_error", "mape", "bias")}
    sizes = [abs(error) for error in errors]
    return {
        f"{prefix}median_error": statistics.median(sizes),
        f"{prefix}mape": statistics.fmean(sizes),
        f"{prefix}bias": statistics.fmean(errors),
    }


def _rank_correlation(rows: Sequence[StepTimeCheck]) -> float | None:
    """Spearman's rank correlation of predicted and measured step times; None below 3 times."""
    if len({row.row.measured_s for row in rows}) < 3:
        return None
    predicted, measured = [r.predicted_s for r in rows], [r.row.measured_s for r in rows]
    return float(spearmanr(predicted, measured).statistic)
