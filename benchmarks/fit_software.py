"""Fits the factors of software profiles to measured steps, with the analytic engine.

    python benchmarks/fit_software.py [PROFILE ...] [--tables ../shared/published]

Only the rows that a profile names under `fitted_on` are used, and only the factors that it has are
fitted: least squares of relative errors, within `LIMITS`. Prints them as they stand in
`exajax/meshes/software/PROFILE.toml`, and writes benchmarks/data/fit_software.json: the fits,
and the errors of every source of the tables on rows that nothing was fitted on, with the factors
that the TOML files have. `--null` prints the efficiency of the null model instead.
"""

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from scipy.optimize import least_squares

from exajax.files.reading import read_toml
from exajax.machine import software
from exajax.machine.software import PROFILES, SoftwareProfile
from exajax.validate import step_times, tables
from exajax.validate.tables import PublishedRow

LIMITS = {
    "matmul": (1.0, 4.0, 1.0),
    "memory": (1.0, 4.0, 1.0),
    "shards": (1.0, 50.0, 1.0),
    "host": (0.1, 300.0, 1e-6),
    "host_collective": (0.1, 2000.0, 1e-6),
    "step": (0.1, 300.0, 1e-3),
}
"""Least and most of each factor, and its unit."""

FIELDS = {"host": "host_s", "host_collective": "host_collective_s", "step": "step_s"}

STARTS = (0.02, 0.1, 0.2, 0.4)
"""Shares of the way from the least to the most that fits begin at."""

OUT = Path(__file__).parent / "data" / "fit_software.json"

NULL_TABLE, NULL_ROWS = "megatron_sc21.csv", "sc21-t1-"


def fit(name: str, rows: Sequence[PublishedRow]) -> tuple[SoftwareProfile, float]:
    """Returns a profile with the factors that fit some rows best, and what is left on average."""
    values = read_toml(PROFILES / f"{name}.toml")
    free = [key for key in LIMITS if key in values]
    base = software.load(name, "software")

    def with_factors(factors: Sequence[float]) -> SoftwareProfile:
        changes = {
            FIELDS.get(key, key): float(value) * LIMITS[key][2]
            for key, value in zip(free, factors, strict=True)
        }
        return dataclasses.replace(base, **changes)

    machines = [row.machine() for row in rows]

    def errors(factors: Sequence[float]) -> list[float]:
        with_them = with_factors(factors)
        found = []
        for row, machine in zip(rows, machines, strict=True):
            assert row.recipe
            assert row.measured_s
            predicted_s = step_times.step_s(
                row.recipe, dataclasses.replace(machine, software=with_them)
            )
            found.append(predicted_s / row.measured_s - 1)
        return found

    least, most = zip(*(LIMITS[key][:2] for key in free), strict=True)
    best = min(
        (_from(share, errors, least, most) for share in STARTS), key=lambda found: found.cost
    )
    return with_factors(best.x), statistics.fmean(map(abs, best.fun))


def _from(share: float, errors: Any, least: Sequence[float], most: Sequence[float]) -> Any:
    """Fits from one start, since a device that waits for its host has a corner in its time."""
    start = [low + share * (high - low) for low, high in zip(least, most, strict=True)]
    return least_squares(errors, start, bounds=(least, most), x_scale="jac", diff_step=1e-2)


def shown(fitted: SoftwareProfile, name: str) -> str:
    """Returns the factors as lines of TOML."""
    values = read_toml(PROFILES / f"{name}.toml")
    units = {"host": "us", "host_collective": "us", "step": "ms"}
    lines = []
    for key, (*_, unit) in LIMITS.items():
        if key in values:
            number = f"{getattr(fitted, FIELDS.get(key, key)) / unit:.3f}"
            lines.append(
                f'{key} = ["{number} {units[key]}"' if key in units else f"{key} = [{number}"
            )
    return "\n".join(lines)


def null_efficiency(rows: Sequence[PublishedRow]) -> float:
    """Returns the efficiency with which the null model is right on average."""
    reached = []
    for row in rows:
        assert row.recipe
        assert row.measured_s
        at_all_s = step_times.null_step_s(row.recipe, row.machine(), 1.0)
        reached.append(at_all_s / row.measured_s)
    return statistics.fmean(reached)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("profiles", nargs="*", metavar="PROFILE", help="default: all")
    parser.add_argument("--tables", type=Path, default=Path("../shared/published"))
    parser.add_argument("--null", action="store_true", help="the null model's efficiency instead")
    args = parser.parse_args()
    if not args.tables.is_dir():
        sys.exit(f"--tables: there is no folder {args.tables}; give the folder of published tables")
    if args.null:
        rows = tables.read_table(args.tables / NULL_TABLE)
        print(null_efficiency([row for row in rows if row.row_id.startswith(NULL_ROWS)]))
        return
    rows = [row for path in sorted(args.tables.glob("*.csv")) for row in tables.read_table(path)]
    fits: dict[str, Any] = {}
    for name in args.profiles or software.names():
        chosen = [
            row
            for row in rows
            if row.recipe and row.row_id in software.load(name, "software").fitted_on
        ]
        fitted, left = fit(name, chosen)
        print(
            f"# {name}: {left:.1%} left on average over {len(chosen)} rows\n{shown(fitted, name)}"
        )
        fits[name] = {
            "fitted_on": fitted.fitted_on,
            "left": left,
            "factors": {key: getattr(fitted, FIELDS.get(key, key)) for key in LIMITS},
        }
    errors = step_times.summary(step_times.check(row) for row in rows)
    result = {"kind": "simulated against published", "profiles": fits, "sources": errors}
    if not args.profiles:
        OUT.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {OUT}")


if __name__ == "__main__":
    main()
