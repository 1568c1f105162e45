"""Sharding: rules from logical axis names to mesh axes, and the axes that each ZeRO level shards.

A model names the axes of its arrays (`embed`, `heads`, `batch`); rules say which mesh axes divide
each name. `fsdp` and `expert`, and `data` depending on the ZeRO level, then divide one more axis of
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
"""Mesh axes that divide each logical axis; a name without an entry is not divided."""

SCANNED = ("layers", "parts", "within")
"""Logical axes that a scan iterates over; only `pipe` may divide them."""

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
"""The rules of the models that come with exajax, and a good start for one's own."""


class ActiveMesh(NamedTuple):
    """The mesh and the rules of the enclosing `use_mesh`."""

    mesh: Mesh
    rules: Rules


_active_mesh: contextvars.ContextVar[ActiveMesh | None] = contextvars.ContextVar(
    "exajax_placement", default=None
)


@contextlib.contextmanager
def use_mesh(mesh: Mesh, rules: Rules = RULES) -> Iterator[None]:
    """Context in which `constrain` shards over `mesh`; outside of it, models run unsharded."""
    token = _active_mesh.set(ActiveMesh(mesh, rules))
    try:
        yield
    finally:
        _active_mesh.reset(token)


def axis_size(axis: str) -> int:
    """Size of an axis of the active mesh; 1 without a mesh."""
    active = _active_mesh.get()
    return active.mesh.shape[axis] if active else 1


def mesh_axes_of(name: str) -> tuple[str, ...]:
    """Axes of the active mesh, larger than 1, that divide a logical axis; empty without a mesh."""
    active = _active_mesh.get()
    axes = active.rules.get(name, ()) if active else ()
    return tuple(axis for axis in axes if axis_size(axis) > 1)


def platform() -> str | None:
    """Platform of the active mesh's devices (`cpu`, `gpu`); None without a mesh."""
    active = _active_mesh.get()
    return str(active.mesh.devices.flat[0].platform) if active else None


def constrain(x: jax.Array, names: Sequence[str | None]) -> jax.Array:
    """An activation with a sharding constraint.

    Args:
        x: the activation.
        names: logical name of each axis, or None. Within `manual`, mesh axes that are manual there
            are left out of the constraint.
    """
    active = _active_mesh.get()
    if active is None:
        return x
    mesh = _mesh_in_use(active)
    spec = _spec_by_rules(names, x.shape, active.mesh, active.rules, _manual_axes())
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def constrain_to(tree: Any, specs: Any) -> Any:
    """A tree of arrays, each with a sharding constraint.

    Args:
        tree: the arrays.
        specs: their shardings outside of `manual`; within it, its axes are left out.
    """
    active = _active_mesh.get()
    if active is None:
        return tree
    mesh, manual_axes = _mesh_in_use(active), _manual_axes()

    def constrain_leaf(x: jax.Array, sharding: NamedSharding) -> jax.Array:
        entries = (
            tuple(axis for axis in _axes(entry) if axis not in manual_axes) or None
            for entry in sharding.spec
        )
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*entries)))

    return jax.tree.map(constrain_leaf, tree, specs)


def manual(
    function: Callable[..., Any], axes: Sequence[str], in_specs: Any, out_specs: Any
) -> Callable[..., Any]:
    """A function mapped over shards of its arguments (`jax.shard_map`); calls can be nested.

    Args:
        function: computes on one shard, and calls collectives over `axes`. The partitioner still
            divides it over all other axes.
        axes: mesh axes to be manual; axes of an enclosing `manual` may be repeated.
        in_specs: how each argument is divided over `axes`.
        out_specs: how each result is divided over `axes`.
    """
    active = _active_mesh.get()
    if active is None:
        raise ValueError("manual needs a mesh; call it within use_mesh")
    # Axes of size 1 become manual too: only if no automatic axis is left does JAX call cuDNN's
    # kernels without partitioning them.
    trivial = {axis for axis, size in active.mesh.shape.items() if size == 1}
    return jax.shard_map(
        function,
        mesh=None if _manual_axes() else active.mesh,
        axis_names={*axes, *trivial} - _manual_axes(),
        in_specs=in_specs,
        out_specs=out_specs,
        check_vma=False,
    )


def _manual_axes() -> frozenset[str]:
    """Mesh axes that are manual here, because of an enclosing `manual`."""
    return frozenset(jax.sharding.get_abstract_mesh().manual_axes)


def free_axes(axes: Sequence[str]) -> tuple[str, ...]:
    """Those of `axes` that are larger than 1 and not manual here."""
    return tuple(axis for axis in axes if axis_size(axis) > 1 and axis not in _manual_axes())


def _mesh_in_use(active: ActiveMesh) -> Any:
    return jax.sharding.get_abstract_mesh() if _manual_axes() else active.mesh


def _spec_by_rules(
    names: Sequence[str | None],
    shape: Sequence[int],
    mesh: Mesh,
    rules: Rules,
    without: frozenset[str] = frozenset(),
) -> PartitionSpec:
    """The partition spec of an array by the rules.

    Args:
        names: logical name of each axis, or None.
        shape: size of each axis; one that its mesh axes do not divide evenly is not divided.
        mesh: the mesh.
        rules: mesh axes that divide each logical axis.
        without: mesh axes to leave out.
    """
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
    """The partition spec of an array by the rules, with one more of its axes divided.

    The largest undivided axis that the mesh axes divide evenly is chosen, but none of `SCANNED`.
    If all of them together divide no axis, the last mesh axis is dropped and the rest tried again.

    Args:
        names: logical name of each axis of the array, or None.
        shape: size of each axis of the array.
        mesh: the mesh.
        axes: mesh axes that divide the additional axis; those that the rules use for this array
            are left out.
        rules: mesh axes that divide each logical axis.
    """
    spec = list(_spec_by_rules(names, shape, mesh, rules))
    used = {axis for entry in spec for axis in _axes(entry)}
    candidates = [axis for axis in axes if mesh.shape[axis] > 1 and axis not in used]
    while candidates:
        ways = math.prod(mesh.shape[axis] for axis in candidates)
        free = [
            (size, -position)
            for position, (size, name) in enumerate(zip(shape, names, strict=True))
            if spec[position] is None and name not in SCANNED and size % ways == 0
        ]
        if free:
            spec[-max(free)[1]] = tuple(candidates)
            break
        candidates.pop()
    return PartitionSpec(*spec)


def _axes(entry: Any) -> tuple[str, ...]:
    """Mesh axes of one entry of a partition spec, which is a name, a tuple of names, or None."""
    return (entry,) if isinstance(entry, str) else tuple(entry or ())


def zero_axes(zero: int) -> dict[str, tuple[str, ...]]:
    """Mesh axes that shard `parameters`, `gradients` and `optimizer` at a ZeRO level.

    `data` comes last, so that a shard over `data` is a slice of what a replica has without it.

    Args:
        zero: what the data axis shards: 0 nothing, 1 the optimizer state, 2 also the gradients,
            3 also the parameters. fsdp, expert and (outside of the layers) pipe always shard all.
    """
    levels = {"optimizer": 1, "gradients": 2, "parameters": 3}
    always = ("fsdp", "expert", "pipe")
    return {kind: (*always, "data") if zero >= level else always for kind, level in levels.items()}


def logical_names(variable: Any) -> tuple[str | None, ...]:
    """Logical names that a module gives to the axes of a variable; None for axes without one."""
    names = variable.get_metadata().get("out_sharding")
    return tuple(names) if names else (None,) * variable.get_value().ndim
