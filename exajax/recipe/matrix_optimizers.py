"""Optimizers that see matrices: Adafactor and Muon, told by the names of axes what is one.

A stacked parameter is many matrices in one array (`[layers, experts, embed, mlp]`), and a matrix
may have several axes a side (`[layers, embed, heads, head]`). Each is treated on its own.
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
"""Names of parameters that are one vector in each layer, however they are stacked."""

STACKED = ("layers", "parts", "within", "experts")
"""Names of leading axes that count matrices and are no part of one."""


@dataclass(frozen=True)
class Matrix:
    """Which axes of a parameter are the sides of its matrices; the axes before them count them.

    Attributes:
        inputs: axes of what it is multiplied by.
        outputs: axes of the product, none if it is a vector.
        hidden: whether it is a matrix of a layer, not a look-up table or the logits.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    hidden: bool

    @classmethod
    def of(cls, names: Sequence[str | None], vector: bool) -> "Matrix":
        """Returns the sides by logical names: the width of the model alone makes up one side.

        Args:
            names: logical name of every axis, or None.
            vector: whether what is not stacked is one vector.
        """
        axes = tuple(range(len(names)))
        first = next((axis for axis in axes if names[axis] not in STACKED), len(axes))
        sides = axes[first:]
        if vector or len(sides) < 2:
            return cls(sides, (), hidden=False)
        split = 1 if names[first] == "embed" else len(sides) - 1
        return cls(sides[:split], sides[split:], hidden="layers" in names[:first])


Matrices = Mapping[str, Matrix]
"""The sides of every parameter, by its path."""


def is_vector(path: tuple[Any, ...]) -> bool:
    """Returns whether a parameter is one vector in each layer, by its name."""
    return str(getattr(path[-1], "key", path[-1])) in VECTORS


def matrices(build: Callable[[nnx.Rngs], nnx.Module]) -> Matrices:
    """Returns the sides of a module's parameters, read from their names; none is made."""
    with nnx.use_eager_sharding(False):
        params = nnx.state(nnx.eval_shape(lambda: build(nnx.Rngs(0))), nnx.Param)
    names = jax.tree.map(logical_names, params, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))
    leaves = jax.tree_util.tree_leaves_with_path(
        nnx.to_pure_dict(names), is_leaf=lambda leaf: isinstance(leaf, tuple)
    )
    return {jax.tree_util.keystr(path): Matrix.of(names, is_vector(path)) for path, names in leaves}


class FactoredState(NamedTuple):
    """Second moments of matrices, by row and by column.

    Attributes:
        step: updates done, int32.
        rows: mean over outputs; the parameter's shape with those axes of size 1.
        columns: mean over inputs, likewise.
    """

    step: jax.Array
    rows: Tree
    columns: Tree


def scale_by_factored_rms(sides: Matrices, decay: float = 0.8) -> optax.GradientTransformation:
    """Adafactor without momentum and without its own learning rate (arXiv:1804.04235, algorithm 4).

    Unlike `optax.adafactor`, which factors the two largest axes of an array, it factors the sides
    of a matrix, and clips the update of each matrix by its own root mean square. The factors keep
    the rank of their parameter, and so lie on devices as it does.

    Args:
        sides: of every parameter.
        decay: exponent of the moments' decay, 1 - step^-decay.
    """

    def init(params: Tree) -> FactoredState:
        def mean_of(side: str) -> Tree:
            def zeros(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
                gone = getattr(sides[jax.tree_util.keystr(path)], side)
                shape = [1 if axis in gone else size for axis, size in enumerate(leaf.shape)]
                return jnp.zeros(shape, leaf.dtype)

            return jax.tree_util.tree_map_with_path(zeros, params)

        return FactoredState(jnp.zeros((), jnp.int32), mean_of("outputs"), mean_of("inputs"))

    def update(
        gradients: Tree, state: FactoredState, params: Tree = None
    ) -> tuple[Tree, FactoredState]:
        step = optax.safe_increment(state.step)
        kept = 1.0 - step.astype(jnp.float32) ** -decay

        def one(path: tuple[Any, ...], g: jax.Array, row: jax.Array, column: jax.Array) -> tuple:
            matrix = sides[jax.tree_util.keystr(path)]
            both = matrix.inputs + matrix.outputs
            square = jnp.square(g) + 1e-30
            row = kept * row + (1 - kept) * jnp.mean(square, matrix.outputs, keepdims=True)
            column = kept * column + (1 - kept) * jnp.mean(square, matrix.inputs, keepdims=True)
            mean = jnp.mean(row, matrix.inputs, keepdims=True)
            change = g * jax.lax.rsqrt(row / mean) * jax.lax.rsqrt(column)
            rms = jnp.sqrt(jnp.mean(jnp.square(change), both, keepdims=True))
            return change / jnp.maximum(1.0, rms), row, column

        results = jax.tree_util.tree_map_with_path(one, gradients, state.rows, state.columns)
        changes, rows, columns = jax.tree.transpose(
            jax.tree.structure(gradients), jax.tree.structure((0, 0, 0)), results
        )
        return changes, FactoredState(step, rows, columns)

    return optax.GradientTransformation(init, update)


def scale_by_muon(sides: Matrices, other: optax.GradientTransformation) -> Any:
    """Muon for the matrices of layers, another optimizer for tables, logits and vectors.

    Updates are scaled to a root mean square of 0.2, about that of AdamW's, so that one learning
    rate serves both (arXiv:2502.16982, section 2.2). Sharded matrices are gathered in every
    iteration: on a large mesh that takes longer than the rest of the step, as `simulate` tells.

    Args:
        sides: of every parameter.
        other: for the parameters that are no matrices of a layer.
    """

    def dimensions(params: Tree) -> Tree:
        def one(path: tuple[Any, ...], _: Any) -> optax.contrib.MuonDimensionNumbers:
            matrix = sides[jax.tree_util.keystr(path)]
            return optax.contrib.MuonDimensionNumbers(matrix.inputs, matrix.outputs)

        return jax.tree_util.tree_map_with_path(one, params)

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
