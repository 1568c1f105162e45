"""Memory of a device at the peak of Megatron-LM's step, over arrays of layouts.

18 bytes a parameter, and activations of arXiv:2205.05198. Weights are in 16 bits, gradients in
fp32; the optimizer has masters and two moments in fp32.
"""

import dataclasses

import numpy as np

from exajax.simulate.formulas.shared import weights
from exajax.simulate.formulas.shared.layouts import Floats, Layouts
from exajax.simulate.formulas.shared.results import Footprint
from exajax.simulate.formulas.shared.saved import in_flight, logits
from exajax.simulate.formulas.shared.work import Work
from exajax.simulate.formulas.torch.figures import torch_figures
from exajax.simulate.formulas.torch.saved import saved_by_block


def memory(work: Work, layouts: Layouts, *, unlimited: bool = False) -> Footprint:
    """Bytes of a device at the peak of a step; it does not depend on how much there is.

    Of a pipeline, the first stage has most micro-batches in flight and the last one computes the
    loss: the one that needs more counts. Work space was chosen by the peaks that SimuMax's authors
    measured on B200 (v1.2, docs/b200): the largest gradients of matrices, or the loss.

    Args:
        work: the step.
        layouts: the layouts.
        unlimited: of no consequence here.
    """
    model = work.model
    halved = (layouts.pipe > 1) & (not model.tied)
    parts = weights.of_stage(model, layouts, tables=np.where(halved, 0.5, 1.0))
    # The distributed optimizer divides over context as well, whose devices are replicas too.
    replicas = dataclasses.replace(layouts, data=layouts.data * layouts.context)

    def share(kind: str) -> Floats:
        return weights.share(parts, replicas, kind, flat=True)

    inner = model.ffn / layouts.tensor
    tokens = layouts.micro_batch * work.seq / layouts.context
    ups = model.up_matrices
    # The gradient of the way up in fp32 before it is added to the sums, and what it is made of.
    space = 4 * ups * model.width * inner + 2 * tokens * (ups + 1) * inner
    table = 2.0 * model.width * model.padded_vocab / layouts.tensor
    loss_bytes = torch_figures().logits * logits(model, layouts, work.seq)
    block, blocks = saved_by_block(work, layouts).total, np.ceil(model.layers / layouts.pipe)
    micro_batches = layouts.micro_batches(work.global_batch)
    first = block * blocks * in_flight(layouts, micro_batches, stages_alternate=True)
    last, at_end = block * blocks, np.maximum(loss_bytes, space + table)
    loss = (layouts.pipe == 1) | (last + at_end > first + space)
    return Footprint(
        parameters=2.0 * share("parameters"),
        gradients=work.software.gradient_bytes * share("gradients"),
        optimizer=12.0 * share("optimizer"),
        activations=np.where(loss, last, first),
        temporaries=np.where(loss, at_end, space),
    )
