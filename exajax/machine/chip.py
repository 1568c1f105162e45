"""One device in TOML: its roofs, how much of them kernels reach, and what XLA is told of it."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PlainValidator

from exajax.errors import InputError
from exajax.files.reading import Malformed
from exajax.machine.figures import (
    FRACTION,
    TABLE,
    Coefficient,
    CoefficientFlops,
    CoefficientFraction,
    CoefficientSeconds,
    CoefficientShare,
    Count,
    Curve,
    number,
    values,
)

CHIPS = Path(__file__).parents[1] / "meshes" / "chips"

TILE_SIZES = (32768, 16384, 8192, 4096, 2048, 1024, 512)
"""Elements of the tiles whose `Tiles.fractions` a chip gives, in this order."""

ByHead = dict[bool, dict[int, tuple[float, ...]]]
"""Fractions of the peak by whether there is a causal mask, and by size of head."""


def _fractions(given: Any) -> tuple[float, ...]:
    found = values(given, lambda value: number(value, *FRACTION))
    if len(found) != len(TILE_SIZES):
        sizes = ", ".join(map(str, TILE_SIZES))
        raise Malformed("", f"has {len(found)} numbers", f"give one for each size of tile: {sizes}")
    return found


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

    __pydantic_config__ = TABLE

    cores: Count
    fractions: Annotated[tuple[float, ...], PlainValidator(_fractions)]
    prologue: Coefficient
    rounding: CoefficientShare
    memory: CoefficientFraction
    spread: Coefficient
    overlap: Annotated[Coefficient, Field(ge=1)]
    launch_s: CoefficientSeconds
    split_s: CoefficientSeconds
    slowdown: Coefficient
    slowdown_flops: CoefficientFlops


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
                "precision",
                f"{self.name} has no peak for {precision}",
                f"give `precision` {' or '.join(self.peak_flops)}, or add it to the chip's [peak]",
            )
        return self.peak_flops[precision]
