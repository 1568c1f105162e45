"""Where arrays live: logical axis names to mesh axes, and what each ZeRO level shards.

A model names the axes of its arrays (`embed`, `heads`, `batch`); rules say which mesh axes divide
each name. `fsdp` and `expert`, and `data` from the ZeRO level on, then divide one more axis of
every parameter, gradient or optimizer moment (arXiv:1910.02054).
"""

import contextlib
import contextvars
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from exajax.spmd.mesh import BATCH_AXES

Rules = Mapping[str, tuple[str, ...]]
"""Mesh axes that divide a logical axis; a name that is not there is not divided."""

SCANNED = ("layers", "parts", "within")
"""Axes that a scan walks: no mesh axis but `pipe` divides them."""

RULES: Rules = {
    "batch": BATCH_AXES,
    "sequence": ("context", "model"),  # of the residual stream, between sublayers
    "tokens": ("context",),  # of the sequence inside attention and feed-forward
    "heads": ("model",),
    "kv_heads": ("model",),
    "mlp": ("model",),
    "vocab": ("model",),
    "experts": ("expert",),
    "layers": ("pipe",),
}
"""The rules of the models here, and a good start for one's own."""


class Placement(NamedTuple):
    """The mesh and the rules that `constrain` follows."""

    mesh: Mesh
    rules: Rules


_placement: contextvars.ContextVar[Placement | None] = contextvars.ContextVar(
    "exajax_placement", default=None
)


@contextlib.contextmanager
def use_mesh(mesh: Mesh, rules: Rules = RULES) -> Iterator[None]:
    """Within, `constrain` places arrays on `mesh`; without, models run as on one device."""
    token = _placement.set(Placement(mesh, rules))
    try:
        yield
    finally:
        _placement.reset(token)


def axis_size(axis: str) -> int:
    """Returns the size of a mesh axis where the model runs, 1 without a mesh."""
    placement = _placement.get()
    return placement.mesh.shape[axis] if placement else 1


def axes_of(name: str) -> tuple[str, ...]:
    """Returns the mesh axes larger than 1 that divide a logical axis, none without a mesh."""
    placement = _placement.get()
    axes = placement.rules.get(name, ()) if placement else ()
    return tuple(axis for axis in axes if axis_size(axis) > 1)


def platform() -> str | None:
    """Returns what the devices of the mesh in use are (`cpu`, `gpu`), None without a mesh."""
    placement = _placement.get()
    return str(placement.mesh.devices.flat[0].platform) if placement else None


def constrain(x: jax.Array, names: Sequence[str | None]) -> jax.Array:
    """Tells the partitioner how an activation lies: one logical name, or None, for each axis.

    Inside `manual` the axes that are already taken apart are left out.
    """
    placement = _placement.get()
    if placement is None:
        return x
    mesh = _ambient(placement)
    spec = _divided(names, x.shape, placement.mesh, placement.rules, _taken())
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def constrain_to(tree: Any, specs: Any) -> Any:
    """Tells the partitioner how a tree of arrays lies, by the sharding of each outside `manual`."""
    placement = _placement.get()
    if placement is None:
        return tree
    mesh, taken = _ambient(placement), _taken()

    def one(x: jax.Array, sharding: NamedSharding) -> jax.Array:
        entries = (
            tuple(axis for axis in _axes(entry) if axis not in taken) or None
            for entry in sharding.spec
        )
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*entries)))

    return jax.tree.map(one, tree, specs)


def manual(
    function: Callable[..., Any], axes: Sequence[str], in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """Maps a function over parts of its arguments: within, `axes` are explicit, others automatic.

    Args:
        function: works on one part, and calls collectives over `axes`.
        axes: mesh axes, those that an outer `manual` has taken among them or not.
        in_specs: how each argument is divided over `axes`.
        out_specs: how each result is.
    """
    placement = _placement.get()
    if placement is None:
        raise ValueError("manual needs a mesh; call it within use_mesh")
    # Axes of size 1 are taken too: where none is left, JAX calls cuDNN's kernels as they are.
    alone = {axis for axis, size in placement.mesh.shape.items() if size == 1}
    return jax.shard_map(
        function,
        mesh=None if _taken() else placement.mesh,
        axis_names={*axes, *alone} - _taken(),
        in_specs=in_specs,
        out_specs=out_specs,
        check_vma=False,
    )


def _taken() -> frozenset[str]:
    """Returns the mesh axes that an enclosing `manual` has taken."""
    return frozenset(jax.sharding.get_abstract_mesh().manual_axes)


def free_axes(axes: Sequence[str]) -> tuple[str, ...]:
    """Returns those axes that are larger than 1 and that no enclosing `manual` has taken."""
    return tuple(axis for axis in axes if axis_size(axis) > 1 and axis not in _taken())


def _ambient(placement: Placement) -> Any:
    return jax.sharding.get_abstract_mesh() if _taken() else placement.mesh


def _divided(
    names: Sequence[str | None],
    shape: Sequence[int],
    mesh: Mesh,
    rules: Rules,
    without: frozenset[str] = frozenset(),
) -> PartitionSpec:
    """Returns the spec of the rules; an axis that the mesh does not divide evenly stays whole."""
    entries: list[tuple[str, ...] | None] = []
    for name, size in zip(names, shape, strict=True):
        axes = tuple(
            axis
            for axis in rules.get(name or "", ())
            if axis not in without and mesh.shape[axis] > 1
        )
        divides = axes and size % math.prod(mesh.shape[axis] for axis in axes) == 0
        entries.append(axes if divides else None)
    return PartitionSpec(*entries)


def shard_over(
    names: Sequence[str | None],
    shape: Sequence[int],
    mesh: Mesh,
    axes: Sequence[str],
    rules: Rules = RULES,
) -> PartitionSpec:
    """Returns the spec of the rules with one more array axis divided over the mesh `axes`.

    The largest axis that is still whole and that they divide is taken, never one that
    a scan walks. Where all of `axes` divide none, the first of them are tried alone. An axis
    that the rules have used for this array already is left out.
    """
    spec = list(_divided(names, shape, mesh, rules))
    used = {axis for entry in spec for axis in _axes(entry)}
    left = [axis for axis in axes if mesh.shape[axis] > 1 and axis not in used]
    while left:
        ways = math.prod(mesh.shape[axis] for axis in left)
        free = [
            (size, -position)
            for position, (size, name) in enumerate(zip(shape, names, strict=True))
            if spec[position] is None and name not in SCANNED and size % ways == 0
        ]
        if free:
            spec[-max(free)[1]] = tuple(left)
            break
        left.pop()
    return PartitionSpec(*spec)


def _axes(entry: Any) -> tuple[str, ...]:
    """Returns the mesh axes of an entry of a spec; one alone is not a tuple there."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def zero_axes(zero: int) -> dict[str, tuple[str, ...]]:
    """Returns the mesh axes that shard `parameters`, `gradients` and `optimizer` at a ZeRO level.

    `data` comes last, so that what only it divides is a slice of what every replica holds.

    Args:
        zero: 0 nothing, 1 optimizer, 2 gradients too, 3 parameters too; said of the data axis.
            fsdp, expert and (for what is outside the layers) pipe always shard all three.
    """
    levels = {"optimizer": 1, "gradients": 2, "parameters": 3}
    always = ("fsdp", "expert", "pipe")
    return {kind: (*always, "data") if zero >= level else always for kind, level in levels.items()}


def logical_names(variable: Any) -> tuple[str | None, ...]:
    """Returns the logical names a module gave to a variable's axes, or Nones."""
    names = variable.get_metadata().get("out_sharding")
    return tuple(names) if names else (None,) * variable.get_value().ndim
