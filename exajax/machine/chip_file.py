"""Schema and reader of chip descriptions: `meshes/chips/*.toml`, or the `[chip]` of a machine.

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
from exajax.machine.sourced_values import (
    FRACTION,
    Bandwidth,
    Capacity,
    FlopRate,
    Fraction,
    Power,
    Seconds,
    SourcedCurve,
    number,
    one_of,
    sources_of,
    tuple_of,
    value_of,
)


def chip_names() -> list[str]:
    """Names of the chips that come with exajax, sorted."""
    return sorted(path.stem for path in CHIPS.glob("*.toml"))


def _known_chip(name: Any) -> str:
    return one_of(name, chip_names())


def _fractions_of_row(pair: Any) -> tuple[float, ...]:
    return tuple_of(value_of(pair), lambda item: number(item, *FRACTION))


def _ascending_lengths(value: Any) -> tuple[float, ...]:
    lengths = tuple_of(value, lambda item: number(item, 1, 1e9))
    if any(a >= b for a, b in itertools.pairwise(lengths)):
        raise Malformed("", f"is {shown(value)}", "give them in ascending order")
    return lengths


def _without_source(table: Any) -> Any:
    """A table of fitted coefficients, without the one source that they share."""
    if not isinstance(table, dict) or "source" not in table:
        raise Malformed("source", "is missing", "say what was fitted to what")
    try:
        checked(Text, table["source"])
    except Malformed as error:
        raise Malformed("source", str(error).strip(), "say what was fitted to what") from None
    return {key: value for key, value in table.items() if key != "source"}


OtherChip = Annotated[str, PlainValidator(lambda pair: _known_chip(value_of(pair)))]
"""Name of another chip, with the reason as source: `["h100", "the same processor"]`."""

FractionRow = Annotated[tuple[float, ...], PlainValidator(_fractions_of_row)]
"""Fractions of the peak, one for each length of sequence: `[[0.3, 0.4], "source"]`."""

Precision = Annotated[str, BeforeValidator(lambda key: one_of(key, ("fp32", "bf16", "fp8")))]

ByteSize = Annotated[int, Field(ge=0, le=10**12)]


class MemoryTable(Schema):
    """`[memory]`: capacity, peak bandwidth, and the fraction of it that kernels reach."""

    capacity: Capacity
    bandwidth: Bandwidth
    efficiency: Fraction


class MatmulTable(Schema):
    """`[matmul]`: speed of matrix products, as coefficients of `tiles` or an `efficiency` curve."""

    tiles: Annotated[Tiles, BeforeValidator(_without_source)] | None = None
    efficiency: SourcedCurve | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "MatmulTable":
        if (self.tiles is None) == (self.efficiency is None):
            raise Malformed("", "needs one of efficiency and tiles", "give a curve or a fit")
        return self


class AttentionTable(Schema):
    """`[attention]`: fraction of the peak that fused attention reaches.

    Either that of another chip (`like`), or one fraction for everything (`efficiency`), or a table:
    `lengths` of the sequence, and for each size of head a row of fractions, `128` without a mask
    and `128-causal` with one.
    """

    like: OtherChip | None = None
    efficiency: Fraction | None = None
    lengths: Annotated[tuple[float, ...], PlainValidator(_ascending_lengths)] = ()
    forward: dict[str, FractionRow] = Field(default_factory=dict)
    backward: dict[str, FractionRow] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _exactly_one(self) -> "AttentionTable":
        by_length = bool(self.lengths or self.forward or self.backward)
        if (self.like is not None) + (self.efficiency is not None) + by_length != 1:
            raise Malformed("", "needs one of like, efficiency and lengths", "give one of them")
        if by_length and not self.lengths:
            raise Malformed("lengths", "is missing", "give the lengths of the sequence")
        return self

    def resolve(self) -> Flash:
        """The fractions as a table, read from the other chip's file where `like` names one."""
        if self.like is not None:
            other = checked(ChipFile, read_toml(CHIPS / f"{self.like}.toml")).attention
            if other is None:
                raise Malformed("like", f"{self.like} has no [attention]", "name another chip")
            return other.resolve()
        if self.efficiency is not None:
            row: dict[int, tuple[float, ...]] = {128: (self.efficiency,)}
            constant: ByHead = {False: row, True: row}
            return Flash((1.0,), constant, constant)
        forward = _rows_by_head("forward", self.forward, len(self.lengths))
        return Flash(
            self.lengths, forward, _rows_by_head("backward", self.backward, len(self.lengths))
        )


class KernelTable(Schema):
    """`[kernel]`: least time of any operation."""

    launch: Seconds


class XlaTargetTable(Schema):
    """`[xla_target]`: XLA's description of a device that is not attached (`target_config`).

    Sizes are in bytes, and the bandwidth of the bus in bytes/s.
    """

    source: Text
    name: Annotated[Text, Field(pattern=r'^[^"\\]*$')]
    compute_capability: Annotated[Items[Annotated[int, Field(ge=0, le=100)]], Field(
        min_length=2, max_length=2
    )]  # fmt: skip
    core_count: Annotated[int, Field(ge=1, le=10**6)]
    fpus_per_core: Annotated[int, Field(ge=1, le=10**6)]
    clock_rate_ghz: Annotated[float, Field(ge=0.01, le=100)]
    l2_cache_size: ByteSize
    shared_memory_per_core: ByteSize
    shared_memory_per_block_optin: ByteSize
    pcie_bandwidth: Annotated[int, Field(ge=10**3, le=10**15)]
    active_links: Annotated[int, Field(ge=0, le=1000)]


class ChipFile(Schema):
    """Schema of a chip's file; `Chip` explains the quantities.

    Attributes:
        title: full name.
        platform: XLA backend that compiles its programs.
        compiled_as: chip that programs are compiled for instead, and why.
        device_kinds: values of `jax.Device.device_kind` when it is attached.
        power: rated power.
        peak: dense matrix FLOP/s by precision.
        memory: capacity and bandwidth.
        matmul: speed of matrix products.
        attention: speed of fused attention; left out if unknown.
        kernel: least time of any operation.
        xla_target: XLA's description of the device; without it nothing can be compiled ahead of
            time.
    """

    title: Text
    platform: Literal["cuda", "cpu"] = "cuda"
    compiled_as: OtherChip | None = None
    device_kinds: Items[Text] = ()
    power: Power | None = None
    peak: Annotated[dict[Precision, FlopRate], Field(min_length=1)]
    memory: MemoryTable
    matmul: MatmulTable
    attention: AttentionTable | None = None
    kernel: KernelTable
    xla_target: XlaTargetTable | None = None


def read_chip(name: str, table: dict[str, Any]) -> Chip:
    """The chip that a TOML table describes; raises `Malformed` if it does not fit `ChipFile`."""
    return build_chip(name, checked(ChipFile, table), table)


def build_chip(name: str, file: ChipFile, table: dict[str, Any]) -> Chip:
    """The chip that a validated table describes, with what it refers to in other chips' files.

    Args:
        name: name of the chip.
        file: the table, validated.
        table: the table as it was parsed, which still has the sources.

    Raises:
        Malformed: the table refers to something that another chip's file lacks.
    """
    target = table.get("xla_target", {})
    if file.compiled_as:
        target = read_toml(CHIPS / f"{file.compiled_as}.toml").get("xla_target", {})
    matmul = file.matmul.tiles or file.matmul.efficiency
    assert matmul is not None
    try:
        attention = None if file.attention is None else file.attention.resolve()
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


def chip_table(chip: Any) -> Any:
    """The table of a machine's chip: of the chip's own file if the machine gives only its name."""
    if isinstance(chip, dict):
        return chip
    if not isinstance(chip, str):
        raise Malformed("", f"is {shown(chip)}", "give the name of a chip, or a table [chip]")
    if chip not in chip_names():
        raise Malformed("", f"is {shown(chip)}, which is none", nearest(chip[:100], chip_names()))
    return read_toml(CHIPS / f"{chip}.toml")


def chip_of_device(device_kind: str) -> Chip | None:
    """The chip with a given `jax.Device.device_kind`; None if no description has it."""
    for name in chip_names():
        table = read_toml(CHIPS / f"{name}.toml")
        if device_kind in table.get("device_kinds", ()):
            return read_chip(name, table)
    return None


def _rows_by_head(name: str, rows: dict[str, tuple[float, ...]], lengths: int) -> ByHead:
    by_head: ByHead = {False: {}, True: {}}
    for key, row in rows.items():
        head, _, mask = key.partition("-")
        is_size = head.isascii() and head.isdecimal() and len(head) < 6 and int(head) > 0
        if not is_size or mask not in ("", "causal") or len(row) != lengths:
            raise Malformed(
                name,
                f"has the row {shown(key)} of {len(row)} numbers",
                f"name it by size of head, 128 or 128-causal, and give {lengths} fractions",
            )
        by_head[mask == "causal"][int(head)] = row
    if not all(by_head.values()):
        raise Malformed(name, "lacks a row", "add one as 128 and one as 128-causal")
    return by_head
