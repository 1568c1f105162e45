"""The manifest of a checkpoint: names, shapes and types of its arrays, compared before reading."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Annotated, Any

import jax
from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict

from exajax.job.provenance import versions
from exajax.spmd.step import Stages, TrainStep

Count = Annotated[int, Field(ge=0)]


class BadStepsSaved(TypedDict, total=False):
    """The state of `exajax.train.health.bad_steps` in a checkpoint."""

    count: Count
    skipped: list[Count]
    losses: list[float]


@with_config(ConfigDict(extra="allow"))
class About(TypedDict, total=False):
    """The facts that are saved with a checkpoint, `about.json`; callers may add others."""

    recipe: dict[str, Any]
    data: dict[str, Any] | None
    init: str | None
    bad_steps: BadStepsSaved


@dataclass(frozen=True)
class Array:
    """Shape and type of an array.

    Attributes:
        shape: global shape.
        dtype: name of the type.
    """

    shape: tuple[Count, ...]
    dtype: str


@dataclass(frozen=True)
class Manifest:
    """The arrays of a checkpoint, and the mesh, versions and data position it was saved with.

    Attributes:
        step: number of updates that made the state.
        arrays: every array by its path, in the order of the state.
        stack: path component of the stacked layers, empty where none are stacked.
        parts: V of layers that are stored as [V, L / V, ...]; 1 for [L, ...].
        mesh: size of every mesh axis. Like `versions` it is only reported: a state can be restored
            onto any mesh.
        versions: versions of the packages that saved it.
        samples: samples trained on so far: where in the data the next step begins.
        seed: seed of the run, which with a step's number determines the step's samples.
        digests: digests of the arrays by path (`train.health.digest`); empty before it is saved.
    """

    step: Count
    arrays: Mapping[str, Array]
    stack: str
    parts: Annotated[int, Field(ge=1)]
    mesh: Mapping[str, int]
    versions: Mapping[str, str]
    samples: Count = 0
    seed: int = 0
    digests: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        step: TrainStep,
        done: int,
        seed: int = 0,
        digests: Mapping[str, str] = MappingProxyType({}),
    ) -> "Manifest":
        """The manifest of a workload's state on its mesh after `done` updates."""
        leaves = jax.tree_util.tree_leaves_with_path(step.state)
        loss = step.workload.loss
        return cls(
            done,
            {name_of(path): Array(tuple(leaf.shape), leaf.dtype.name) for path, leaf in leaves},
            loss.stack if isinstance(loss, Stages) else "",
            loss.parts if isinstance(loss, Stages) else 1,
            dict(step.mesh.shape),
            versions(),
            done * step.workload.samples,
            seed,
            dict(digests),
        )

    def to_json(self) -> dict[str, Any]:
        """The manifest as JSON."""
        return asdict(self)

    @property
    def origin(self) -> str:
        """Mesh and versions, in words."""
        axes = ",".join(f"{axis}={size}" for axis, size in self.mesh.items() if size > 1)
        packages = ", ".join(f"{package} {version}" for package, version in self.versions.items())
        return f"mesh {axes or 'of one device'}, {packages}"

    def unstacked_shape(self, path: str) -> tuple[int, ...]:
        """The shape of an array with all layers on one axis: [L, ...]."""
        shape = self.arrays[path].shape
        if self.parts > 1 and self.stack in path.split(".") and len(shape) > 1:
            return (shape[0] * shape[1], *shape[2:])
        return shape


def name_of(path: tuple[Any, ...]) -> str:
    """The path of an array in a state as a name, such as `params.head.kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def difference(saved: Manifest, wanted: Manifest) -> str | None:
    """The first difference between a saved and a wanted state in words, None if they are equal.

    Another number of `parts` is no difference: the layers and their order are the same.
    """
    for path in {**wanted.arrays, **saved.arrays}:
        problem = _differs(path, saved, wanted)
        if problem:
            other = "the optimizer is another one: " if path.startswith("optimizer") else ""
            return other + problem
    return None


def _differs(path: str, saved: Manifest, wanted: Manifest) -> str | None:
    old, new = saved.arrays.get(path), wanted.arrays.get(path)
    if old is None:
        return f"{path} is not there"
    if new is None:
        return f"{path} is there, and this model's state has none"
    if saved.unstacked_shape(path) != wanted.unstacked_shape(path):
        return f"{path} has shape {list(old.shape)}, and this model's has {list(new.shape)}"
    if old.dtype != new.dtype:
        return f"{path} is {old.dtype}, and this model's is {new.dtype}"
    return None
