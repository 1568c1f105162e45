"""Errors of predicted memory against published measurements, by source."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from exajax.errors import InputError
from exajax.simulate.formulas import engine
from exajax.simulate.formulas.shared import weights
from exajax.simulate.formulas.shared.layouts import Layouts
from exajax.simulate.formulas.shared.results import Footprint
from exajax.simulate.formulas.shared.work import Work
from exajax.validate.row_memory import MeasuredMemory
from exajax.validate.tables import PublishedRow


@dataclass(frozen=True)
class MemoryCheck:
    """A published measurement of memory, and its prediction.

    Attributes:
        row: the published row.
        measured: the measurement.
        predicted_bytes: prediction of the same kind; None if it cannot be predicted.
        reason: why it cannot be predicted; else empty.
    """

    row: PublishedRow
    measured: MeasuredMemory
    predicted_bytes: float | None
    reason: str

    @property
    def error(self) -> float | None:
        """Predicted / measured - 1."""
        return self.predicted_bytes / self.measured.bytes - 1 if self.predicted_bytes else None

    def to_json(self) -> dict[str, Any]:
        """The row as JSON of `exajax validate`."""
        return {
            "row_id": self.row.row_id,
            "source": self.row.source,
            "kind": self.measured.kind,
            "predicted_bytes": self.predicted_bytes,
            "measured_bytes": self.measured.bytes,
            "error": self.error,
            "software": self.row.profile.name,
            "assumed": list(self.row.assumed),
            "unvalidated": list(self.row.unvalidated),
            "reason": self.reason,
        }


def check(row: PublishedRow) -> MemoryCheck | None:
    """The check of a row's memory; None if the row does not measure memory."""
    if row.memory is None:
        return None
    if row.recipe is None:
        return MemoryCheck(row, row.memory, None, row.reason)
    try:
        return MemoryCheck(row, row.memory, _predicted(row, row.memory.kind), "")
    except InputError as error:
        return MemoryCheck(row, row.memory, None, str(error))


def _predicted(row: PublishedRow, kind: str) -> float:
    recipe, machine = row.recipe, row.machine()
    assert recipe
    layouts = Layouts.of_recipes([recipe], flash=machine.chip.attention is not None)
    footprint = engine.memory(Work.of(recipe, machine), layouts, unlimited=True)
    if kind == "state":
        return _of_blocks(footprint, row, layouts)
    return float((footprint.total if kind == "total" else footprint.activations)[0])


def _of_blocks(footprint: Footprint, row: PublishedRow, layouts: Layouts) -> float:
    """Returns the bytes of parameters, gradients and optimizer, less what the tables have of them.

    What a stage in the middle of a pipeline has; sources that speak of it leave the tables out.
    """
    assert row.recipe
    halves = row.recipe.mesh.pipe > 1 and not row.recipe.model.tied
    held = weights.of_stage(row.recipe.model, layouts, tables=0.5 if halves else 1.0)
    inside, outside = sum(float(one.count[0]) for one in held[:2]), float(held[2].count[0])
    whole = float((footprint.parameters + footprint.gradients + footprint.optimizer)[0])
    return whole * inside / (inside + outside)


def summary(checked: Iterable[MemoryCheck]) -> list[dict[str, Any]]:
    """Statistics of the errors, by source and kind of measurement."""
    groups: dict[tuple[str, str], list[MemoryCheck]] = {}
    for one in checked:
        groups.setdefault((one.row.source, one.measured.kind), []).append(one)
    return [_group_summary(*key, rows) for key, rows in groups.items()]


def _group_summary(source: str, kind: str, rows: list[MemoryCheck]) -> dict[str, Any]:
    errors = [one.error for one in rows if one.error is not None]
    sizes = [abs(error) for error in errors]
    return {
        "source": source,
        "kind": kind,
        "rows": len(rows),
        "expressed": len(errors),
        "median_error": statistics.median(sizes) if sizes else None,
        "mape": statistics.fmean(sizes) if sizes else None,
        "bias": statistics.fmean(errors) if errors else None,
        "largest_error": max(sizes) if sizes else None,
    }
