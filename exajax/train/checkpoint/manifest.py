"""What a checkpoint holds, as JSON beside its arrays: compared before any of them is read."""

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
    """What `exajax.train.health.bad_steps` saves of a run's bad steps."""

    count: Count
    skipped: list[Count]
    losses: list[float]


@with_config(ConfigDict(extra="allow"))
class About(TypedDict, total=False):
    """The facts that are saved with a checkpoint, `about.json`; whoever saves may add others."""

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
    """What a checkpoint holds, and what it was saved with.

    Attributes:
        step: updates that the state has seen.
        arrays: every array by its path, in the order of the state.
        stack: what the paths of the layers have in them, empty where none are stacked.
        parts: V of layers that lie as [V, L / V, ...]; 1 where they lie as [L, ...].
        mesh: size of every mesh axis. Like `versions` it is told and never compared: a state goes
            on on any mesh.
        versions: of what saved it.
        samples: samples that the state has seen: where in the data the next step begins.
        seed: of the run; which samples a step sees follows from it and from the step's number.
        digests: of every array by its path (`train.health.digest`); empty before it is saved.
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
        """Returns the manifest of a workload's state on its mesh after `done` updates."""
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
        """Returns the manifest as JSON."""
        return asdict(self)

    @property
    def origin(self) -> str:
        """Mesh and versions, in words."""
        axes = ",".join(f"{axis}={size}" for axis, size in self.mesh.items() if size > 1)
        packages = ", ".join(f"{package} {version}" for package, version in self.versions.items())
        return f"mesh {axes or 'of one device'}, {packages}"

    def whole(self, path: str) -> tuple[int, ...]:
        """Returns an array's shape with all layers on one axis: [L, ...]."""
        shape = self.arrays[path].shape
        if self.parts > 1 and self.stack in path.split(".") and len(shape) > 1:
            return (shape[0] * shape[1], *shape[2:])
        return shape


def name_of(path: tuple[Any, ...]) -> str:
    """Returns the path of an array in a state as a name, `params.head.kernel`."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def difference(saved: Manifest, wanted: Manifest) -> str | None:
    """Returns the first difference between what is there and what is needed, None if none is.

    How many parts the layers lie in is none: they are the same layers in the same order.
    """
    for path in {**wanted.arrays, **saved.arrays}:
        problem = _differs(path, saved, wanted)
        if problem:
            other = "the optimizer is another one: " if path.startswith("optimizer") else ""
            return other + problem
    return None


def _differs(path: str, saved: Manifest, wanted: Manifest) -> str | None:
    theirs, ours = saved.arrays.get(path), wanted.arrays.get(path)
    if theirs is None:
        return f"{path} is not there"
    if ours is None:
        return f"{path} is there, and this model's state has none"
    if saved.whole(path) != wanted.whole(path):
        return f"{path} has shape {list(theirs.shape)}, and this model's has {list(ours.shape)}"
    if theirs.dtype != ours.dtype:
        return f"{path} is {theirs.dtype}, and this model's is {ours.dtype}"
    return None
