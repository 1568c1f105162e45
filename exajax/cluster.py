"""Machines described in TOML: chip, node and network, every figure with its unit and source.

A figure is written `[value, source]`; a description without units or sources does not load.
"""

import functools
import hashlib
import importlib.util
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from exajax import stack as stacks
from exajax.chip import CHIPS, XLA_FACTS, Chip, read_chip
from exajax.errors import InputError, nearest
from exajax.fabric import (
    Fabric,
    Network,
    Variability,
    link_of,
    network_of,
    variability_of,
    with_shared,
)
from exajax.figures import Table, read_toml
from exajax.stack import AS_MEASURED, Stack

MESHES = Path(__file__).parent / "meshes"

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
                "--mesh",
                f"{devices} devices are more than the {self.devices} of {self.name}",
                f"give a mesh of at most {self.devices} devices, or another --cluster",
            )
        if not self.in_whole_nodes(devices):
            raise InputError(
                "--mesh",
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
        missing = XLA_FACTS - self.chip.xla_target.keys()
        if missing:
            raise InputError(
                f"--cluster {self.name}",
                f"the [xla_target] of its chip {self.chip.name} lacks {', '.join(sorted(missing))}",
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


LOCAL = Path("local.toml")
"""Where `exajax calibrate` writes the machine that it runs on."""


@functools.cache
def _files() -> dict[str, Path]:
    """The machines that come with the project, by name and by every alias."""
    found: dict[str, Path] = {}
    for path in MESHES.glob("*.toml"):
        aliases = read_toml(path, "--cluster").get("aliases", [])
        found |= dict.fromkeys((path.stem, *aliases), path)
    return found


def names() -> list[str]:
    """Returns the names of the machines that come with the project, aliases too."""
    return sorted(_files())


def load_cluster(name: str, flag: str = "--cluster") -> Cluster:
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
        raise InputError(flag, f"unknown cluster {name!r}", f"choose one of {known}")
    path = Path(name) if own else _files()[name]
    return _described(path.stem, read_toml(path, flag), f"{flag} {path.name}", flag)


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
    chips = [path.stem for path in CHIPS.glob("*.toml")]
    if chip not in chips:
        raise InputError("chip", f"unknown chip {chip!r}", nearest(chip, chips))
    if chip in PODS:
        return load_cluster(PODS[chip])
    values = read_toml(_files()[RACKS.get(chip, TEMPLATE)], "chip")
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
    return _described(f"{chip} x {devices_per_node}", values, f"chip {chip}", "chip")


def _described(name: str, values: dict[str, Any], where: str, flag: str) -> Cluster:
    """Returns the machine that a description makes."""
    values = dict(values)
    values.pop("aliases", None)
    for fabric in ("link", "network"):
        if fabric in values:
            values[fabric] = with_shared(values[fabric], f"{where} {fabric}")
    table = Table(values, where)
    chip_table = table.values.get("chip")
    if isinstance(chip_table, str):
        chips = {entry.stem: entry for entry in CHIPS.glob("*.toml")}
        if chip_table not in chips:
            raise InputError(
                table.where, f"unknown chip {chip_table!r}", nearest(chip_table, chips)
            )
        chip_name, chip_values = chip_table, read_toml(chips[chip_table], flag)
    else:
        chip_name, chip_values = name, table.part("chip").values
    chip = read_chip(chip_name, Table(chip_values, f"{table.where} chip"))
    stack = _stack(table)
    # What a chip takes from another one's file stands in the chip alone.
    figures = json.dumps([table.values, chip_values, repr(chip), asdict(stack)], sort_keys=True)
    digest = hashlib.sha256(figures.encode()).hexdigest()
    return Cluster(
        name=name,
        title=table.text("title"),
        chip=chip,
        devices_per_node=table.count("devices_per_node"),
        nodes=table.count("nodes"),
        link=link_of(table.part("link")),
        network=network_of(table.part("network")),
        variability=variability_of(table.part("variability")),
        sources=table.all_sources(),
        digest=digest[:16],
        stack=stack,
    )


def _stack(table: Table) -> Stack:
    """Returns the stack that a machine names, or describes in a table of its own."""
    given = table.values.get("stack")
    if given is None:
        return AS_MEASURED
    if isinstance(given, dict):
        return stacks.read("own", table.part("stack"))
    return stacks.load(str(given), f"{table.where} stack")


def chip_of_device(device_kind: str) -> Chip | None:
    """Returns the description of an attached device by what JAX calls it, or None."""
    for path in sorted(CHIPS.glob("*.toml")):
        values = read_toml(path, "chip")
        if device_kind in values.get("device_kinds", ()):
            return read_chip(path.stem, Table(values, f"chip {path.stem}"))
    return None
