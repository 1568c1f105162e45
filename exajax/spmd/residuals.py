"""What a forward pass saves for its backward pass, as arrays that can lie in a buffer meanwhile.

Relied on, in jax 0.10.2 to 0.12.0: the pullback of `jax.vjp` is a tree whose leaves are the arrays
that it saves, and an argument that it saves is that argument itself, the same object. JAX promises
the first and not the second. Where it saved copies instead, nothing would fail: a pipeline would
keep its parameters once for every micro-batch in flight (`tests/spmd/test_residuals.py`).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

Tree = Any


class Form(NamedTuple):
    """How a pullback is made again.

    Attributes:
        structure: of its tree.
        arguments: of each leaf the index among the arguments, None of one that has to be saved.
    """

    structure: Any
    arguments: tuple[int | None, ...]


def split(pullback: Tree, arguments: Tree) -> tuple[list[Any], Form]:
    """Returns what a pullback saves besides arguments of its function, and how it is made again."""
    leaves, structure = jax.tree.flatten(pullback)
    index = {id(leaf): i for i, leaf in enumerate(jax.tree.leaves(arguments))}
    form = Form(structure, tuple(index.get(id(leaf)) for leaf in leaves))
    return [leaf for leaf in leaves if id(leaf) not in index], form


def joined(form: Form, saved: Sequence[Any], arguments: Tree) -> Callable[..., Any]:
    """Returns the pullback of what was saved and of the same arguments."""
    known, rest = jax.tree.leaves(arguments), iter(saved)
    leaves = [next(rest) if i is None else known[i] for i in form.arguments]
    pullback: Callable[..., Any] = jax.tree.unflatten(form.structure, leaves)
    return pullback
