"""Machines described in TOML: chip, node and network, every figure with its unit and source.

A figure is written `[value, source]`; a description without units or sources does not load.
"""

import functools
import hashlib
import importlib.util
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, model_validator

from exajax.errors import InputError, nearest
from exajax.files.reading import Malformed, read_toml, shown, shown_path
from exajax.files.schema import Items, Name, Schema, Text, checked
from exajax.machine import chip_file
from exajax.machine.chip import Chip
from exajax.machine.chip_file import ChipFile
from exajax.machine.chip_file import chip_of_device as chip_of_device
from exajax.machine.fabric import BetweenNodes, Fabric, Link, Network, Variability, with_shared
from exajax.machine.figures import Count, sources_of
from exajax.machine.software import AS_MEASURED, OfMachine, Stack

MESHES = Path(__file__).parents[1] / "meshes"

COMPILERS = ("jax_cuda12_plugin", "jax_cuda13_plugin")
"""Packages that bring XLA's CUDA compiler; any of them will do."""


@dataclass(frozen=True)
class Cluster:
    """A machine to train on.

    Attributes:
        name: short name, such as `dgx-h100`.
        title: what it is called in full.
        chip: its devices.
        devices_per_node: devices that share a node's links.
        nodes: how many nodes there are.
        link: between the devices of a node.
        network: between nodes.
        variability: how much what is equal on paper differs.
        sources: where each figure comes from.
        digest: hash of all figures; two machines with the same digest predict the same.
        stack: the software that steps run with.
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
    stack: Stack = AS_MEASURED

    @property
    def devices(self) -> int:
        """Devices of the whole machine."""
        return self.nodes * self.devices_per_node

    def check_mesh(self, devices: int, precision: str) -> None:
        """Raises an `InputError` if a step cannot be priced for a mesh here."""
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
        """Raises an `InputError` if a step cannot be compiled and priced for a mesh here.

        It imports no array library, so it can be asked before any work is done.
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
        """Returns whether devices fill nodes, or are a part of one."""
        return devices < self.devices_per_node or devices % self.devices_per_node == 0


class ClusterFile(Schema):
    """A machine in TOML: `meshes/*.toml`, one of one's own, and what `exajax calibrate` writes.

    Attributes:
        title: what it is called in full.
        aliases: other names that it is known by, of the machines that come with the project.
        chip: the name of a chip that comes with the project, or a table as `chip_file` has it.
        devices_per_node: devices that share a node's links.
        nodes: how many nodes there are.
        link: between the devices of a node.
        network: between nodes.
        variability: how much what is equal on paper differs.
        stack: the name of a software stack, or a table as `stack` has it.
    """

    title: Text
    aliases: Items[Name] = ()
    chip: Annotated[ChipFile, BeforeValidator(chip_file.table_of)]
    devices_per_node: Count
    nodes: Count
    link: Link
    network: BetweenNodes
    variability: Variability
    stack: OfMachine = AS_MEASURED

    @model_validator(mode="after")
    def _adds_up(self) -> "ClusterFile":
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

LOCAL = Path("local.toml")
"""Where `exajax calibrate` writes the machine that it runs on."""


@functools.cache
def _files() -> dict[str, Path]:
    """The machines that come with the project, by name and by every alias."""
    found: dict[str, Path] = {}
    for path in MESHES.glob("*.toml"):
        found |= dict.fromkeys((path.stem, *read_toml(path).get("aliases", [])), path)
    return found


def names() -> list[str]:
    """Returns the names of the machines that come with the project, aliases too."""
    return sorted(_files())


def load_cluster(name: str, flag: str = "cluster") -> Cluster:
    """Reads a machine by name or alias, or from a TOML file of one's own.

    `local` is what `exajax calibrate` wrote in the folder that this is called in.

    Raises:
        InputError: no such machine, or the file does not describe one; names the field.
    """
    if name == "local":
        if not LOCAL.exists():
            raise InputError(flag, f"there is no {LOCAL} in this folder", "run exajax calibrate")
        name = str(LOCAL)
    own = name.endswith(".toml")
    if not own and name not in _files():
        known = ", ".join([*names(), "local"])
        fix = f"choose one of {known}, or give a file that ends in .toml"
        raise InputError(flag, f"unknown cluster {shown(name)}", fix)
    path = Path(name) if own else _files()[name]
    try:
        return _described(shown_path(Path(path.stem)), read_toml(path))
    except Malformed as error:
        raise error.within(flag, path) from error


TEMPLATE = "dgx-h100"
"""The machine whose nodes and variability one has that is known by its chip alone."""


RACKS = {"gb200": "gb200-nvl72", "gb300": "gb300-nvl72"}
"""Machines of chips whose links join all nodes of a rack: what others call a node is a tray."""

PODS = {"tpu-v5p": "tpu-v5p", "tpu-v6e": "tpu-v6e"}
"""Machines of chips that are joined without nodes."""


def machine_with(chip: str, devices_per_node: int, network: float | None) -> Cluster:
    """Returns a machine of a chip that has no description: NVIDIA GPUs in nodes with switches.

    Where links join more than a node, the machine is that of the chip.

    Args:
        chip: a chip that has measured links between its devices, or is one of `RACKS` or `PODS`.
        devices_per_node: devices of a node.
        network: of a node, bytes/s in one direction; None for that of the template.

    Raises:
        InputError: nothing is known of the chip, or of its links.
    """
    chips = chip_file.names()
    if chip not in chips:
        raise InputError("chip", f"unknown chip {shown(chip)}", nearest(chip[:100], chips))
    if chip in PODS:
        return load_cluster(PODS[chip])
    values = read_toml(_files()[RACKS.get(chip, TEMPLATE)])
    nodes = 1.0
    if chip in RACKS:
        nodes = values["devices_per_node"][0] / devices_per_node
    else:
        values |= {
            "title": f"nodes of {devices_per_node} x {chip}",
            "chip": chip,
            "devices_per_node": [devices_per_node, "the row"],
            "link": {"fabric": f"nvswitch-{chip.split('-')[0]}"},
        }
    if network:
        values["network"] |= {"bandwidth": [f"{nodes * network:g} B/s", "the row"]}
    try:
        return _described(f"{chip} x {devices_per_node}", values)
    except Malformed as error:
        raise InputError(f"chip {chip}", str(error), error.fix) from error


def _described(name: str, table: dict[str, Any]) -> Cluster:
    """Returns the machine that a table describes; raises `Malformed`, which names the field."""
    file = checked(ClusterFile, table)
    chip_table = chip_file.table_of(table["chip"])
    chip_name = table["chip"] if isinstance(table["chip"], str) else name
    try:
        chip = chip_file.chip_of(chip_name, file.chip, chip_table)
    except Malformed as error:
        raise Malformed(f"chip.{error.where}", error.problem, error.fix) from error
    whole = {key: value for key, value in table.items() if key != "aliases"}
    whole |= {key: with_shared(whole[key]) for key in ("link", "network")}
    # What a chip takes from another one's file stands in the chip alone.
    figures = json.dumps([whole, chip_table, repr(chip), asdict(file.stack)], sort_keys=True)
    return Cluster(
        name=name,
        title=file.title,
        chip=chip,
        devices_per_node=file.devices_per_node,
        nodes=file.nodes,
        link=file.link,
        network=file.network,
        variability=file.variability,
        sources=sources_of(whole),
        digest=hashlib.sha256(figures.encode()).hexdigest()[:16],
        stack=file.stack,
    )
