"""Parameters: drawn, bound to their module, and laid over a mesh.

Everywhere else they are a nested dict of arrays, whatever made them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from exajax.errors import InputError
from exajax.spmd.sharding import RULES, Rules, logical_names, shard_over, zero_axes
from exajax.spmd.workload import Tree


def draw(build: Callable[[nnx.Rngs], Any], seed: jax.Array) -> Tree:
    """Returns the first parameters, a function of the seed alone."""
    with nnx.use_eager_sharding(False):
        made = _with_params(build(nnx.Rngs(jax.random.key(seed))))
        return nnx.to_pure_dict(nnx.state(made))


def parameters(
    build: Callable[[nnx.Rngs], Any], mesh: Mesh, dtype: Any = jnp.float32
) -> tuple[Callable[[Tree], Any], Tree]:
    """Returns what makes a module of parameters, and their shapes and shardings on a mesh.

    This is what a model needs that is used and not trained.

    Args:
        build: makes the module from random streams.
        mesh: a mesh with the axes of `exajax.spmd.mesh`; `fsdp` shards the parameters.
        dtype: type of the parameters.
    """
    module, variables = bind(build)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), nnx.to_pure_dict(variables)
    )
    return module, described(shapes, shardings_of(variables, mesh, zero_axes(0)["parameters"]))


def bind(build: Callable[[nnx.Rngs], Any]) -> tuple[Callable[[Tree], Any], nnx.State]:
    """Returns what binds parameters to the module, and them as shapes, without making any."""
    with nnx.use_eager_sharding(False):
        shapes = nnx.eval_shape(lambda: _with_params(build(nnx.Rngs(0))))
        graph, *states = nnx.split(shapes, nnx.Param, ...)
    params, rest = states
    if jax.tree.leaves(rest):
        names = ", ".join(".".join(map(str, path)) for path, _ in nnx.to_flat_state(rest))
        raise InputError(
            "model",
            f"it holds state that is not nnx.Param: {names}",
            "keep only nnx.Param in the module, without dropout or batch statistics",
        )

    def module(values: Tree) -> Any:
        bound = jax.tree.map(lambda leaf: leaf, params)
        nnx.replace_by_pure_dict(bound, values)
        merged = nnx.merge(graph, bound)
        if isinstance(merged, nnx.Module):
            return merged
        return jax.tree.map(lambda leaf: leaf[...], merged, is_leaf=_is_variable)

    return module, params


def shardings_of(
    variables: nnx.State, mesh: Mesh, axes: tuple[str, ...], rules: Rules = RULES
) -> Tree:
    """Returns a sharding for every parameter, as a nested dict."""

    def one(variable: nnx.Variable) -> NamedSharding:
        shape = variable.get_value().shape
        return NamedSharding(mesh, shard_over(logical_names(variable), shape, mesh, axes, rules))

    return nnx.to_pure_dict(jax.tree.map(one, variables, is_leaf=_is_variable))


def described(shapes: Tree, shardings: Tree) -> Tree:
    """Returns shapes with their shardings."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def cast(params: Tree, dtype: Any) -> Tree:
    """Returns parameters with the floating ones in another type."""
    return jax.tree.map(
        lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
        params,
    )


def _with_params(made: Any) -> Any:
    """Returns a module as it is, and any other tree with its arrays as parameters."""
    if isinstance(made, nnx.Module):
        return made
    return jax.tree.map(
        lambda leaf: leaf if _is_variable(leaf) else nnx.Param(leaf), made, is_leaf=_is_variable
    )


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)
