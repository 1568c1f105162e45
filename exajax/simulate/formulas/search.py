"""Every layout of a model over a number of devices that the trainer can train."""

import functools
import itertools
from collections.abc import Iterator

import numpy as np

from exajax.errors import InputError
from exajax.models.dimensions import ModelConfig
from exajax.recipe.recipe import REMATS
from exajax.simulate.formulas.shared.layouts import Layouts

MOST_LAYOUTS = 4_000_000
"""Layouts that are priced at most: they take 2 GB of memory and about 20 s on two cores."""


@functools.cache
def divisors(number: int) -> list[int]:
    """Divisors of a number, the smallest first."""
    small = [n for n in range(1, int(number**0.5) + 1) if number % n == 0]
    return small + [number // n for n in reversed(small) if n * n != number]


def candidates(
    model: ModelConfig, devices: int, global_batch: int, seq: int, *, flash: bool
) -> Layouts:
    """All layouts that a recipe may have (`Recipe.of`), without those that equal another one.

    ZeRO 3 on `data` is `fsdp`, and GPipe is 1F1B with more in memory; neither is among them, nor is
    `context` for images, whose sequences are short, nor offload in a pipeline, which XLA refuses
    to compile, or where some layers are mixtures, whose copies the formulas do not know.

    Args:
        model: its dimensions.
        devices: of every layout.
        global_batch: sequences of a step.
        seq: tokens of each.
        flash: whether the chip has fused attention, which a ring of `context` does not use.

    Raises:
        InputError: they are more than `MOST_LAYOUTS`.
    """
    rows, count = [], 0
    for mesh in meshes(model, devices, global_batch, seq):
        rows.append(np.array([(*mesh, *how) for how in _options(model, mesh, global_batch)]))
        count += len(rows[-1])
        if count > MOST_LAYOUTS:
            raise InputError(
                "devices",
                f"{model.layers} layers and {global_batch} sequences can be laid over {devices} "
                f"devices in more than {MOST_LAYOUTS:,} ways",
                "give fewer devices, or layers or a `global_batch` with fewer divisors",
            )
    if not rows:
        return Layouts.of(pipe=[])
    pipe, data, fsdp, expert, context, tensor, interleave, micro_batch, zero, remat, parallel = (
        np.concatenate(rows).T
    )
    return Layouts.of(
        pipe=pipe,
        data=data,
        fsdp=fsdp,
        expert=expert,
        context=context,
        tensor=tensor,
        interleave=interleave,
        micro_batch=micro_batch,
        zero=zero,
        remat=remat,
        sequence_parallel=parallel.astype(bool),
        flash=flash & (context == 1),
    )


Mesh = tuple[int, int, int, int, int, int]
"""Sizes of pipe, data, fsdp, expert, context and tensor."""


def meshes(model: ModelConfig, devices: int, global_batch: int, seq: int) -> Iterator[Mesh]:
    """Yields the meshes that divide model, batch and sequence."""
    scanned = model.layers // model.moe_every
    divided = (model.heads, model.kv_heads, model.ffn, model.padded_vocab)
    for tensor in divisors(devices):
        if any(size % tensor for size in divided):
            continue
        for pipe in divisors(devices // tensor):
            if scanned % pipe:
                continue
            for context in divisors(devices // tensor // pipe):
                if not _divides_sequence(model, seq, context, tensor):
                    continue
                shards = devices // tensor // pipe // context
                if global_batch % shards:
                    continue
                for expert in divisors(shards) if model.experts else (1,):
                    if expert > 1 and model.experts % expert:
                        continue
                    for fsdp in divisors(shards // expert):
                        yield pipe, shards // expert // fsdp, fsdp, expert, context, tensor


def _divides_sequence(model: ModelConfig, seq: int, context: int, tensor: int) -> bool:
    if not model.is_text:
        return context == 1
    ring = 2 * context if context > 1 else 1
    return seq % ring == 0 and seq % (context * tensor) == 0


def _options(model: ModelConfig, mesh: Mesh, global_batch: int) -> Iterator[tuple[int, ...]]:
    """Yields interleave, micro-batch, ZeRO, remat and sequence parallelism of a mesh."""
    pipe, data, fsdp, expert, _, tensor = mesh
    each = global_batch // (data * fsdp * expert)
    scanned = model.layers // model.moe_every
    zeros = (0, 1, 2) if data > 1 else (0,)
    parts = divisors(scanned // pipe) if pipe > 1 else [1]
    batches = [
        (v, micro) for v in parts for micro in divisors(each) if v == 1 or each // micro % pipe == 0
    ]
    offload = pipe == 1 and model.moe_every == 1
    remats = [i for i, remat in enumerate(REMATS) if offload or remat != "offload"]
    parallel = (1, 0) if tensor > 1 else (1,)
    yield from (
        (*batch, *how) for batch, *how in itertools.product(batches, zeros, remats, parallel)
    )
