"""A device in TOML: `meshes/chips/*.toml`, or the `[chip]` of a machine.

title = "NVIDIA H100 SXM5 80GB"
[peak]
bf16 = ["989 TFLOP/s", "source"]
[memory]
capacity = ["80 GB", "source"]
bandwidth = ["3.35 TB/s", "source"]
efficiency = [0.86, "source"]
[matmul]
efficiency = [[[1e9, 0.4], [1e12, 0.8]], "source"]
[kernel]
launch = ["2.5 us", "source"]
"""

import itertools
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PlainValidator, model_validator

from exajax.errors import nearest
from exajax.files.reading import Malformed, read_toml, shown
from exajax.files.schema import Items, Schema, Text, checked
from exajax.machine.chip import CHIPS, ByHead, Chip, Flash, Tiles
from exajax.machine.figures import (
    FRACTION,
    ACurve,
    Bandwidth,
    Capacity,
    FlopRate,
    Fraction,
    Power,
    Seconds,
    number,
    one_of,
    sources_of,
    value_of,
    values,
)


def names() -> list[str]:
    """Returns the chips that come with the project."""
    return sorted(path.stem for path in CHIPS.glob("*.toml"))


def _known(name: Any) -> str:
    return one_of(name, names())


def _rows(given: Any) -> tuple[float, ...]:
    return values(value_of(given), lambda value: number(value, *FRACTION))


def _lengths(given: Any) -> tuple[float, ...]:
    found = values(given, lambda value: number(value, 1, 1e9))
    if any(a >= b for a, b in itertools.pairwise(found)):
        raise Malformed("", f"is {shown(given)}", "give them in ascending order")
    return found


def _fitted(table: Any) -> Any:
    """Takes off the source that all coefficients of a fit share."""
    if not isinstance(table, dict) or "source" not in table:
        raise Malformed("source", "is missing", "say what was fitted to what")
    try:
        checked(Text, table["source"])
    except Malformed as error:
        raise Malformed("source", str(error).strip(), "say what was fitted to what") from None
    return {key: value for key, value in table.items() if key != "source"}


OtherChip = Annotated[str, PlainValidator(lambda pair: _known(value_of(pair)))]
"""One of the chips that come with the project, and why: `["h100", "the same processor"]`."""

Row = Annotated[tuple[float, ...], PlainValidator(_rows)]
"""Fractions of the peak, one for each length: `[[0.3, 0.4], "source"]`."""

Precision = Annotated[str, BeforeValidator(lambda key: one_of(key, ("fp32", "bf16", "fp8")))]

Facts = Annotated[int, Field(ge=0, le=10**12)]


class Memory(Schema):
    """`[memory]`: how much, how fast, and the fraction of that speed that kernels reach."""

    capacity: Capacity
    bandwidth: Bandwidth
    efficiency: Fraction


class Matmul(Schema):
    """`[matmul]`: how matrix products use the peak, by `tiles` or by a curve of `efficiency`."""

    tiles: Annotated[Tiles, BeforeValidator(_fitted)] | None = None
    efficiency: ACurve | None = None

    @model_validator(mode="after")
    def _one(self) -> "Matmul":
        if (self.tiles is None) == (self.efficiency is None):
            raise Malformed("", "needs one of efficiency and tiles", "give a curve or a fit")
        return self


class Attention(Schema):
    """`[attention]`: fraction of the peak that fused attention reaches.

    As a chip that is known (`like`), one for everything (`efficiency`), or by `lengths` of the
    sequence, in a row for each size of head, `128` without a mask and `128-causal` with one.
    """

    like: OtherChip | None = None
    efficiency: Fraction | None = None
    lengths: Annotated[tuple[float, ...], PlainValidator(_lengths)] = ()
    forward: dict[str, Row] = Field(default_factory=dict)
    backward: dict[str, Row] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one(self) -> "Attention":
        by_length = bool(self.lengths or self.forward or self.backward)
        if (self.like is not None) + (self.efficiency is not None) + by_length != 1:
            raise Malformed("", "needs one of like, efficiency and lengths", "give one of them")
        if by_length and not self.lengths:
            raise Malformed("lengths", "is missing", "give the lengths of the sequence")
        return self

    def flash(self) -> Flash:
        """Returns the fractions; of another chip where this one is like it."""
        if self.like is not None:
            other = checked(ChipFile, read_toml(CHIPS / f"{self.like}.toml")).attention
            if other is None:
                raise Malformed("like", f"{self.like} has no [attention]", "name another chip")
            return other.flash()
        if self.efficiency is not None:
            row: dict[int, tuple[float, ...]] = {128: (self.efficiency,)}
            everywhere: ByHead = {False: row, True: row}
            return Flash((1.0,), everywhere, everywhere)
        forward = _by_head("forward", self.forward, len(self.lengths))
        return Flash(self.lengths, forward, _by_head("backward", self.backward, len(self.lengths)))


class Kernel(Schema):
    """`[kernel]`: the least time that an operation takes."""

    launch: Seconds


class XlaTarget(Schema):
    """`[xla_target]`: what XLA must be told of a chip that is not attached.

    All whole numbers, of bytes where they are sizes, and bytes/s for the bus.
    """

    source: Text
    name: Annotated[Text, Field(pattern=r'^[^"\\]*$')]
    compute_capability: Annotated[Items[Annotated[int, Field(ge=0, le=100)]], Field(
        min_length=2, max_length=2
    )]  # fmt: skip
    core_count: Annotated[int, Field(ge=1, le=10**6)]
    fpus_per_core: Annotated[int, Field(ge=1, le=10**6)]
    clock_rate_ghz: Annotated[float, Field(ge=0.01, le=100)]
    l2_cache_size: Facts
    shared_memory_per_core: Facts
    shared_memory_per_block_optin: Facts
    pcie_bandwidth: Annotated[int, Field(ge=10**3, le=10**15)]
    active_links: Annotated[int, Field(ge=0, le=1000)]


class ChipFile(Schema):
    """One device.

    Attributes:
        title: what it is called in full.
        platform: which of XLA's compilers makes its programs.
        compiled_as: the chip that its programs are compiled for in its place, and why.
        device_kinds: what JAX calls it when it is attached.
        power: rated power.
        peak: dense matrix FLOP/s by precision.
        memory: its roof, and how much of it is reached.
        matmul: how much of the peak matrix products reach.
        attention: the same of fused attention; left out where it is not known.
        kernel: the least time of an operation.
        xla_target: without which nothing can be compiled for it ahead of time.
    """

    title: Text
    platform: Literal["cuda", "cpu"] = "cuda"
    compiled_as: OtherChip | None = None
    device_kinds: Items[Text] = ()
    power: Power | None = None
    peak: Annotated[dict[Precision, FlopRate], Field(min_length=1)]
    memory: Memory
    matmul: Matmul
    attention: Attention | None = None
    kernel: Kernel
    xla_target: XlaTarget | None = None


def read_chip(name: str, table: dict[str, Any]) -> Chip:
    """Returns the chip that a table describes; raises `Malformed`, which names the field."""
    return chip_of(name, checked(ChipFile, table), table)


def chip_of(name: str, file: ChipFile, table: dict[str, Any]) -> Chip:
    """Returns the chip that a checked table describes, with what it takes from others' files.

    Args:
        name: of the chip.
        file: what the table says, checked.
        table: the same as it stands in the file, with the sources.

    Raises:
        Malformed: what it takes from another chip is not there.
    """
    target = table.get("xla_target", {})
    if file.compiled_as:
        target = read_toml(CHIPS / f"{file.compiled_as}.toml").get("xla_target", {})
    matmul = file.matmul.tiles or file.matmul.efficiency
    assert matmul is not None
    try:
        attention = None if file.attention is None else file.attention.flash()
    except Malformed as error:
        raise Malformed(f"attention.{error.where}", error.problem, error.fix) from None
    return Chip(
        name=name,
        title=file.title,
        platform=file.platform,
        proxy=file.compiled_as,
        device_kinds=file.device_kinds,
        peak_flops=dict(file.peak),
        memory_bytes=file.memory.capacity,
        memory_bandwidth=file.memory.bandwidth,
        memory_efficiency=file.memory.efficiency,
        matmul=matmul,
        attention=attention,
        launch_s=file.kernel.launch,
        xla_target=target,
        sources=sources_of(table),
        power_w=file.power,
    )


def table_of(chip: Any) -> Any:
    """Returns the table of a chip that a machine names; one that it describes is itself."""
    if isinstance(chip, dict):
        return chip
    if not isinstance(chip, str):
        raise Malformed("", f"is {shown(chip)}", "give the name of a chip, or a table [chip]")
    if chip not in names():
        raise Malformed("", f"is {shown(chip)}, which is none", nearest(chip[:100], names()))
    return read_toml(CHIPS / f"{chip}.toml")


def chip_of_device(device_kind: str) -> Chip | None:
    """Returns the description of an attached device by what JAX calls it, or None."""
    for name in names():
        table = read_toml(CHIPS / f"{name}.toml")
        if device_kind in table.get("device_kinds", ()):
            return read_chip(name, table)
    return None


def _by_head(name: str, rows: dict[str, tuple[float, ...]], lengths: int) -> ByHead:
    found: ByHead = {False: {}, True: {}}
    for key, row in rows.items():
        head, _, mask = key.partition("-")
        right = head.isascii() and head.isdecimal() and len(head) < 6 and int(head) > 0
        if not right or mask not in ("", "causal") or len(row) != lengths:
            raise Malformed(
                name,
                f"has the row {shown(key)} of {len(row)} numbers",
                f"name it by size of head, 128 or 128-causal, and give {lengths} fractions",
            )
        found[mask == "causal"][int(head)] = row
    if not all(found.values()):
        raise Malformed(name, "lacks a row", "add one as 128 and one as 128-causal")
    return found
