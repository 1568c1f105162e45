"""The recipe: everything that defines a training job, and its layout on devices."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exajax.errors import InputError
from exajax.models.dimensions import ModelConfig
from exajax.recipe import checks
from exajax.recipe.option import check_options, option, option_names
from exajax.spmd.mesh import MeshSpec
from exajax.spmd.pipeline_schedule import SCHEDULES

if TYPE_CHECKING:  # reading a recipe must not import jax
    from exajax.spmd.step import StepOptions

PRECISIONS = ("fp32", "bf16", "pure-bf16", "fp8")
REMATS = (
    "none",
    "attention",
    "selective",
    "save-dots-except-mlp-wi",
    "save-dots-except-mlp",
    "save-qkv",
    "full",
    "offload",
)
MIXTURES = ("dropless", "capacity")
ZEROS = (0, 1, 2, 3, "auto")
ATTENTIONS = ("auto", "flash", "unfused")
OPTIMIZERS = ("adamw", "adafactor", "lion", "muon")
LR_SCHEDULES = ("cosine", "wsd", "constant")
BATCH_PER_SHARD = 4
"""Default sequences for each shard of the batch and each pipeline stage: with 4 micro-batches a
stage, a pipeline is busy at least four fifths of the time."""

MOST_BATCH = 1 << 24
"""Limit on sequences of a step: 16 M, a thousand times the largest published batch."""

MOST_SEQ = 1 << 30
MOST_STEPS = 10**12

MOST_TIMES = 10**6
"""Limit on counts, such as chunks of a stage, restarts or kills."""

MOST_SEED = (1 << 32) - 1
"""Limit on seeds, which JAX's generators take as 32-bit numbers."""

MOST_RATE = 1e6
"""Limit on learning rates, capacity factors and loss weights; far larger than any that works."""


@dataclass(frozen=True)
class Recipe:
    """One training job: equal recipes have the same program and the same results.

    Every field is an `option`, whose `help` describes it. `of` returns a checked recipe.
    """

    model: ModelConfig = option("dimensions of the model", unit="NAME")
    mesh: MeshSpec = option(
        "data x model, or by name: data=16,fsdp=8,model=8; also context, expert, pipe",
        unit="AxB",
        scope="rounding",
    )
    global_batch: int = option(
        "sequences of one step, over the whole mesh",
        least=1,
        most=MOST_BATCH,
        derived=f"{BATCH_PER_SHARD} for each part of the batch, and for each pipeline stage",
    )
    micro_batch: int = option(
        "sequences of each part of the batch that are worked on at a time",
        least=1,
        most=MOST_BATCH,
        scope="rounding",
        derived="1 in a pipeline, else all",
    )
    seq: int = option(
        "tokens of a sequence; patches of an image", least=1, most=MOST_SEQ, derived="the model's"
    )
    seed: int = option("of parameters and data order", 0, least=0, most=MOST_SEED)
    precision: str = option(
        "what the passes compute in; parameters stay fp32, but in pure-bf16, and fp8 is that of "
        "the products with the blocks' weights, the rest bf16",
        "bf16",
        choices=PRECISIONS,
    )
    remat: str = option(
        "what is recomputed in the backward pass", "selective", choices=REMATS, scope="rounding"
    )
    zero: int | str = option(
        "what the data axis shards besides the batch: 1 the optimizer's state, 2 gradients too, 3 "
        "parameters too; auto is the lowest that fits",
        3,
        choices=ZEROS,
        scope="rounding",
    )
    attention: str = option(
        "kernel of attention; auto is flash where it works",
        "auto",
        choices=ATTENTIONS,
        scope="rounding",
    )
    schedule: str = option("of a pipeline", "1f1b", choices=SCHEDULES, scope="rounding")
    interleave: int = option(
        "parts of the layers that each pipeline stage has, 2 or more when interleaved",
        1,
        least=1,
        most=MOST_TIMES,
        unit="V",
        scope="rounding",
    )
    sequence_parallel: bool = option(
        "let the model axis divide the sequence between sublayers", True, scope="rounding"
    )
    moe: str = option("what an expert does with too many tokens", "capacity", choices=MIXTURES)
    capacity_factor: float = option(
        "room of an expert, as a multiple of an even share (capacity)",
        1.25,
        least=0,
        most=MOST_RATE,
        above=True,
        unit="X",
    )
    packed: bool = option(
        "train on each document of a sequence apart: attention stays within it, positions begin "
        "anew, and its last token has no target",
        False,
    )
    steps: int = option("optimizer steps in total", 100, least=1, most=MOST_STEPS, scope="length")
    schedule_steps: int | None = option(
        "steps of the learning rate's schedule, after which it keeps its last value",
        None,
        least=1,
        most=MOST_STEPS,
        scope="length",
        derived="all steps",
    )
    learning_rate: float = option(
        "peak, reached after the warm-up", 3e-4, least=0, most=MOST_RATE, above=True, unit="X"
    )
    warmup_steps: int = option("steps of linear warm-up", 10, least=0, most=MOST_STEPS)
    weight_decay: float = option(
        "decoupled, on matrices alone", 0.1, least=0, most=MOST_RATE, unit="X"
    )
    clip_norm: float = option(
        "global norm that gradients are clipped to", 1.0, least=0, above=True, unit="X"
    )
    optimizer: str = option(
        "lion wants a learning rate 3 to 10 times lower than the others",
        "adamw",
        choices=OPTIMIZERS,
    )
    beta1: float | None = option(
        "decay of the optimizer's first moment (adamw, lion, muon)",
        None,
        least=0,
        most=1,
        below=True,
        unit="X",
        derived="0.9",
    )
    beta2: float | None = option(
        "decay of its second moment, in lion of the one that it keeps",
        None,
        least=0,
        most=1,
        below=True,
        unit="X",
        derived="0.95, of lion 0.99",
    )
    lr_schedule: str = option("what follows the warm-up", "cosine", choices=LR_SCHEDULES)
    z_loss: float = option(
        "weight of the squared log of the softmax's normaliser in the loss, such as 1e-4",
        0.0,
        least=0,
        most=MOST_RATE,
        unit="X",
    )
    label_smoothing: float = option(
        "share of the target spread over all classes, such as 0.1 (images)",
        0.0,
        least=0,
        most=1,
        below=True,
        unit="X",
    )

    @classmethod
    def of(
        cls,
        model: ModelConfig,
        mesh: MeshSpec,
        *,
        global_batch: int | None = None,
        micro_batch: int | None = None,
        seq: int | None = None,
        analytic_only: bool = False,
        **options: Any,
    ) -> "Recipe":
        """A checked recipe; batch and sequence follow from mesh and model by default.

        Args:
            model: dimensions of the model.
            mesh: the mesh.
            global_batch: sequences of a step; by default `BATCH_PER_SHARD` for each shard of the
                batch and each pipeline stage.
            micro_batch: sequences of a shard that are processed at a time; by default one in a
                pipeline, else all.
            seq: tokens of a sequence; by default the model's.
            analytic_only: whether to accept what the analytic engine can price and exajax cannot
                train: stages with different numbers of layers, and experts in fp8.
            **options: the other fields.

        Raises:
            InputError: options are out of range, or do not fit each other; names one to change.
        """
        if global_batch is None:
            global_batch = BATCH_PER_SHARD * mesh.batch_shards * mesh.pipe
        if micro_batch is None:
            micro_batch = 1 if mesh.pipe > 1 else max(1, global_batch // mesh.batch_shards)
        recipe = cls(
            model, mesh, global_batch, micro_batch, model.seq if seq is None else seq, **options
        )
        check_options(recipe)
        checks.check(recipe, analytic_only=analytic_only)
        return recipe

    def replaced(self, **changes: Any) -> "Recipe":
        """This recipe with some options changed, checked again.

        Raises:
            InputError: like `of`.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values |= changes
        return Recipe.of(values.pop("model"), values.pop("mesh"), **values)

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> "Recipe":
        """The recipe that `to_json` has written, checked again.

        Raises:
            InputError: like `of`.
        """
        values = dict(table)
        model = ModelConfig(**values.pop("model"))
        return cls.of(model, MeshSpec.parse(values.pop("mesh")), **values)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step."""
        return self.global_batch // (self.mesh.batch_shards * self.micro_batch)

    @property
    def levels(self) -> list["Recipe"]:
        """This recipe; if `zero` is `auto`, one for each ZeRO level, the lowest first."""
        if self.zero != "auto":
            return [self]
        return [dataclasses.replace(self, zero=level) for level in range(4)]

    @property
    def step_options(self) -> "StepOptions":
        """Options of `TrainStep.of`.

        Raises:
            ValueError: `zero` is `auto`; call it on one of the `levels`.
        """
        from exajax.spmd.sharding import RULES

        if not isinstance(self.zero, int):
            raise ValueError("zero is auto: choose one of the recipe's levels")

        sequence: dict[str, tuple[str, ...]] = {"sequence": ("context",)}
        return {
            "zero": self.zero,
            "precision": self.precision,
            "micro_batches": self.micro_batches,
            "schedule": self.schedule,
            "rules": RULES if self.sequence_parallel else {**RULES, **sequence},
        }

    @property
    def horizon(self) -> int:
        """Length of the learning rate's schedule, in steps."""
        return self.schedule_steps or self.steps

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.global_batch * self.seq

    @property
    def flops(self) -> float:
        """Model FLOPs of one step, by `FLOPS_CONVENTION`."""
        served = min(1.0, self.expert_room)
        return self.model.step_flops(self.global_batch, self.seq, served=served)

    @property
    def expert_room(self) -> float:
        """Rows that experts multiply / rows that tokens send to them, as compiled for a GPU.

        Without a capacity, a GPU multiplies all rows with every expert, and masks the rest.
        """
        if not self.model.experts:
            return 1.0
        if self.moe == "dropless":
            return float(self.model.experts)
        even = self.seq * self.model.top_k / self.model.experts
        return min(self.seq, math.ceil(self.capacity_factor * even)) / even

    @property
    def program(self) -> dict[str, Any]:
        """All options that the program of a step depends on, as JSON; not the number of steps."""
        lengths = option_names(self, "length")
        return {name: value for name, value in self.to_json().items() if name not in lengths}

    @property
    def job(self) -> dict[str, Any]:
        """The options that change the results of training, as JSON.

        A run can continue another one of the same job, also on another mesh.
        """
        results = option_names(self, "results")
        return {name: value for name, value in self.program.items() if name in results}

    @property
    def digest(self) -> str:
        """Hash of `program`."""
        return hashlib.sha256(json.dumps(self.program, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """The recipe as JSON, with the mesh in its notation."""
        return dataclasses.asdict(self) | {"mesh": str(self.mesh)}

    def flash(self, platform: str) -> bool:
        """Whether attention uses the fused kernel on a platform (`cpu`, `cuda`, `gpu`).

        cuDNN's kernel supports 16-bit heads of a size up to 128 that is a multiple of 8.

        Raises:
            InputError: `attention` is flash, which this recipe or platform does not support.
        """
        head = self.model.head_dim
        possible = (
            platform in ("cuda", "gpu")
            and self.precision != "fp32"
            and not (self.packed or self.mesh.context > 1)
            and head <= 128
            and head % 8 == 0
        )
        if self.attention == "flash" and not possible:
            raise InputError(
                "attention",
                f"flash needs a CUDA GPU, bf16, heads of a multiple of 8 up to 128, and neither "
                f"`packed` nor context; here it is {platform}, {self.precision}, heads of {head}, "
                f"packed {self.packed} and mesh {self.mesh}",
                "give `attention` auto",
            )
        return possible and self.attention != "unfused"
