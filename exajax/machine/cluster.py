"""Clusters described in TOML: chip, node and network, every value with its unit and source.

A value is written `[value, source]`; a description without units or sources does not load.
"""

import functools
import hashlib
import importlib.util
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BeforeValidator, Field, model_validator

from exajax.errors import InputError, nearest
from exajax.files.reading import Malformed, read_toml, shown, shown_path
from exajax.files.schema import Items, Name, Schema, Text, checked
from exajax.machine import chip_file
from exajax.machine.chip import Chip
from exajax.machine.chip_file import ChipFile
from exajax.machine.fabric import (
    BetweenNodes,
    Fabric,
    Link,
    Network,
    Variability,
    with_named_fabric,
)
from exajax.machine.software import AS_MEASURED, OfMachine, SoftwareProfile
from exajax.machine.sourced_values import Count, sources_of

MESHES = Path(__file__).parents[1] / "meshes"

COMPILERS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
"""Packages that contain XLA's CUDA compiler; one of them is enough."""


@dataclass(frozen=True)
class Cluster:
    """A machine to train on: equal nodes of equal devices.

    Attributes:
        name: short name, such as `dgx-h100`.
        title: full name.
        chip: the kind of its devices.
        devices_per_node: devices of one node.
        nodes: number of nodes.
        link: interconnect between the devices of a node.
        network: interconnect between nodes.
        variability: spread of nominally equal times.
        sources: source of each value, by its path of keys in the file.
        digest: hash of all values; machines of equal digest give equal predictions.
        software: the software profile that steps run with.
    """

    name: str
    title: str
    chip: Chip
    devices_per_node: int
    nodes: int
    link: Fabric
    network: Network
    variability: Variability
    sources: dict[str, str] = field(repr=False)
    digest: str = ""
    software: SoftwareProfile = AS_MEASURED

    @property
    def devices(self) -> int:
        """Number of devices of the whole machine."""
        return self.nodes * self.devices_per_node

    def check_mesh(self, devices: int, precision: str) -> None:
        """Raises an `InputError` if this machine cannot price a step on so many devices."""
        self.chip.peak(precision)
        if devices > self.devices:
            raise InputError(
                "mesh",
                f"{devices} devices are more than the {self.devices} of {self.name}",
                f"give a mesh of at most {self.devices} devices, or another `cluster`",
            )
        if not self.in_whole_nodes(devices):
            raise InputError(
                "mesh",
                f"{devices} devices are not whole nodes of {self.devices_per_node}",
                f"give a mesh of a multiple of {self.devices_per_node} devices",
            )

    def check(self, devices: int, precision: str) -> None:
        """Raises an `InputError` if a step on so many devices cannot be compiled and priced.

        Does not import JAX, so that a command can check before it does any work.
        """
        self.check_mesh(devices, precision)
        if self.chip.platform == "cpu":
            return
        if not self.chip.xla_target:
            raise InputError(
                f"cluster {self.name}",
                f"its chip {self.chip.name} lacks [xla_target]",
                "add it, or choose a cluster of NVIDIA GPUs",
            )
        if not any(map(importlib.util.find_spec, COMPILERS)):
            raise InputError(
                "ahead-of-time compilation",
                "JAX's CUDA compiler is not installed",
                "pip install 'exajax[plan]'",
            )

    def in_whole_nodes(self, devices: int) -> bool:
        """Whether a number of devices is a multiple of a node, or a part of one."""
        return devices < self.devices_per_node or devices % self.devices_per_node == 0


class ClusterFile(Schema):
    """Schema of a cluster's file: `meshes/*.toml`, the user's own, or `exajax calibrate`'s.

    Attributes:
        title: full name.
        aliases: further names of a cluster that comes with exajax.
        chip: name of a chip that comes with exajax, or a table (`ChipFile`).
        devices_per_node: devices of one node.
        nodes: number of nodes.
        link: interconnect between the devices of a node.
        network: interconnect between nodes.
        variability: spread of nominally equal times.
        software: name of a software profile, or a table (`SoftwareProfile`); `stack` in older
            files.
    """

    title: Text
    aliases: Items[Name] = ()
    chip: Annotated[ChipFile, BeforeValidator(chip_file.chip_table)]
    devices_per_node: Count
    nodes: Count
    link: Link
    network: BetweenNodes
    variability: Variability
    software: Annotated[OfMachine, Field(validation_alias=AliasChoices("software", "stack"))] = (
        AS_MEASURED
    )

    @model_validator(mode="after")
    def _check_devices(self) -> "ClusterFile":
        devices = self.nodes * self.devices_per_node
        if devices > MOST_DEVICES:
            raise Malformed(
                "nodes", f"make {devices} devices", f"give at most {MOST_DEVICES} in all"
            )
        if self.network.sides and math.prod(self.network.sides) < devices:
            raise Malformed(
                "network.sides",
                f"hold {math.prod(self.network.sides)} devices of {devices}",
                "give sides for all nodes x devices_per_node",
            )
        return self


MOST_DEVICES = 10**8
"""Limit on the devices of a described cluster."""

LOCAL = Path("local.toml")
"""File in which `exajax calibrate` describes the machine that it runs on."""


@functools.cache
def _files_by_name() -> dict[str, Path]:
    """Files of the clusters that come with exajax, by name and alias."""
    files: dict[str, Path] = {}
    for path in MESHES.glob("*.toml"):
        files |= dict.fromkeys((path.stem, *read_toml(path).get("aliases", [])), path)
    return files


def cluster_names() -> list[str]:
    """Names and aliases of the clusters that come with exajax, sorted."""
    return sorted(_files_by_name())


def load_cluster(name: str, flag: str = "cluster") -> Cluster:
    """The cluster of a name or alias, or of the user's own TOML file.

    Args:
        name: a name, an alias, or a path that ends in `.toml`; `local` is the file `LOCAL` in the
            working directory.
        flag: field that errors name.

    Raises:
        InputError: there is no such cluster, or the file does not fit `ClusterFile`.
    """
    if name == "local":
        if not LOCAL.exists():
            raise InputError(flag, f"there is no {LOCAL} in this folder", "run exajax calibrate")
        name = str(LOCAL)
    is_path = name.endswith(".toml")
    if not is_path and name not in _files_by_name():
        known = ", ".join([*cluster_names(), "local"])
        fix = f"choose one of {known}, or give a file that ends in .toml"
        raise InputError(flag, f"unknown cluster {shown(name)}", fix)
    path = Path(name) if is_path else _files_by_name()[name]
    try:
        return _build_cluster(shown_path(Path(path.stem)), read_toml(path))
    except Malformed as error:
        raise error.within(flag, path) from error


TEMPLATE = "dgx-h100"
"""Cluster that supplies the network and the variability of a machine known only by its chip."""

RACKS = {"gb200": "gb200-nvl72", "gb300": "gb300-nvl72"}
"""Cluster of each chip whose links join all nodes of a rack; publications call a tray a node."""

PODS = {"tpu-v5p": "tpu-v5p", "tpu-v6e": "tpu-v6e"}
"""Cluster of each chip that is connected as a torus, without nodes."""


def machine_with(chip: str, devices_per_node: int, network: float | None) -> Cluster:
    """A cluster assumed for a published row that names only a chip: NVIDIA GPUs behind switches.

    For the chips of `RACKS` and `PODS` it is their own cluster.

    Args:
        chip: a chip with a measured `nvswitch-*` fabric, or one of `RACKS` or `PODS`.
        devices_per_node: devices of one node.
        network: network bandwidth of one node, bytes/s in one direction; None for `TEMPLATE`'s.

    Raises:
        InputError: the chip, or the links between its devices, are unknown.
    """
    chips = chip_file.chip_names()
    if chip not in chips:
        raise InputError("chip", f"unknown chip {shown(chip)}", nearest(chip[:100], chips))
    if chip in PODS:
        return load_cluster(PODS[chip])
    values = read_toml(_files_by_name()[RACKS.get(chip, TEMPLATE)])
    nodes_per_rack = 1.0
    if chip in RACKS:
        nodes_per_rack = values["devices_per_node"][0] / devices_per_node
    else:
        values |= {
            "title": f"nodes of {devices_per_node} x {chip}",
            "chip": chip,
            "devices_per_node": [devices_per_node, "the row"],
            "link": {"fabric": f"nvswitch-{chip.split('-')[0]}"},
        }
    if network:
        values["network"] |= {"bandwidth": [f"{nodes_per_rack * network:g} B/s", "the row"]}
    try:
        return _build_cluster(f"{chip} x {devices_per_node}", values)
    except Malformed as error:
        raise InputError(f"chip {chip}", str(error), error.fix) from error


def _build_cluster(name: str, table: dict[str, Any]) -> Cluster:
    """The cluster that a table describes; raises `Malformed` if it does not fit `ClusterFile`."""
    file = checked(ClusterFile, table)
    chip_table = chip_file.chip_table(table["chip"])
    chip_name = table["chip"] if isinstance(table["chip"], str) else name
    try:
        chip = chip_file.build_chip(chip_name, file.chip, chip_table)
    except Malformed as error:
        raise Malformed(f"chip.{error.where}", error.problem, error.fix) from error
    merged = {key: value for key, value in table.items() if key != "aliases"}
    merged |= {key: with_named_fabric(merged[key]) for key in ("link", "network")}
    # `repr(chip)` covers the values that the chip's table refers to in other files.
    hashed = json.dumps([merged, chip_table, repr(chip), asdict(file.software)], sort_keys=True)
    return Cluster(
        name=name,
        title=file.title,
        chip=chip,
        devices_per_node=file.devices_per_node,
        nodes=file.nodes,
        link=file.link,
        network=file.network,
        variability=file.variability,
        sources=sources_of(merged),
        digest=hashlib.sha256(hashed.encode()).hexdigest()[:16],
        software=file.software,
    )
