"""What XLA's schedule of our own program lets collectives run beside, over arrays of layouts.

XLA writes a schedule down before the program runs: a collective starts at one place of it and is
waited for at another, however long it takes. Between two others there is one at a time, so within
tensor-parallel blocks, which are full of them, what parameters need is hardly ever beside compute.
The shares were chosen by hand to agree with the programs marked `fitted` in
`benchmarks/engines.py`, which says how far they hold for others.
"""

from dataclasses import dataclass

import numpy as np

from exajax.machine.chip import Chip
from exajax.simulate.formulas.layouts import Bools, Floats, Layouts


@dataclass(frozen=True)
class Shares:
    """Shares of a pass over a block that collectives are beside, where there is room for that.

    Attributes:
        gathered_ahead: parameters of the next block, in the forward pass.
        gathered_back: the same in the backward pass.
        scattered: gradients of the last block.
    """

    gathered_ahead: float
    gathered_back: float
    scattered: float


ALONE = {True: Shares(0.6, 0.16, 0.25), False: Shares(0.4, 0.0, 0.2)}
"""Of blocks without collectives of their own, by whether XLA knows how long collectives take: it
estimates them for Hopper and Blackwell, and takes a fixed time for others (openxla/xla,
sol_latency_estimator.cc, IsSupportedForModule)."""

TENSOR = Shares(0.02, 0.0, 0.25)
"""Of tensor-parallel blocks."""

EXPERT = Shares(0.25, 1.0, 0.0)
"""Of blocks that exchange tokens."""

CONTEXT = Shares(0.4, 0.2, 0.0)
"""Of blocks with a ring."""


def seconds(
    layouts: Layouts, chip: Chip, ahead: Floats, back: Floats, room: Bools
) -> tuple[Floats, Floats, Floats]:
    """Returns the seconds of compute that each of `Shares` is beside, of shape [N].

    Args:
        layouts: how.
        chip: the device.
        ahead: seconds of the forward pass over a block.
        back: seconds of the backward pass.
        room: whether the scheduler has memory left.
    """
    known = chip.xla_target.get("compute_capability", (9, 0))[0] >= 9
    kinds = (
        (layouts.tensor > 1, TENSOR),
        (layouts.expert > 1, EXPERT),
        (layouts.context > 1, CONTEXT),
    )
    conditions = [condition for condition, _ in kinds]

    def share(name: str) -> Floats:
        values = [getattr(shares, name) for _, shares in kinds]
        chosen: Floats = np.select(conditions, values, getattr(ALONE[known], name)) * room
        return chosen

    return (
        share("gathered_ahead") * ahead,
        share("gathered_back") * back,
        share("scattered") * back,
    )
