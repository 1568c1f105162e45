"""Adafactor and Muon, which need to know the matrices in a parameter; the names of axes tell.

A stacked parameter contains many matrices (`[layers, experts, embed, mlp]`), and each side of a
matrix may have several axes (`[layers, embed, heads, head]`). Each matrix is treated on its own.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from exajax.spmd.sharding import logical_names

Tree = Any

VECTORS = {"scale", "bias"}
"""Names of parameters that are vectors, also when they are stacked over layers."""

STACKED = ("layers", "parts", "within", "experts")
"""Names of leading axes over which matrices are stacked."""


@dataclass(frozen=True)
class MatrixAxes:
    """The axes of a parameter that form the sides of its matrices; leading axes stack them.

    Attributes:
        inputs: axes of the input side.
        outputs: axes of the output side; empty for a vector.
        hidden: whether it is a matrix of a layer, not the embedding or the logits.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    hidden: bool

    @classmethod
    def of(cls, names: Sequence[str | None], vector: bool) -> "MatrixAxes":
        """The sides of a parameter by its logical names; `embed` is always a side by itself.

        Args:
            names: logical name of each axis, or None.
            vector: whether the axes that are not stacked form a vector.
        """
        axes = tuple(range(len(names)))
        first = next((axis for axis in axes if names[axis] not in STACKED), len(axes))
        sides = axes[first:]
        if vector or len(sides) < 2:
            return cls(sides, (), hidden=False)
        split = 1 if names[first] == "embed" else len(sides) - 1
        return cls(sides[:split], sides[split:], hidden="layers" in names[:first])


AxesByPath = Mapping[str, MatrixAxes]
"""Axes of every parameter, by its path."""


def is_vector(path: tuple[Any, ...]) -> bool:
    """Whether a parameter is a vector in each layer, by its name."""
    return str(getattr(path[-1], "key", path[-1])) in VECTORS


def matrix_axes(build: Callable[[nnx.Rngs], nnx.Module]) -> AxesByPath:
    """Axes of the matrices in a module's parameters, from its names of axes; allocates nothing."""
    with nnx.use_eager_sharding(False):
        params = nnx.state(nnx.eval_shape(lambda: build(nnx.Rngs(0))), nnx.Param)
    names = jax.tree.map(logical_names, params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    leaves = jax.tree_util.tree_leaves_with_path(
        nnx.to_pure_dict(names), is_leaf=lambda leaf: isinstance(leaf, tuple)
    )
    return {
        jax.tree_util.keystr(path): MatrixAxes.of(names, is_vector(path)) for path, names in leaves
    }


class FactoredState(NamedTuple):
    """State of Adafactor: factored second moments.

    Attributes:
        step: number of updates, int32.
        rows: means over outputs, of the parameter's shape with those axes of size 1.
        columns: means over inputs, of the parameter's shape with those axes of size 1.
    """

    step: jax.Array
    rows: Tree
    columns: Tree


def scale_by_factored_rms(sides: AxesByPath, decay: float = 0.8) -> optax.GradientTransformation:
    """Adafactor without momentum and without its own learning rate (arXiv:1804.04235, algorithm 4).

    Unlike `optax.adafactor`, which factors the two largest axes of an array, this factors the sides
    of each matrix, and clips the update of each matrix by its own root mean square. The factors
    have as many axes as their parameter, so that they are sharded like it.

    Args:
        sides: axes of every parameter.
        decay: exponent of the moments' decay, 1 - step^-decay.
    """

    def init(params: Tree) -> FactoredState:
        def mean_of(side: str) -> Tree:
            def zeros(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
                averaged = getattr(sides[jax.tree_util.keystr(path)], side)
                shape = [1 if axis in averaged else size for axis, size in enumerate(leaf.shape)]
                return jnp.zeros(shape, leaf.dtype)

            return jax.tree_util.tree_map_with_path(zeros, params)

        return FactoredState(jnp.zeros((), jnp.int32), mean_of("outputs"), mean_of("inputs"))

    def update(
        gradients: Tree, state: FactoredState, params: Tree = None
    ) -> tuple[Tree, FactoredState]:
        step = optax.safe_increment(state.step)
        beta = 1.0 - step.astype(jnp.float32) ** -decay

        def update_leaf(
            path: tuple[Any, ...], g: jax.Array, row: jax.Array, column: jax.Array
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            matrix = sides[jax.tree_util.keystr(path)]
            both = matrix.inputs + matrix.outputs
            square = jnp.square(g) + 1e-30
            row = beta * row + (1 - beta) * jnp.mean(square, matrix.outputs, keepdims=True)
            column = beta * column + (1 - beta) * jnp.mean(square, matrix.inputs, keepdims=True)
            mean = jnp.mean(row, matrix.inputs, keepdims=True)
            change = g * jax.lax.rsqrt(row / mean) * jax.lax.rsqrt(column)
            rms = jnp.sqrt(jnp.mean(jnp.square(change), both, keepdims=True))
            return change / jnp.maximum(1.0, rms), row, column

        results = jax.tree_util.tree_map_with_path(
            update_leaf, gradients, state.rows, state.columns
        )
        changes, rows, columns = jax.tree.transpose(
            jax.tree.structure(gradients), jax.tree.structure((0, 0, 0)), results
        )
        return changes, FactoredState(step, rows, columns)

    return optax.GradientTransformation(init, update)


def scale_by_muon(sides: AxesByPath, other: optax.GradientTransformation) -> Any:
    """Muon for the matrices of layers, and another optimizer for embedding, logits and vectors.

    Updates are scaled to a root mean square of 0.2, about that of AdamW's, so that the same
    learning rate suits both (arXiv:2502.16982, section 2.2). Sharded matrices are gathered in every
    iteration, which on a large mesh takes longer than the rest of the step (see `simulate`).

    Args:
        sides: axes of every parameter.
        other: optimizer of the parameters that are not matrices of a layer.
    """

    def dimensions(params: Tree) -> Tree:
        def of_leaf(path: tuple[Any, ...], _: Any) -> optax.contrib.MuonDimensionNumbers:
            matrix = sides[jax.tree_util.keystr(path)]
            return optax.contrib.MuonDimensionNumbers(matrix.inputs, matrix.outputs)

        return jax.tree_util.tree_map_with_path(of_leaf, params)

    def like_adamw(path: tuple[Any, ...], change: jax.Array) -> jax.Array:
        matrix = sides[jax.tree_util.keystr(path)]
        longest = max(
            math.prod(change.shape[axis] for axis in side)
            for side in (matrix.inputs, matrix.outputs)
        )
        return 0.2 * longest**0.5 * change

    def labels(params: Tree) -> Tree:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "muon" if sides[jax.tree_util.keystr(path)].hidden else "other", params
        )

    muon = optax.chain(
        optax.contrib.scale_by_muon(weight_dimension_numbers=dimensions),
        optax.stateless(
            lambda changes, params: jax.tree_util.tree_map_with_path(like_adamw, changes)
        ),
    )
    return optax.partition({"muon": muon, "other": other}, labels)
