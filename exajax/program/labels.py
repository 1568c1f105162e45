"""Labels of operations for people: part of the model, and forward, backward or recomputation.

JAX names an operation by its path, `jit(update)/transpose(jvp(layers))/while/body/mlp/dot`: named
scopes, and the transformations of autodiff around them. A fusion has the name of its last
operation, and a combined collective the names of all,
`jit(update)/(jvp(embed)/mul:jvp(logits)/dot)`.
"""

import functools
import re
from dataclasses import dataclass

from exajax.program import op_names

PART_OF_SCOPE = {
    "optimizer": "optimizer",
    "moe": "experts",
    "experts": "experts",
    "mlp": "mlp",
    "norm": "norm",
    "attention_norm": "norm",
    "mlp_norm": "norm",
    "attention_block": "attention",
    "attention": "attention",
    "logits": "logits",
    "embed": "embed",
    "loss": "loss",
}
"""Part of the model by the name of a scope; of nested scopes the innermost counts."""

COMMUNICATION = frozenset({"collective", "collective-start", "collective-done"})


@dataclass(frozen=True)
class Label:
    """The part of the model and the pass that an operation belongs to.

    Attributes:
        part: `embed`, `attention`, `mlp`, `experts`, `norm`, `logits`, `loss`, `optimizer`,
            `communication` or `other`.
        layer_kind: `block` in the stacked layers, else empty.
        direction: `forward`, `recompute`, `backward`, or empty outside of both passes.
    """

    part: str
    layer_kind: str
    direction: str


@functools.cache
def label(op_name: str, kind: str = "") -> Label:
    """The label of an operation, by its `Operation.op_name` and `Operation.kind`."""
    path = _first_path(op_name)
    scopes = re.findall(r"[\w.\-]+", path)
    named = [PART_OF_SCOPE[scope] for scope in scopes[:-1] if scope in PART_OF_SCOPE]
    part = named[-1] if named else "other"
    if not named and op_names.is_unnamed(path):
        part = "loss"  # differentiated, but outside of the model's scopes
    if "optimizer" in named:
        part = "optimizer"
    if kind in COMMUNICATION:
        part = "communication"
    layer_kind = "block" if "layers" in scopes else ""
    return Label(part, layer_kind, _direction(path, part))


def _first_path(op_name: str) -> str:
    """The first path of the name of a combined operation."""
    return op_name.split(";")[0].replace("/(", "/").split(":")[0]


def _direction(path: str, part: str) -> str:
    if part == "optimizer":
        return ""
    if op_names.is_recomputed(path):
        return "recompute"
    if op_names.is_backward(path):
        return "backward"
    forward = op_names.is_differentiated(path) or part not in ("other", "communication")
    return "forward" if forward else ""
