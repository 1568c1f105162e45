"""One device in TOML: its roofs, how much of them kernels reach, and what XLA is told of it."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from exajax.errors import InputError, nearest
from exajax.figures import Curve, Table, read_toml

CHIPS = Path(__file__).parent / "meshes" / "chips"

XLA_FACTS = {
    "name",
    "compute_capability",
    "core_count",
    "fpus_per_core",
    "clock_rate_ghz",
    "l2_cache_size",
    "shared_memory_per_core",
    "shared_memory_per_block_optin",
    "pcie_bandwidth",
    "active_links",
}
"""Fields of `[xla_target]`: what XLA must be told of a chip that is not attached."""


TILE_SIZES = (32768, 16384, 8192, 4096, 2048, 1024, 512)
"""Elements of the tiles whose `Tiles.fractions` a chip gives, in this order."""

ByHead = dict[bool, dict[int, tuple[float, ...]]]
"""Fractions of the peak by whether there is a causal mask, and by size of head."""


@dataclass(frozen=True)
class Tiles:
    """How a device multiplies matrices: the coefficients of `exajax.simulate.matmul`.

    Attributes:
        cores: units that each work on one tile at a time.
        fractions: of the peak that a core reaches within a tile of each of `TILE_SIZES`.
        prologue: elements of the contracted dimension that starting and ending a tile costs.
        rounding: share of a last round of tiles that is waited for though it is not full.
        memory: fraction of the bandwidth that products reach.
        spread: how much of the memory one tile for every core uses; 1 and more: all.
        overlap: how well compute and memory overlap, from 1 (one after the other) up.
        launch_s: time of a product without work.
        split_s: time of adding up the parts of a product whose contracted dimension is cut.
        slowdown: how much slower large products run, which draw the most power.
        slowdown_flops: FLOPs of a product that is slower by half of it.
    """

    cores: int
    fractions: tuple[float, ...]
    prologue: float
    rounding: float
    memory: float
    spread: float
    overlap: float
    launch_s: float
    split_s: float
    slowdown: float
    slowdown_flops: float


@dataclass(frozen=True)
class Flash:
    """Fraction of the peak that fused attention reaches.

    Attributes:
        lengths: of the sequence, ascending.
        forward: fractions at each length.
        backward: the same of the backward pass.
    """

    lengths: tuple[float, ...]
    forward: ByHead
    backward: ByHead


@dataclass(frozen=True)
class Chip:
    """One device.

    Attributes:
        name: short name, such as `h100`.
        title: what it is called in full.
        platform: `cuda` or `cpu`: which of XLA's compilers makes its programs.
        proxy: the chip that its programs are compiled for in its place, None for itself: XLA's
            compiler of no other platform works without a device. Its roofs price the program.
        device_kinds: what JAX calls it when it is attached.
        peak_flops: dense matrix FLOP/s by precision (`fp32`, `bf16`, `fp8`).
        memory_bytes: capacity.
        memory_bandwidth: peak bytes/s.
        memory_efficiency: fraction of it that kernels reach.
        matmul: how matrix products use the peak: by their sizes, or for a chip of which less is
            known by their FLOPs alone.
        attention: fraction of the peak that fused attention reaches, None if unknown.
        launch_s: the least time an operation takes.
        xla_target: facts that XLA compiles for, without which nothing can be compiled ahead.
        sources: where each figure comes from.
        power_w: rated power of a device, None if unknown.
    """

    name: str
    title: str
    platform: str
    proxy: str | None
    device_kinds: tuple[str, ...]
    peak_flops: dict[str, float]
    memory_bytes: float
    memory_bandwidth: float
    memory_efficiency: float
    matmul: Tiles | Curve
    attention: Flash | None
    launch_s: float
    xla_target: dict[str, Any]
    sources: dict[str, str] = field(repr=False)
    power_w: float | None = None

    @property
    def host_bandwidth(self) -> float:
        """Bytes/s of copies to and from the memory of the host.

        What XLA is told of the bus of the chip that it compiles for, a closer link (GH200) or not;
        a CPU device shares the memory.
        """
        return float(self.xla_target.get("pcie_bandwidth", self.memory_bandwidth))

    @property
    def calibration(self) -> str:
        """Where what its kernels reach comes from."""
        where = "matmul.tiles.source" if isinstance(self.matmul, Tiles) else "matmul.efficiency"
        return self.sources[where]

    def peak(self, precision: str) -> float:
        """Returns the dense peak at a precision, FLOP/s; raises `InputError` if it is not known."""
        precision = precision.removeprefix("pure-")  # says what the parameters are kept in
        if precision not in self.peak_flops:
            raise InputError(
                "--precision",
                f"{self.name} has no peak for {precision}",
                f"give --precision {' or '.join(self.peak_flops)}, or add it to the chip's [peak]",
            )
        return self.peak_flops[precision]


def read_chip(name: str, table: Table) -> Chip:
    """Reads a chip; raises an `InputError` that names the field that is missing or impossible."""
    peak, memory, matmul = table.part("peak"), table.part("memory"), table.part("matmul")
    proxy: str | None = None
    target = table.values.get("xla_target", {})
    if "compiled_as" in table.values:
        proxy, values = _other(table, "compiled_as")
        target = values.get("xla_target", {})
    return Chip(
        name=name,
        title=table.text("title"),
        platform=str(table.values.get("platform", "cuda")),
        proxy=proxy,
        device_kinds=tuple(table.values.get("device_kinds", ())),
        peak_flops={key: peak.figure(key, "FLOP/s") for key in peak.values},
        memory_bytes=memory.figure("capacity", "B"),
        memory_bandwidth=memory.figure("bandwidth", "B/s"),
        memory_efficiency=memory.fraction("efficiency"),
        matmul=_tiles(matmul.part("tiles"))
        if "tiles" in matmul.values
        else matmul.curve("efficiency"),
        attention=_flash(table.part("attention")) if "attention" in table.values else None,
        launch_s=table.part("kernel").figure("launch", "s"),
        xla_target=target,
        sources=table.all_sources(),
        power_w=table.figure("power", "W") if "power" in table.values else None,
    )


def _other(table: Table, key: str) -> tuple[str, dict[str, Any]]:
    """Returns the chip that a field names, and what its file says."""
    name = str(table.sourced(key, '["h100", "why"]'))
    chips = [path.stem for path in CHIPS.glob("*.toml")]
    if name not in chips:
        raise InputError(table.where, f"{key} = {name!r}", nearest(name, chips))
    return name, read_toml(CHIPS / f"{name}.toml", table.where)


def _tiles(table: Table) -> Tiles:
    """Reads coefficients that share one `source`: they come from one fit."""
    if not table.text("source"):
        raise InputError(table.where, "source is empty", "say what was fitted to what")
    fractions = table.numbers("fractions", 1e-3, 1.0)
    if len(fractions) != len(TILE_SIZES):
        raise InputError(
            table.where,
            f"fractions = {fractions!r}",
            f"give one for each size of tile: {', '.join(map(str, TILE_SIZES))}",
        )
    limits = {"memory": (1e-3, 1.0), "rounding": (0.0, 1.0), "overlap": (1.0, 1e9)}
    names = [entry.name for entry in fields(Tiles) if entry.name not in ("cores", "fractions")]
    values = {name: table.number(name, *limits.get(name, (1e-12, 1e18))) for name in names}
    return Tiles(cores=table.count("cores"), fractions=fractions, **values)


def _flash(table: Table) -> Flash:
    """Reads one fraction for everything, fractions by length of the sequence, or whose to take."""
    if "like" in table.values:
        name, values = _other(table, "like")
        return _flash(Table(values, f"chip {name}").part("attention"))
    if "efficiency" in table.values:
        row: dict[int, tuple[float, ...]] = {128: (table.fraction("efficiency"),)}
        everywhere: ByHead = {False: row, True: row}
        return Flash((1.0,), everywhere, everywhere)
    lengths = table.numbers("lengths", 0.0, 1e9)
    if list(lengths) != sorted(lengths):
        raise InputError(table.where, f"lengths = {lengths!r}", "give them in ascending order")
    forward, backward = (
        _by_head(table.part(name), len(lengths)) for name in ("forward", "backward")
    )
    return Flash(lengths, forward, backward)


def _by_head(table: Table, lengths: int) -> ByHead:
    found: ByHead = {False: {}, True: {}}
    for key in table.values:
        head, _, mask = key.partition("-")
        row = table.numbers(key, 1e-3, 1.0, sourced=True)
        if not head.isdecimal() or mask not in ("", "causal") or len(row) != lengths:
            raise InputError(
                table.where,
                f"{key} = {row!r}",
                f"name it by size of head, 128 or 128-causal, and give {lengths} fractions",
            )
        found[mask == "causal"][int(head)] = row
    if not all(found.values()):
        raise InputError(table.where, "a row is missing", "add one as 128 and one as 128-causal")
    return found
