"""Tables of times for `meshes/fabrics/`: few points for many measurements, and their TOML."""

import numpy as np
from scipy.optimize import isotonic_regression

from exajax.machine.fabric import CollectiveTimes

TOLERANCE = 0.04
"""Points of a table are left away while the lines between the others stay this close to all."""


def fit_table(points: dict[float, float]) -> CollectiveTimes:
    """Returns few points of a curve that never falls, close to all of them in the logarithm."""
    x = np.log(sorted(points))
    y = isotonic_regression(np.log([points[size] for size in sorted(points)])).x
    kept = {0, len(x) - 1}
    while True:
        order = sorted(kept)
        gaps = np.abs(np.interp(x, x[order], y[order]) - y)
        if gaps.max() <= TOLERANCE:
            break
        kept.add(int(gaps.argmax()))
    order = sorted(kept)
    return CollectiveTimes(tuple(np.exp(x[order]).round()), tuple(np.exp(y[order]).round(10)))


def tables_toml(times: dict[str, dict[int, CollectiveTimes]], source: str) -> str:
    """Returns the tables of a fabric in TOML."""
    lines = ["", "# Of groups of so many devices: [bytes of the array, microseconds], ..."]
    for kind, by_ranks in times.items():
        lines += ["", f"[microseconds.{kind}]"]
        for ranks, table in by_ranks.items():
            pairs = zip(table.bytes, table.seconds, strict=True)
            points = ", ".join(f"[{size:.0f}, {seconds * 1e6:.4g}]" for size, seconds in pairs)
            lines.append(f'{ranks} = [[{points}], "{source}"]')
    return "\n".join(lines) + "\n"
