"""The path of JAX names that an operation carries through the compiler, and what its parts mean.

`jit(update)/transpose(jvp(layers))/while/body/closed_call/mlp/dot_general`: named scopes of the
model, and between them what tracing and differentiation have made of them. JAX promises nothing of
the spelling. Relied on, in jax 0.10.2 to 0.12.0: `jvp(...)` around what is differentiated,
`transpose(...)` around what belongs to the backward pass, `rematted_computation` before what is
recomputed, `while/body` before what is in a loop, and names of its own in `PLUMBING` (0.12 writes
`eval_jaxpr` where 0.10 wrote `closed_call`). Nothing fails where they change: operations would be
counted for the wrong pass, and buffers for the wrong role. `tests/program/test_labels.py` and
`tests/program/test_memory.py` read steps that the installed JAX has compiled.
"""

import re

PLUMBING = re.compile(
    r"^(jit|pjit|shard_map|while|body|cond|closed_call|eval_jaxpr|checkpoint|remat|"
    r"rematted_computation|custom_jvp_call|custom_vjp_call|branch_\d+_fun|scan|.*_in_dim|"
    r".*update_slice)$"
)
"""Parts of a path that are not scopes of the model, but mechanisms of JAX."""

DIFFERENTIATED = "jvp("


def is_differentiated(path: str) -> bool:
    """Whether an operation belongs to a pass of autodiff, forward or backward."""
    return DIFFERENTIATED in path


def is_backward(path: str) -> bool:
    """Whether an operation belongs to the backward pass, including recomputation."""
    return "transpose(" in path


def is_recomputed(path: str) -> bool:
    """Whether an operation recomputes one of the forward pass in the backward pass."""
    return "rematted_computation" in path


def is_looped(path: str) -> bool:
    """Whether an operation is in a loop that was differentiated."""
    return "while/body" in path.rpartition(DIFFERENTIATED)[2]


def is_unnamed(path: str) -> bool:
    """Whether an operation is differentiated, in a scope without a name."""
    return re.search(r"\bjvp\(\)", path) is not None


def readable(path: str) -> str:
    """The scopes of the model in a path of JAX names; the last part of a path without scopes.

    Of the example above it is `layers/mlp`.
    """
    parts = [re.sub(r"^(?:\w+\()+|\)+$", "", part) for part in path.split("/")[1:]]
    scopes = [part for part in parts[:-1] if part and not PLUMBING.match(part)]
    return "/".join(scopes) or (parts[-1] if parts else "")
