"""Figures of the `torch` formulas: `meshes/programs/torch.toml`, where each has its source."""

from dataclasses import dataclass

from exajax.machine.programs import Figure, load_program
from exajax.machine.sourced_values import TABLE

NAME = "torch"
"""Name of the file."""


@dataclass(frozen=True)
class TorchFigures:
    """All of `meshes/programs/torch.toml`.

    Attributes:
        updated: bytes that the update moves for each parameter.
        loss: bytes that the loss moves for each logit, besides its products.
        logits: bytes of memory for each logit where the loss is computed.
    """

    __pydantic_config__ = TABLE

    updated: Figure
    loss: Figure
    logits: Figure


def torch_figures() -> TorchFigures:
    """The figures, read once."""
    return load_program(NAME, TorchFigures)
