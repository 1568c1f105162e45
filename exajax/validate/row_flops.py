"""Seconds of a step that follow from published FLOP/s or MFU, by what their source counts as FLOPs.

Sources that publish both a time and a rate show what they count. Of the tables at hand, rate x time
is within 1% of the FLOPs of the convention that `OF_SOURCE` gives them (llm-foundry's smallest
models 2.3%); the masked half of attention alone changes them by 28% for llama3-8b at 8,192 tokens.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from exajax.errors import nearest
from exajax.files.reading import Malformed, shown
from exajax.machine.published_columns import Columns, InexpressibleError, positive_number
from exajax.recipe.recipe import Recipe

COLUMN = "flops_convention"
"""Column that names what the row's source counts; one of `CONVENTIONS`."""


@dataclass(frozen=True)
class Convention:
    """What a source counts as the FLOPs of a step.

    Attributes:
        words: the same for people.
        scores: share of the scores of attention that count: 0.5 where those that the causal mask
            hides do not.
        recomputed: whether what is recomputed for the backward pass counts.
    """

    words: str
    scores: float
    recomputed: bool

    def step_flops(self, recipe: Recipe) -> float:
        """Returns the FLOPs of a step of a recipe, as the source counts them."""
        model = recipe.model
        flops = model.step_flops(recipe.global_batch, recipe.seq, scores=self.scores)
        if not self.recomputed or recipe.remat == "none":
            return flops
        attention = 4.0 * recipe.tokens * model.layers * model.width * recipe.seq * self.scores
        if recipe.remat == "attention":
            return flops + attention
        if recipe.remat != "full":
            raise InexpressibleError(
                f"it has no step time: which of its FLOPs count as recomputed is unknown, with "
                f"remat {recipe.remat}"
            )
        blocks = model.matmul_parameters - model.width * model.padded_vocab
        return flops + attention + 2.0 * recipe.tokens * blocks


CONVENTIONS = {
    "causal": Convention("scores that the mask shows, nothing recomputed", 0.5, False),
    "palm": Convention("all scores, nothing recomputed (PaLM, appendix B)", 1.0, False),
    "hardware": Convention(
        "all scores, and what is recomputed (arXiv:2104.04473, equation 3)", 1.0, True
    ),
}

HARDWARE = re.compile(r"(?:hw|hardware)[ _].*|hfu")
"""Metrics that name their convention themselves."""

OF_SOURCE = {
    "MaxText": "palm",
    "NeMo": "palm",
    "llm-foundry": "palm",
    "Korthikanti": "palm",
    "Narayanan": "hardware",
    "BLOOM": "hardware",
}
"""What sources count, by a part of their names."""

FLOP_RATE = re.compile(r"(?:(?:model|hw|hardware)[ _])?([tp])flops?(?:/s|_per_s)?(?P<device>.*)")
"""A rate of FLOPs as metric (`model_tflops_per_gpu`) or unit (`TFLOP/s/chip`)."""

OF_A_DEVICE = re.compile(r"(?:_per_|/| per )(?:gpu|device|chip|tile|gcd|accelerator)")
SIZE = {"t": 1e12, "p": 1e15}
SHARE = re.compile(r"(?:model_|hardware_)?(?:mfu|hfu)(?:_percent)?|(?:model|hardware)_flops_util.*")
UNITS_OF_SHARES = {"%": 0.01, "percent": 0.01, "": 1.0, "fraction": 1.0, "1": 1.0}


def counts_flops(values: Columns) -> bool:
    """Returns whether the row measures FLOP/s, or the share of a device's peak that they are."""
    return bool(SHARE.fullmatch(_text(values, "measured_metric"))) or _rate(values) is not None


def measured_s(values: Columns, recipe: Recipe, peak: Callable[[], float]) -> tuple[float, str]:
    """Returns the seconds of a step, and by which convention they follow, in words.

    Args:
        values: the row's columns; it measures FLOPs.
        recipe: what it ran.
        peak: returns the peak FLOP/s of one of its devices, which shares are of.

    Raises:
        InexpressibleError: what it counts as FLOPs, or its rate, is unknown.
    """
    convention, by = _convention(values)
    rate = _flops_per_s(values, recipe.mesh.devices, peak)
    return convention.step_flops(recipe) / rate, f"FLOPs = {convention.words} ({by})"


def check(values: Columns) -> None:
    """Raises `Malformed` if a row names a convention that there is not."""
    named = (values.get(COLUMN) or "").strip()
    if named and named not in CONVENTIONS:
        raise Malformed(COLUMN, f"is {shown(named)}", nearest(named[:99], list(CONVENTIONS)))


def _convention(values: Columns) -> tuple[Convention, str]:
    """Returns what the row's FLOPs are, and who says so."""
    named, metric = (values.get(COLUMN) or "").strip(), _text(values, "measured_metric")
    if named:
        return CONVENTIONS[named], COLUMN
    if HARDWARE.fullmatch(metric):
        return CONVENTIONS["hardware"], f"as {metric} says"
    found = (name for part, name in OF_SOURCE.items() if part in values["source"])
    if name := next(found, ""):
        return CONVENTIONS[name], "as its source's own times show"
    raise InexpressibleError(
        f"it has no step time: it measures {metric}, and which FLOPs count is unknown; give a "
        f"column {COLUMN} with {', '.join(CONVENTIONS)}"
    )


def _flops_per_s(values: Columns, devices: int, peak: Callable[[], float]) -> float:
    """Returns the FLOP/s of all devices."""
    metric, unit = _text(values, "measured_metric"), _text(values, "unit")
    value = positive_number(values, "measured_value")
    if value is None:
        raise InexpressibleError("it has no step time: its measured_value is unknown")
    if SHARE.fullmatch(metric):
        share = value * UNITS_OF_SHARES.get(unit, 0.0)
        if not 0 < share <= 1:
            raise InexpressibleError(
                f"it has no step time: {metric} {value:g} in {unit or 'no unit'} is no share of a "
                "peak; give it in %, or a fraction"
            )
        return share * devices * peak()
    size, of_a_device = _rate(values) or ("t", False)
    if not of_a_device:
        raise InexpressibleError(
            f"it has no step time: whether its {metric} in {unit or 'no unit'} is of a device or "
            "of all is unknown"
        )
    return value * SIZE[size] * devices


def _rate(values: Columns) -> tuple[str, bool] | None:
    """Returns the prefix of the row's FLOP/s, `t` or `p`, and whether it is of a device."""
    texts = (_text(values, column) for column in ("unit", "measured_metric"))
    found = [match for match in map(FLOP_RATE.fullmatch, texts) if match]
    if not found:
        return None
    return found[0][1], any(OF_A_DEVICE.fullmatch(match["device"]) for match in found)


def _text(values: Columns, column: str) -> str:
    return (values.get(column) or "").strip().lower()
