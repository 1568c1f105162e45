"""How much of a block's compute its collectives of parameters overlap with, in XLA's schedule.

XLA writes a schedule down before the program runs: a collective starts at one place of it and is
waited for at another, however long it takes. Between two others there is one at a time, so within
tensor-parallel blocks, which are full of them, what parameters need hardly ever overlaps.
"""

import numpy as np

from exajax.machine.chip import Chip
from exajax.simulate.formulas.shared.layouts import Bools, Floats, Layouts
from exajax.simulate.formulas.xla.figures import xla_figures


def overlap_s(
    layouts: Layouts, chip: Chip, forward_s: Floats, backward_s: Floats, room: Bools
) -> tuple[Floats, Floats, Floats]:
    """Seconds of a block's compute that collectives of parameters can overlap with, [N].

    Args:
        layouts: the layouts.
        chip: the device.
        forward_s: seconds of the forward pass over a block.
        backward_s: seconds of the backward pass.
        room: whether the scheduler has memory left.

    Returns:
        For gathering the next block's parameters in the forward pass, in the backward pass, and for
        scattering the last block's gradients.
    """
    figures = xla_figures().overlap
    estimated = chip.xla_target.get("compute_capability", (9, 0))[0] >= 9
    alone = figures.alone_estimated if estimated else figures.alone_fixed
    conditions = [layouts.tensor > 1, layouts.expert > 1, layouts.context > 1]
    of_kinds = (figures.tensor, figures.expert, figures.context)

    def share(which: int) -> Floats:
        shares = [shares[which] for shares in of_kinds]
        chosen: Floats = np.select(conditions, shares, alone[which]) * room
        return chosen

    return share(0) * forward_s, share(1) * backward_s, share(2) * backward_s
