"""One accelerator: its peak rates, the fraction of them that kernels reach, and XLA's target."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PlainValidator

from exajax.errors import InputError
from exajax.files.reading import Malformed
from exajax.machine.sourced_values import (
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
    tuple_of,
)

CHIPS = Path(__file__).parents[1] / "meshes" / "chips"

TILE_SIZES = (32768, 16384, 8192, 4096, 2048, 1024, 512)
"""Sizes of tiles, in elements, for which `Tiles.fractions` gives a fraction, in this order."""

ByHead = dict[bool, dict[int, tuple[float, ...]]]
"""Fractions of the peak, keyed by whether there is a causal mask, then by the size of a head."""


def _fractions(value: Any) -> tuple[float, ...]:
    fractions = tuple_of(value, lambda item: number(item, *FRACTION))
    if len(fractions) != len(TILE_SIZES):
        sizes = ", ".join(map(str, TILE_SIZES))
        raise Malformed(
            "", f"has {len(fractions)} numbers", f"give one for each size of tile: {sizes}"
        )
    return fractions


@dataclass(frozen=True)
class Tiles:
    """Coefficients of the model of matrix multiplication in `exajax.simulate.matmul`.

    Attributes:
        cores: processors of the device; each works on one tile at a time.
        fractions: fraction of the peak that a core reaches within a tile, for each of `TILE_SIZES`.
        prologue: fixed cost of a tile, as elements of the contracted dimension.
        rounding: weight, 0 to 1, of the number of waves of tiles rounded up, against its fraction:
            the cost of a last wave that does not fill all cores.
        memory: fraction of the memory bandwidth that a product reaches.
        spread: a product of w waves of tiles reaches sqrt(min(1, w x spread)) of that.
        overlap: power p with which compute and memory time overlap, (c^p + m^p)^(1/p); 1 is none.
        launch_s: time of an empty product.
        split_s: time of summing the partial results where the contracted dimension is split.
        slowdown: relative slowdown of the largest products, which draw the most power.
        slowdown_flops: FLOPs of a product at which half of `slowdown` applies.
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
    """Fraction of the peak that fused (flash) attention reaches, by length of the sequence.

    Attributes:
        lengths: lengths of the sequence, ascending, in tokens.
        forward: fractions in the forward pass, one for each length.
        backward: fractions in the backward pass, one for each length.
    """

    lengths: tuple[float, ...]
    forward: ByHead
    backward: ByHead


@dataclass(frozen=True)
class Chip:
    """One accelerator, as JAX sees it: one device.

    Attributes:
        name: short name, such as `h100`.
        title: full name.
        platform: XLA backend that compiles its programs, `cuda` or `cpu`.
        proxy: chip that programs are compiled for instead, because XLA's compilers for other
            platforms need a device; None if it is compiled for itself. The program is priced with
            the figures of this chip in any case.
        device_kinds: values of `jax.Device.device_kind` when it is attached.
        peak_flops: dense matrix FLOP/s by precision (`fp32`, `bf16`, `fp8`).
        memory_bytes: capacity of its memory.
        memory_bandwidth: peak bytes/s.
        memory_efficiency: fraction of the peak bandwidth that kernels reach.
        matmul: speed of matrix products: a model of tiles, or for less measured chips a curve over
            their FLOPs.
        attention: speed of fused attention; None if unknown.
        launch_s: least time of any operation.
        xla_target: XLA's description of the device, needed to compile without it; empty if unknown.
        sources: source of each figure, by its path of keys in the file.
        power_w: rated power; None if unknown.
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
        """Bytes/s of copies between the device's and the host's memory.

        The bandwidth in XLA's target, of PCIe or a faster link (GH200); a CPU device shares the
        host's memory.
        """
        return float(self.xla_target.get("pcie_bandwidth", self.memory_bandwidth))

    @property
    def calibration(self) -> str:
        """Source of the efficiency of its matrix products."""
        key = "matmul.tiles.source" if isinstance(self.matmul, Tiles) else "matmul.efficiency"
        return self.sources[key]

    def peak(self, precision: str) -> float:
        """Dense peak at a precision, FLOP/s; raises `InputError` if it is unknown."""
        precision = precision.removeprefix("pure-")  # which is about the parameters, not products
        if precision not in self.peak_flops:
            raise InputError(
                "precision",
                f"{self.name} has no peak for {precision}",
                f"give `precision` {' or '.join(self.peak_flops)}, or add it to the chip's [peak]",
            )
        return self.peak_flops[precision]
