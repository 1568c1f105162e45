"""Fits `exajax.simulate.matmul` to measured matrix products, and writes it into the chips.

The measurements are those of ai-dynamo/aiconfigurator (Apache-2.0), bf16, one CSV file a chip with
m, n, k and the latency in ms; they are not part of this repository.

    python benchmarks/fit_kernels.py --measurements ../shared/measurements
"""

import argparse
import csv
import gzip
import json
import re
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from exajax.files.reading import read_toml
from exajax.machine.chip import CHIPS, TILE_SIZES, Chip, Tiles
from exajax.machine.chip_file import read_chip
from exajax.simulate.matmul import Products, times

HERE = Path(__file__).parent
FILES = {
    name: f"gemm_{name.removesuffix('-80')}_sxm_bf16.csv.gz"
    for name in ("a100-80", "h100", "h200", "b200")
}
SEED, TRAINED, SAMPLE = 0, 0.7, 6000
"""Of the split; share of the rows that may be fitted to, and how many of them are."""

DERIVED = {
    "a100-40": ("a100-80", 108, 1.0, "the same processor"),
    "gh200": (
        "h100", 132, 828.6 / 794.5,
        "the same processor, faster by 828.6 / 794.5 TFLOP/s, the most that "
        "stas00/ml-engineering reached on each",
    ),
    "pvc-tile": (
        "a100-80", 56, (256 / 344.064) / (271.2 / 312),
        "no products of this chip were measured one by one; the most that is reached is 256 of "
        "344 TFLOP/s (docs.alcf.anl.gov/aurora/node-performance-overview) where it is 271.2 of "
        "312 there (stas00/ml-engineering); cores are Xe-cores of 8 vector engines",
    ),
    "mi250x-gcd": (
        "a100-80", 110, 1.0,
        "assumed to reach the same fractions: no products of this chip were measured; cores are "
        "compute units (olcf/olcf-user-docs, systems/frontier_user_guide.rst)",
    ),
    "tpu-v5p": (
        "a100-80", 8, 1.0,
        "assumed to reach the same fractions: no products of this chip were measured; cores are "
        "matrix units, 4 of each of 2 TensorCores (docs.cloud.google.com/tpu/docs/v5p)",
    ),
}  # fmt: skip
"""Chip: whose fit it takes, its cores, factor of the fractions within a tile, and why. Its products
reach no more of the bandwidth than its other kernels."""

BINS = {
    "all": lambda p: p.flops > 0,
    "above 1 GFLOP": lambda p: p.flops > 1e9,
    "1 to 10 GFLOP": lambda p: (p.flops > 1e9) & (p.flops <= 1e10),
    "10 to 100 GFLOP": lambda p: (p.flops > 1e10) & (p.flops <= 1e11),
    "above 100 GFLOP": lambda p: p.flops > 1e11,
    "training (m from 4096, n and k from 1024)": lambda p: (
        (p.m >= 4096) & (p.n >= 1024) & (p.k >= 1024)
    ),
}

LIMITS = {
    "prologue": (1, 1000),
    "rounding": (0.01, 1),
    "memory": (0.3, 1),
    "spread": (0.1, 10),
    "overlap": (1, 12),
    "launch_s": (1e-7, 1e-5),
    "split_s": (1e-8, 1e-4),
    "slowdown": (0.001, 1),
    # Few measured products are larger: a slowdown that only began there would have no end.
    "slowdown_flops": (1e11, 3e13),
}
"""Between which a coefficient is looked for."""

START = Tiles(
    cores=1, fractions=tuple(np.linspace(0.8, 0.1, len(TILE_SIZES))), prologue=150.0, rounding=0.5,
    memory=0.85, spread=1.4, overlap=3.0, launch_s=2.5e-6, split_s=2e-6, slowdown=0.1,
    slowdown_flops=1e12,
)  # fmt: skip


def load(name: str) -> Chip:
    """Returns a chip as it is described now."""
    return read_chip(name, read_toml(CHIPS / f"{name}.toml"))


def read(path: Path) -> tuple[Products, np.ndarray]:
    """Returns the products of a file, and how long each took in seconds."""
    with gzip.open(path, "rt") as file:
        rows = [tuple(map(float, row.values())) for row in csv.DictReader(file)]
    m, n, k, latency_ms = np.array(rows).T
    return Products.of(1, m, n, k, 2 * (m * k + k * n + m * n)), latency_ms * 1e-3


def pick(what: Products, rows: np.ndarray) -> Products:
    """Returns some of the products."""
    return Products(*(getattr(what, entry.name)[rows] for entry in fields(what)))


def to_vector(tiles: Tiles) -> np.ndarray:
    """Returns logarithms of coefficients."""
    return np.log([*tiles.fractions, *(getattr(tiles, name) for name in LIMITS)])


def to_tiles(vector: np.ndarray, cores: int) -> Tiles:
    """Returns the coefficients again."""
    values = np.exp(vector)
    fractions, rest = values[: len(TILE_SIZES)], values[len(TILE_SIZES) :]
    scalars = dict(zip(LIMITS, map(float, rest), strict=True))
    return Tiles(cores=cores, fractions=tuple(map(float, fractions)), **scalars)


def fit(what: Products, measured_s: np.ndarray, chip: Chip) -> Tiles:
    """Returns the coefficients that price products best, outliers counting less."""
    chosen = np.random.default_rng(SEED).permutation(len(measured_s))[:SAMPLE]
    cores = chip.xla_target["core_count"]
    what, logs = pick(what, chosen), np.log(measured_s[chosen])
    weight = np.where(what.flops > 1e9, 1.0, 0.5)

    def errors(vector: np.ndarray) -> np.ndarray:
        return weight * (np.log(price(what, to_tiles(vector, cores), chip)) - logs)

    limits = np.log([(0.02, 1.0)] * len(TILE_SIZES) + list(LIMITS.values())).T
    found = least_squares(
        errors, to_vector(START), bounds=limits, loss="soft_l1", f_scale=0.05, max_nfev=80
    )
    return rounded(to_tiles(found.x, cores))


def rounded(tiles: Tiles) -> Tiles:
    """Returns the coefficients to three digits, as they are written down."""
    short = {name: float(f"{getattr(tiles, name):.3g}") for name in LIMITS}
    return replace(tiles, fractions=tuple(float(f"{x:.3g}") for x in tiles.fractions), **short)


def price(what: Products, tiles: Tiles, chip: Chip) -> np.ndarray:
    """Returns the predicted seconds of products in bf16."""
    return times(what, tiles, chip.peak("bf16"), chip.memory_bandwidth).total


def errors_of(what: Products, measured_s: np.ndarray, tiles: Tiles, chip: Chip) -> dict:
    """Returns median and 90th percentile of |predicted / measured - 1|, in percent, by bin."""
    predicted = price(what, tiles, chip)
    found = {}
    for name, inside in BINS.items():
        rows = inside(what)
        error = np.abs(predicted[rows] / measured_s[rows] - 1) * 100
        median, high = np.percentile(error, [50, 90])
        bias = np.median(predicted[rows] / measured_s[rows] - 1) * 100
        found[name] = {
            "rows": int(rows.sum()),
            "median_percent": round(float(median), 2),
            "p90_percent": round(float(high), 2),
            "bias_percent": round(float(bias), 2),
        }
    return found


def memory_fraction(what: Products, measured_s: np.ndarray, chip: Chip) -> float:
    """Returns what products that wait for memory reach: the upper tenth, from 200 MB on."""
    rows = (what.bytes > 2e8) & (what.flops < 50 * what.bytes)
    reached = what.bytes[rows] / measured_s[rows] / chip.memory_bandwidth
    return round(float(np.percentile(reached, 90)), 3)


def write(name: str, tiles: Tiles, source: str) -> None:
    """Writes coefficients into a chip's file, over those that are there."""
    path = CHIPS / f"{name}.toml"
    lines = [
        f"source = {json.dumps(source)}",
        f'cores = [{tiles.cores}, "core_count of the chip, or as the source says"]',
    ]
    lines.append(f"fractions = [{', '.join(f'{x:.3g}' for x in tiles.fractions)}]")
    lines += [f"{scalar} = {getattr(tiles, scalar):.3g}" for scalar in LIMITS]
    block = "[matmul.tiles] # coefficients of exajax/simulate/matmul.py\n" + "\n".join(lines)
    text, written = re.subn(
        r"\[matmul.*?\](?=[ \n]).*?(?=\n\n)", lambda _: block, path.read_text(), flags=re.DOTALL
    )
    assert written == 1, f"{path} has no [matmul] or more than one"
    path.write_text(text)


def write_memory(name: str, fraction: float, source: str) -> None:
    """Writes what kernels reach of the memory bandwidth into a chip's file."""
    path = CHIPS / f"{name}.toml"
    line = f"efficiency = [{fraction}, {json.dumps(source)}]"
    text = re.sub(r"(\[memory\].*?\n)efficiency = \[[^\n]*", lambda found: found[1] + line,
                  path.read_text(), count=1, flags=re.DOTALL)  # fmt: skip
    path.write_text(text)


def held_out(what: Products) -> dict[str, np.ndarray]:
    """Returns which rows are left out: some of them, or all with some of the weights' shapes."""
    random = np.random.default_rng(SEED)
    rows = random.random(len(what.m)) >= TRAINED
    pairs = what.n * 1e6 + what.k
    families = np.unique(pairs)
    return {
        "rows": rows,
        "families": np.isin(pairs, families[random.random(len(families)) >= TRAINED]),
    }


def fit_chip(name: str, folder: Path) -> tuple[Tiles, dict]:
    """Fits a chip that was measured and writes it.

    Returns:
        The coefficients, and the errors on what was left out of the fit.
    """
    chip, file = load(name), FILES[name]
    what, measured_s = read(folder / file)
    fits, report = {}, {"file": file, "rows": len(measured_s)}
    for kind, out in held_out(what).items():
        fits[kind] = fit(pick(what, ~out), measured_s[~out], chip)
        errors = errors_of(pick(what, out), measured_s[out], fits[kind], chip)
        report[f"left out by {kind}"] = errors
        shown = (f"{b}: {e['median_percent']}/{e['p90_percent']}" for b, e in errors.items())
        print(name, kind, *shown, sep="  ", flush=True)
    data = f"ai-dynamo/aiconfigurator, {file.removesuffix('.gz')}"
    write(
        name,
        fits["rows"],
        f"fitted by benchmarks/fit_kernels.py to {TRAINED:.0%} of the bf16 matrix products of "
        f"{data}, split seed {SEED}; other types of element are derived: their own peak and bytes",
    )
    write_memory(
        name,
        memory_fraction(what, measured_s, chip),
        "what the best tenth of matrix products that wait for memory reached, from 200 MB on, "
        + data,
    )
    return fits["rows"], report


def derive(name: str, fits: dict[str, Tiles]) -> None:
    """Writes a chip whose coefficients are another one's."""
    origin, cores, factor, why = DERIVED[name]
    tiles = replace(
        fits[origin],
        cores=cores,
        fractions=tuple(min(1.0, x * factor) for x in fits[origin].fractions),
        memory=min(fits[origin].memory, load(name).memory_efficiency),
    )
    write(name, rounded(tiles), f"derived from the fit of {origin}: {why}")


def main() -> None:
    """Fits every chip that was measured, and writes all chips and the errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = HERE.parent.parent / "shared/measurements"
    parser.add_argument("--measurements", type=Path, default=default)
    folder = parser.parse_args().measurements
    if not folder.is_dir():
        raise SystemExit(f"{folder} is not there: give the measurements with --measurements")
    print("median / 90th percentile of |predicted / measured - 1| of what was left out, in percent")
    fits, chips = {}, {}
    for name in FILES:
        fits[name], chips[name] = fit_chip(name, folder)
    for name in DERIVED:
        derive(name, fits)
    report = {"seed": SEED, "fitted_share": TRAINED, "rows_fitted": SAMPLE, "chips": chips}
    (HERE / "data" / "fit_kernels.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
