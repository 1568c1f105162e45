"""Looks for silent data corruption: what should be equal on several devices is compared to the bit.

(a) Copies. Every array that several devices hold is digested by each of them. A bit that has
flipped in the memory of one is found where its copy lives on: with ZeRO 0 for good, with ZeRO 1 and
2 until the next update gathers the parameters anew.

(b) Replay. Every replica, that is every place on the axes `data` and `fsdp`, computes the gradient
of one and the same micro-batch, with its own copy of the parameters or, where they are divided,
with what the step too gathers. What differs was computed wrongly.

Of what lies on one device alone there is nothing to compare: the replay looks at how it is worked
with, and nothing at how it is kept.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from exajax.job import coordination
from exajax.spmd.mesh import AXES
from exajax.spmd.step import TrainState, TrainStep
from exajax.spmd.workload import Batch, Tree
from exajax.train.health.device_copies import divides, local_digests, odd_ones
from exajax.train.health.replay import GROUP, REPLICAS, Replay


@dataclass(frozen=True)
class Discrepancy:
    """What differs between devices, and should be equal.

    Attributes:
        what: `state` or `gradient`, and the arrays.
        devices: ids of the devices that differ.
        hosts: numbers of their hosts.
        certain: whether most copies agree; if not, all that differ are named, and some are right.
    """

    what: str
    devices: tuple[int, ...]
    hosts: tuple[int, ...]
    certain: bool

    def __str__(self) -> str:
        hosts, devices = (", ".join(map(str, numbers)) for numbers in (self.hosts, self.devices))
        doubt = "" if self.certain else "; so few copies cannot tell which of them is right"
        return f"{self.what} differs on host {hosts}, device {devices}{doubt}"


@dataclass(frozen=True)
class Report:
    """What an audit has seen; the same on every process.

    Attributes:
        finding: what differs, None where nothing does.
        times_s: what was measured on every host, [processes, times]: those that were given, and
            last the replay on its own devices, if there is one.
    """

    finding: Discrepancy | None
    times_s: np.ndarray


class Audit:
    """What looks at the state of a run.

    Attributes:
        hosts: number of the host of every process.
        groups: processes whose devices share replicas.
        replicas: how many replay a micro-batch; 1 is nothing to compare.

    Args:
        step: the workload on its mesh.
        host: number of this process's host.

    Raises:
        InputError: a device has no room for the replay.
    """

    def __init__(self, step: TrainStep, host: int) -> None:
        self._state, self._devices = step.state, step.mesh.devices
        flat = self._devices.reshape(-1)
        owners = np.array([device.process_index for device in flat])
        self._places = [np.flatnonzero(owners == p) for p in range(jax.process_count())]
        self.hosts = tuple(_gathered(np.array([host]))[:, 0].tolist())
        self.groups = _groups(step.mesh)
        self._digests = local_digests(step.state)
        self.replicas = step.mesh.shape["data"] * step.mesh.shape["fsdp"]
        self._replay = Replay(step) if self.replicas > 1 else None

    def __str__(self) -> str:
        replay = "nothing is replayed, as there is one replica"
        if self._replay:
            replay = f"a micro-batch is replayed by {self.replicas} replicas"
        alone = f"{self.uncopied:.0%} of the state has no copy to compare"
        shared = ""
        if len(self.groups) < len(self.hosts):
            shared = "; a replica spans hosts, so its time is that of all of them"
        return f"{replay}, {alone}{shared}"

    @property
    def uncopied(self) -> float:
        """Share of the state of which there is no copy: nobody can tell if it changes."""
        leaves = jax.tree.leaves(self._state)
        sizes = [leaf.size * leaf.dtype.itemsize for leaf in leaves]
        alone = [leaf.sharding.num_devices == _ways(leaf) for leaf in leaves]
        return float(np.dot(sizes, alone) / sum(sizes))

    def look(self, state: TrainState, batch: Batch, times_s: Sequence[float] = ()) -> Report:
        """Compares what should be equal. All processes of the job call it together.

        Args:
            state: what to look at; no update is in flight.
            batch: a batch of the step, of which the first samples are replayed.
            times_s: times of this process, to be gathered.
        """
        mine, measured_s = [self._own(self._digests(state))], [*times_s]
        if self._replay:
            shared = jax.block_until_ready(self._replay.share(state.params, dict(batch)))
            started_s = time.perf_counter()
            mine.append(self._own(self._replay.gradient(*shared)))
            measured_s.append(time.perf_counter() - started_s)
        table = self._whole(np.concatenate(mine, axis=1))
        kept = mine[0].shape[1]
        found = self._compare("state", state, table[..., :kept], divides)
        if self._replay and not found:  # where copies differ, so does what is computed from them
            found = self._compare("gradient", state.params, table[..., kept:], lambda _: GROUP)
        return Report(found, _gathered(np.array(measured_s, np.float32)))

    def _own(self, table: jax.Array) -> np.ndarray:
        """Returns the part of a table that is of this process's devices, [devices, arrays, 2]."""
        found = {
            part.device: np.asarray(part.data).reshape(-1, 2) for part in table.addressable_shards
        }
        flat = self._devices.reshape(-1)
        return np.stack([found[flat[place]] for place in self._places[jax.process_index()]])

    def _whole(self, own: np.ndarray) -> np.ndarray:
        """Returns the table of all processes, uint64 [axes of the mesh, arrays]."""
        whole = np.empty((self._devices.size, *own.shape[1:]), own.dtype)
        whole[np.concatenate(self._places)] = _gathered(own).reshape(whole.shape)
        return whole.view(np.uint64).reshape(*self._devices.shape, -1)

    def _compare(
        self, what: str, tree: Tree, table: np.ndarray, divided: Callable[[Any], Sequence[str]]
    ) -> Discrepancy | None:
        names, odd, doubtful = [], *np.zeros((2, *self._devices.shape), bool)
        for number, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(tree)):
            found = odd_ones(table[..., number], divided(leaf))
            if any(part.any() for part in found):
                names.append(jax.tree_util.keystr(path, simple=True, separator="."))
                odd, doubtful = odd | found[0], doubtful | found[1]
        if not names:
            return None
        devices = self._devices[odd if odd.any() else doubtful]
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        return Discrepancy(
            f"{what} ({names[0]}{more})",
            tuple(sorted(device.id for device in devices)),
            tuple(sorted({self.hosts[device.process_index] for device in devices})),
            bool(odd.any()),
        )


def _ways(leaf: Any) -> int:
    return int(np.prod([leaf.sharding.mesh.shape[axis] for axis in divides(leaf)], dtype=int))


def _groups(mesh: Mesh) -> tuple[tuple[int, ...], ...]:
    """Returns the processes in groups: those that work on one replica together are in one."""
    owners = np.vectorize(lambda device: device.process_index)(mesh.devices)
    axes = [AXES.index(axis) for axis in REPLICAS]
    replicas = np.moveaxis(owners, axes, range(len(axes)))
    groups: list[set[int]] = []
    for members in map(set, replicas.reshape(-1, _members(mesh)).tolist()):
        shared = [group for group in groups if group & members]
        groups = [*(group for group in groups if not group & members), members.union(*shared)]
    return tuple(sorted(tuple(sorted(group)) for group in groups))


def _members(mesh: Mesh) -> int:
    """Returns the devices of a replica."""
    return int(np.prod([mesh.shape[axis] for axis in GROUP], dtype=int))


def _gathered(mine: np.ndarray) -> np.ndarray:
    """Returns the arrays of all processes, [processes, ...]."""
    if jax.process_count() == 1:
        return mine[None]
    return coordination.gather(mine)
