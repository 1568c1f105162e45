"""Quantities with units: parsed from machine descriptions, and formatted for people."""

import math
import re

from exajax.files.reading import Malformed, shown

PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18} | {
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40,
}  # fmt: skip
SMALL_PREFIXES = {"": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
"""Prefixes of seconds: nobody means a terasecond, or a millibyte."""

EXAMPLES = {
    "FLOP/s": "989 TFLOP/s",
    "B/s": "3.35 TB/s",
    "B": "80 GB",
    "s": "2.5 us",
    "W": "700 W",
}
"""Every unit that `parse` knows, with a well-formed quantity of it."""


def parse(text: str, unit: str, example: str | None = None) -> float:
    """The value, in the base unit, of a positive quantity such as `3.35 TB/s`.

    Args:
        text: a number, a prefix and the unit. Seconds take m, u or n; any other unit k to E, or
            Ki to Ti.
        unit: the unit that is expected, one of `EXAMPLES`.
        example: a well-formed quantity, quoted in the error.

    Raises:
        Malformed: the text is not a positive number with that unit.
    """
    pattern = r"\s*([0-9.]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z]*?)" + re.escape(unit)
    match = re.fullmatch(pattern, text, re.ASCII)
    prefixes = SMALL_PREFIXES if unit == "s" else PREFIXES
    if not match or match[2] not in prefixes or not _is_positive(match[1]):
        raise Malformed(
            "",
            f"{shown(text)} is not a figure in {unit}",
            f'write it as "{example or EXAMPLES[unit]}"',
        )
    return float(match[1]) * prefixes[match[2]]


def _is_positive(number: str) -> bool:
    try:
        return 0 < float(number) < math.inf
    except ValueError:
        return False


def show(value: float, unit: str, digits: int = 3) -> str:
    """A quantity as text, with the SI prefix that fits: `show(3.35e12, "B/s")` is `3.35 TB/s`."""
    if value == 0:
        return f"0 {unit}"
    big = {prefix: PREFIXES[prefix] for prefix in ("E", "P", "T", "G", "M", "k", "")}
    for prefix, size in (SMALL_PREFIXES if unit == "s" else big).items():
        if abs(value) >= size * 0.9995:
            return f"{value / size:.{digits}g} {prefix}{unit}"
    return f"{value:.{digits}g} {unit}"
