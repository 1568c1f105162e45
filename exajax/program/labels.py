"""What people call an operation: the part of the model it belongs to, and the pass.

JAX names an operation by the path to it, `jit(update)/transpose(jvp(layers))/while/body/mlp/dot`:
our scopes, and what differentiation made of them. A fusion carries the name of its last operation,
and collectives that were combined those of all, `jit(update)/(jvp(embed)/mul:jvp(logits)/dot)`.
"""

import functools
import re
from dataclasses import dataclass

from exajax.program import op_names

PARTS = {
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
"""Part by name of a scope. Where scopes are nested the innermost counts."""

COMMUNICATION = frozenset({"collective", "collective-start", "collective-done"})


@dataclass(frozen=True)
class Label:
    """Where an operation belongs.

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
    """Returns where an operation belongs, by `Operation.op_name` and `Operation.kind`."""
    path = _first(op_name)
    scopes = re.findall(r"[\w.\-]+", path)
    named = [PARTS[scope] for scope in scopes[:-1] if scope in PARTS]
    part = named[-1] if named else "other"
    if not named and op_names.is_unnamed(path):
        part = "loss"  # differentiated, and in none of the model's scopes
    if "optimizer" in named:
        part = "optimizer"
    if kind in COMMUNICATION:
        part = "communication"
    layer_kind = "block" if "layers" in scopes else ""
    return Label(part, layer_kind, _direction(path, part))


def _first(op_name: str) -> str:
    """Returns one path of a name that stands for several."""
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
