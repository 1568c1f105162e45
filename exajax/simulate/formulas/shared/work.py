"""What is priced by formulas, layouts apart: a model's step on a machine."""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

from exajax.machine.chip import Chip
from exajax.machine.cluster import Cluster
from exajax.machine.software import SoftwareProfile
from exajax.models.dimensions import ModelConfig
from exajax.recipe.recipe import Recipe


@dataclass(frozen=True)
class Work:
    """One optimizer step of a model on a machine.

    Attributes:
        model: dimensions of the model.
        cluster: the machine, with the software profile of the program.
        global_batch: sequences of a step.
        seq: tokens of each sequence.
        precision: what the passes compute in.
    """

    model: ModelConfig
    cluster: Cluster
    global_batch: int
    seq: int
    precision: str

    @classmethod
    def of(cls, recipe: Recipe, cluster: Cluster) -> "Work":
        """The work of a recipe, its layout apart."""
        return cls(recipe.model, cluster, recipe.global_batch, recipe.seq, recipe.precision)

    @property
    def chip(self) -> Chip:
        """The devices of the machine."""
        return self.cluster.chip

    @property
    def software(self) -> SoftwareProfile:
        """The software profile of the program."""
        return self.cluster.software


class ProgramTraits(NamedTuple):
    """In what programs differ where the formulas of a block are the same.

    Attributes:
        merged_products: whether matrices that read the same are one product (queries, keys and
            values; both ways up of a gated feed-forward).
        expert_capacity: slots of an expert over an even share of the tokens.
        divided_tokens: whether a device sends its own part of divided sequences to experts, or
            every device of `tensor` the whole tokens.
        loss_bytes: bytes for each logit, forward and backward, besides its products.
    """

    merged_products: bool
    expert_capacity: float
    divided_tokens: bool
    loss_bytes: float


def with_program(cluster: Cluster, program: str) -> Cluster:
    """A machine whose software profile is of another program, with all its factors."""
    return dataclasses.replace(
        cluster, software=dataclasses.replace(cluster.software, program=program)
    )
