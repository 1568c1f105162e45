"""Pipeline schedules: which micro-batch each stage works on in each time slot.

Symbols: P stages, V chunks of layers per stage (more than 1 when interleaved; arXiv:2104.04473),
M micro-batches. An *item* is one micro-batch going through one chunk of every stage, so there are
M x V items.
"""

from dataclasses import dataclass
from typing import Any

SCHEDULES = ("gpipe", "1f1b", "interleaved")


@dataclass(frozen=True)
class Schedule:
    """A pipeline schedule as data.

    In forward slot t, stage s works on item t - s. Items go through in groups of P micro-batches:
    each group through chunk 0 of all stages, then through chunk 1, and so on. In backward slot t,
    stage s works on item t - (P - 1 - s), the chunks in reverse. In both directions an item
    reaches the next stage one slot later.

    Attributes:
        stages: P.
        parts: V.
        micro_batches: M, a multiple of P where V > 1.
        lead: forward slots up to and including the one that the first backward slot follows; from
            there on forward and backward slots alternate.
    """

    stages: int
    parts: int
    micro_batches: int
    lead: int

    @classmethod
    def of(cls, name: str, stages: int, parts: int, micro_batches: int) -> "Schedule":
        """The schedule of a name in `SCHEDULES`.

        `gpipe` runs the whole forward pass first (arXiv:1811.06965). The others start the backward
        pass as soon as the first micro-batch has left the last stage (arXiv:1806.03377), so that
        the number of micro-batches in flight is bounded by the stages, at 2P - 1. Where stages
        run independently it is P; here, all stages run a forward slot and then all a backward slot.
        """
        slots = micro_batches * parts + stages - 1
        lead = slots if name == "gpipe" else min(slots, stages * parts)
        return cls(stages, parts, micro_batches, lead)

    @property
    def slots(self) -> int:
        """Time slots of one direction: M x V + P - 1."""
        return self.micro_batches * self.parts + self.stages - 1

    @property
    def bubble(self) -> float:
        """Share of the slots in which a stage has no item: (P - 1) / slots."""
        return (self.stages - 1) / self.slots

    @property
    def in_flight(self) -> int:
        """Number of buffers that a stage needs for the activations of items in flight."""
        items = self.micro_batches * self.parts
        most = 1
        for stage in range(self.stages):
            saved: set[int] = set()
            for slot in range(self.slots):
                if slot >= stage and slot - stage < items:
                    saved.add(slot - stage)
                # Buffers are used round-robin, so the distance from oldest to newest counts.
                most = max(most, max(saved, default=0) - min(saved, default=0) + 1)
                done = slot - self.lead + 1 - (self.stages - 1 - stage)
                if 0 <= done < items:
                    saved.discard(self.item(done, forward=False)[2])
        return most

    def item(self, index: Any, *, forward: bool) -> tuple[Any, Any, Any]:
        """Micro-batch, chunk, and forward index of an item.

        Args:
            index: position of the item in the order of its direction, an integer or an array.
            forward: whether the direction is forward.
        """
        if self.parts == 1:
            return index, 0 * index, index
        group, within = divmod(index, self.stages * self.parts)
        part, member = divmod(within, self.stages)
        if not forward:
            part = self.parts - 1 - part
        micro_batch = group * self.stages + member
        return micro_batch, part, self.forward_index(micro_batch, part)

    def forward_index(self, micro_batch: Any, part: Any) -> Any:
        """Position in the forward order of a micro-batch in a chunk, integers or arrays."""
        if self.parts == 1:
            return micro_batch
        group, member = divmod(micro_batch, self.stages)
        return (group * self.parts + part) * self.stages + member
