"""Step times of published rows, which measure a time, or a rate of tokens, samples or steps."""

import re

from exajax.machine.published_columns import Columns, InexpressibleError, positive_number

OF_A_STEP = re.compile(
    r"(iteration|iter|step)(_?time)?(_(s|ms|us))?|(seconds|s|ms|us|time)_per_(iteration|iter|step)"
)
"""Names of metrics that are the time of a step."""

SECONDS = {"s": 1.0, "sec": 1.0, "seconds": 1.0, "ms": 1e-3, "us": 1e-6}
"""Seconds of each unit of time; `/step` or `/iteration` may follow the unit."""

RATE = re.compile(
    r"(token|sequence|sample|step|iteration)s?(?:_per_|/)(?:s|sec|second)"
    r"(?:(_per_|/)(?:gpu|device|chip|tile|gcd|accelerator))?"
)
"""A rate as metric (`tokens_per_s_per_gpu`) or unit (`tokens/s/GPU`)."""

OF_A_STEP_HAS = {
    "token": ("global_batch", "seq"),
    "sequence": ("global_batch",),
    "sample": ("global_batch",),
    "step": (),
    "iteration": (),
}
"""Columns whose product is the number of tokens, samples or steps in a step."""


def measures_a_step(values: Columns) -> bool:
    """Whether a row measures the time of a step, or a rate from which it follows."""
    return _is_time(values) or _rate(values) is not None


def measured_s(values: Columns) -> float:
    """Returns the measured seconds of a step: `derived_iter_s`, or what follows from the metric.

    A step takes what it has over the rate: tokens, or sequences, of the global batch. What follows
    from FLOP/s and MFU needs a recipe: see `row_flops`.

    Raises:
        InexpressibleError: the row measures something else, or lacks what the time follows from.
    """
    derived, measured = (
        positive_number(values, "derived_iter_s"),
        positive_number(values, "measured_value"),
    )
    if derived is not None:
        return derived
    metric, unit = (values.get(column, "").strip() for column in ("measured_metric", "unit"))
    if measured is None or not measures_a_step(values):
        what = f": it measures {metric} in {unit or 'no unit'}" if metric and measured else ""
        raise InexpressibleError(f"it has no step time{what}")
    if _is_time(values):
        return measured * SECONDS[_time_unit(unit.lower())]
    what, of_a_device = _rate(values) or ("", False)
    seconds = 1 / measured
    for column in (*OF_A_STEP_HAS[what], *(("num_gpus",) if of_a_device else ())):
        size = positive_number(values, column)
        if size is None:
            raise InexpressibleError(
                f"it has no step time: it measures {metric or unit}, and its {column} is unknown"
            )
        seconds = seconds / size if column == "num_gpus" else seconds * size
    return seconds


def _text(values: Columns, column: str) -> str:
    return values.get(column, "").strip().lower()


def _time_unit(unit: str) -> str:
    return re.sub(r"/(step|iteration|iter)$", "", unit)


def _is_time(values: Columns) -> bool:
    metric, unit = _text(values, "measured_metric"), _text(values, "unit")
    return bool(OF_A_STEP.fullmatch(metric)) and _time_unit(unit) in SECONDS


def _rate(values: Columns) -> tuple[str, bool] | None:
    """What a row's rate counts, and whether it is of one device; None if it is not a rate."""
    texts = (_text(values, column) for column in ("unit", "measured_metric"))
    found = [match for match in map(RATE.fullmatch, texts) if match]
    if not found:
        return None
    return found[0][1], any(match[2] for match in found)
