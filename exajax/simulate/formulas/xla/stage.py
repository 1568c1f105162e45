"""Parameters of one pipeline stage of exajax's step, over arrays of layouts."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from exajax.models.dimensions import ModelConfig
from exajax.simulate.formulas.shared import weights
from exajax.simulate.formulas.shared.layouts import Floats, Layouts


@dataclass(frozen=True)
class StageParameters:
    """Parameters of the stage that has most of them.

    Attributes:
        parts: attention and dense feed-forward; experts, where there are any; tables.
        local: parameters of each part that a device keeps, shape [N].
        blocks: blocks of the stage, shape [N].
    """

    parts: Sequence[weights.Weights]
    local: Sequence[Floats]
    blocks: Floats

    @classmethod
    def of(cls, model: ModelConfig, layouts: Layouts) -> "StageParameters":
        """Counts the parameters."""
        attention, experts, tables = weights.of_stage(model, layouts)
        parts = (attention, experts, tables) if model.mixture_layers else (attention, tables)
        local = [part.share(layouts, "parameters", flat=False) for part in parts]
        return cls(parts, local, np.ceil(model.layers / layouts.pipe))
