"""Parameters of a module: their initial values, their shapes, and their shardings over a mesh.

Outside of this file, parameters are a nested dict of arrays, whatever kind of module has them.
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


def initial_parameters(build: Callable[[nnx.Rngs], Any], seed: jax.Array) -> Tree:
    """The initial parameters, which depend only on the seed."""
    with nnx.use_eager_sharding(False):
        module = _arrays_as_params(build(nnx.Rngs(jax.random.key(seed))))
        return nnx.to_pure_dict(nnx.state(module))


def abstract_parameters(
    build: Callable[[nnx.Rngs], Any], mesh: Mesh, dtype: Any = jnp.float32
) -> tuple[Callable[[Tree], Any], Tree]:
    """A module as a function of its parameters, and their shapes and shardings, for inference.

    Args:
        build: `build(rngs)` returns the module.
        mesh: a mesh with the axes of `exajax.spmd.mesh`; `fsdp` shards the parameters.
        dtype: type of the parameters.

    Returns:
        `module(params)`, and the parameters as `jax.ShapeDtypeStruct`s with shardings.
    """
    module, variables = split_module(build)
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), nnx.to_pure_dict(variables)
    )
    return module, with_shardings(shapes, shardings_of(variables, mesh, zero_axes(0)["parameters"]))


def split_module(build: Callable[[nnx.Rngs], Any]) -> tuple[Callable[[Tree], Any], nnx.State]:
    """Splits a module into a function of its parameters, and the parameters as shapes.

    No array is allocated.

    Args:
        build: `build(rngs)` returns the module, or any pytree of arrays.

    Returns:
        `module(params)`, and the parameters as variables with shapes.

    Raises:
        InputError: the module has state that is not a parameter.
    """
    with nnx.use_eager_sharding(False):
        shapes = nnx.eval_shape(lambda: _arrays_as_params(build(nnx.Rngs(0))))
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
    """Shardings of the parameters, as a nested dict.

    Args:
        variables: the parameters, with shapes and names of their axes.
        mesh: the mesh.
        axes: mesh axes that divide one more axis of each parameter than the rules do.
        rules: mesh axes that divide each logical axis.
    """

    def sharding_of(variable: nnx.Variable) -> NamedSharding:
        shape = variable.get_value().shape
        return NamedSharding(mesh, shard_over(logical_names(variable), shape, mesh, axes, rules))

    return nnx.to_pure_dict(jax.tree.map(sharding_of, variables, is_leaf=_is_variable))


def with_shardings(shapes: Tree, shardings: Tree) -> Tree:
    """A tree of shapes and a tree of shardings as one tree of `jax.ShapeDtypeStruct`s."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def cast(params: Tree, dtype: Any) -> Tree:
    """Parameters with all floating-point ones converted to a type."""
    return jax.tree.map(
        lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
        params,
    )


def _arrays_as_params(built: Any) -> Any:
    """A module unchanged; any other tree with its plain arrays as `nnx.Param`s."""
    if isinstance(built, nnx.Module):
        return built
    return jax.tree.map(
        lambda leaf: leaf if _is_variable(leaf) else nnx.Param(leaf), built, is_leaf=_is_variable
    )


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)
