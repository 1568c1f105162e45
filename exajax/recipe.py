"""What to train: model, mesh, batch, precision and optimizer, checked before anything starts."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exajax.errors import InputError, nearest
from exajax.mesh import MeshSpec
from exajax.models.presets import ModelConfig

if TYPE_CHECKING:  # reading a recipe must not cost an import of jax
    from exajax.step import Layout

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
SCHEDULES = ("gpipe", "1f1b", "interleaved")
MIXTURES = ("dropless", "capacity")
ZEROS = (0, 1, 2, 3, "auto")
ATTENTIONS = ("auto", "flash", "unfused")
OPTIMIZERS = ("adamw", "adafactor", "lion", "muon")
LR_SCHEDULES = ("cosine", "wsd", "constant")
LAYOUT = (
    "mesh",
    "micro_batch",
    "remat",
    "zero",
    "attention",
    "schedule",
    "interleave",
    "sequence_parallel",
)
"""Fields of a recipe that say how its numbers are computed and where: they change by rounding."""

BATCH_PER_SHARD = 4
"""Sequences of each part of the batch, and of each pipeline stage, where the global batch is not
given: a pipeline is then busy four fifths of the time or more."""


@dataclass(frozen=True)
class Recipe:
    """One training job, complete: two equal recipes make the same program.

    Attributes:
        model: dimensions of the model.
        mesh: sizes of the mesh axes.
        global_batch: sequences of one step, over the whole mesh.
        micro_batch: sequences of each part of the batch that are worked on at a time.
        seq: tokens of a sequence; patches of an image.
        seed: of the parameters and the order of the data.
        precision: what the passes compute in, of `PRECISIONS`; parameters stay fp32, but in
            `pure-bf16`. `fp8` is that of the products with the blocks' weights; the rest is bf16.
        remat: what is kept for the backward pass, of `REMATS`.
        zero: what the data axis shards besides the batch, 0 to 3; `auto` is the lowest that fits.
        attention: of `ATTENTIONS`; `auto` is flash wherever the chip has it.
        schedule: of a pipeline, of `SCHEDULES`.
        interleave: parts of the layers that each stage holds, more than 1 when `interleaved`.
        sequence_parallel: whether `model` divides the sequence between sublayers.
        moe: what an expert does with too many tokens, of `MIXTURES`.
        capacity_factor: room of an expert, as a multiple of an even share (`capacity`).
        packed: whether the documents of a sequence are trained on apart: attention stays within
            one, positions begin anew with it, and the first token of the next is no target.
        steps: optimizer steps in total.
        schedule_steps: steps of the learning rate's schedule, after which it keeps its last value;
            None is `steps`.
        learning_rate: peak, reached after the warm-up.
        warmup_steps: steps of linear warm-up.
        weight_decay: decoupled, on matrices alone.
        clip_norm: global norm that gradients are clipped to.
        optimizer: of `OPTIMIZERS`.
        lr_schedule: what follows the warm-up, of `LR_SCHEDULES`.
        z_loss: weight of the squared log of the softmax's normaliser in the loss.
        label_smoothing: share of the target spread over all classes (images).
    """

    model: ModelConfig
    mesh: MeshSpec
    global_batch: int
    micro_batch: int
    seq: int
    seed: int = 0
    precision: str = "bf16"
    remat: str = "selective"
    zero: int | str = 3
    attention: str = "auto"
    schedule: str = "1f1b"
    interleave: int = 1
    sequence_parallel: bool = True
    moe: str = "capacity"
    capacity_factor: float = 1.25
    packed: bool = False
    steps: int = 100
    schedule_steps: int | None = None
    learning_rate: float = 3e-4
    warmup_steps: int = 10
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    optimizer: str = "adamw"
    lr_schedule: str = "cosine"
    z_loss: float = 0.0
    label_smoothing: float = 0.0

    @classmethod
    def of(
        cls,
        model: ModelConfig,
        mesh: MeshSpec,
        *,
        global_batch: int | None = None,
        micro_batch: int | None = None,
        seq: int | None = None,
        of_others: bool = False,
        **options: Any,
    ) -> "Recipe":
        """Returns a checked recipe; batch and sequence follow from mesh and model if not given.

        A micro-batch is one sequence in a pipeline, otherwise the whole batch. A recipe `of_others`
        may have what the analytic engine knows and our trainer does not: stages with different
        numbers of layers, and experts in fp8.

        Raises:
            InputError: the parts do not go together; names the flag to change.
        """
        if global_batch is None:
            global_batch = BATCH_PER_SHARD * mesh.batch_shards * mesh.pipe
        if micro_batch is None:
            micro_batch = 1 if mesh.pipe > 1 else max(1, global_batch // mesh.batch_shards)
        recipe = cls(
            model, mesh, global_batch, micro_batch, model.seq if seq is None else seq, **options
        )
        recipe._check_choices(of_others)
        recipe._check_divides()
        recipe._check_pipeline(of_others)
        return recipe

    @property
    def micro_batches(self) -> int:
        """Parts that a batch is worked on in, one after the other."""
        return self.global_batch // (self.mesh.batch_shards * self.micro_batch)

    @property
    def levels(self) -> list["Recipe"]:
        """This recipe, or where `zero` is `auto` that of every level, the lowest first."""
        if self.zero != "auto":
            return [self]
        return [dataclasses.replace(self, zero=level) for level in range(4)]

    @property
    def layout(self) -> "Layout":
        """What `TrainStep.of` is told beside workload and mesh; of one of the `levels`."""
        from exajax.sharding import RULES

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
        """Steps that the learning rate's schedule is laid over."""
        return self.schedule_steps or self.steps

    @property
    def tokens(self) -> int:
        """Tokens of one step."""
        return self.global_batch * self.seq

    @property
    def flops(self) -> float:
        """Model FLOPs of one step, as `FLOPS_CONVENTION` counts them."""
        served = min(1.0, self.expert_room)
        return self.model.step_flops(self.global_batch, self.seq, served=served)

    @property
    def expert_room(self) -> float:
        """Rows that experts work on, over what tokens send to them; as compiled for a GPU.

        Without a capacity a GPU multiplies all rows with every expert, and masks.
        """
        if not self.model.experts:
            return 1.0
        if self.moe == "dropless":
            return float(self.model.experts)
        even = self.seq * self.model.top_k / self.model.experts
        return min(self.seq, math.ceil(self.capacity_factor * even)) / even

    @property
    def program(self) -> dict[str, Any]:
        """All that a step's program depends on, as JSON; not how many steps there are."""
        lengths = ("steps", "schedule_steps")
        return {name: value for name, value in self.to_json().items() if name not in lengths}

    @property
    def job(self) -> dict[str, Any]:
        """What is trained, as JSON: a run of the same job goes on from where another one is.

        That is the program without `LAYOUT`: it may go on on another mesh.
        """
        return {name: value for name, value in self.program.items() if name not in LAYOUT}

    @property
    def digest(self) -> str:
        """Hash of the program."""
        return hashlib.sha256(json.dumps(self.program, sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """Returns the recipe for a report, the mesh as it is written."""
        return dataclasses.asdict(self) | {"mesh": str(self.mesh)}

    def flash(self, platform: str) -> bool:
        """Returns whether attention is the fused kernel on a platform (`cpu`, `cuda`, `gpu`).

        cuDNN's kernel takes 16-bit heads of up to 128, a multiple of 8.

        Raises:
            InputError: flash was asked for where it does not work.
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
                "--attention",
                f"flash needs a CUDA GPU, bf16, heads of a multiple of 8 up to 128, and neither "
                f"--packed nor context; here it is {platform}, {self.precision}, heads of {head}, "
                f"packed {self.packed} and mesh {self.mesh}",
                "give --attention auto",
            )
        return possible and self.attention != "unfused"

    def _check_choices(self, of_others: bool) -> None:
        for flag, value, choices in (
            ("--precision", self.precision, PRECISIONS),
            ("--remat", self.remat, REMATS),
            ("--attention", self.attention, ATTENTIONS),
            ("--schedule", self.schedule, SCHEDULES),
            ("--moe", self.moe, MIXTURES),
            ("--optimizer", self.optimizer, OPTIMIZERS),
            ("--lr-schedule", self.lr_schedule, LR_SCHEDULES),
        ):
            if value not in choices:
                raise InputError(flag, f"unknown value {value!r}", nearest(str(value), choices))
        if self.zero not in ZEROS:
            raise InputError("--zero", f"there is no level {self.zero}", "give 0, 1, 2, 3 or auto")
        for flag, number in (
            ("--global-batch", self.global_batch),
            ("--micro-batch", self.micro_batch),
            ("--interleave", self.interleave),
            ("--seq", self.seq),
            ("--steps", self.steps),
            (
                "--schedule-steps",
                self.horizon if self.schedule_steps is None else self.schedule_steps,
            ),
        ):
            if number < 1:
                raise InputError(flag, f"{number} is less than 1", "give a whole number from 1 on")
        if not (math.isfinite(self.capacity_factor) and self.capacity_factor > 0):
            raise InputError(
                "--capacity-factor", f"it is {self.capacity_factor}", "give a number > 0"
            )
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InputError("--learning-rate", f"it is {self.learning_rate}", "give a number > 0")
        if not (math.isfinite(self.z_loss) and self.z_loss >= 0):
            raise InputError("--z-loss", f"it is {self.z_loss}", "give a number from 0 on")
        if not 0 <= self.label_smoothing < 1:
            raise InputError(
                "--label-smoothing",
                f"{self.label_smoothing} is no share of the target",
                "give a number from 0 to below 1",
            )
        if self.label_smoothing and self.model.family != "vit":
            raise InputError(
                "--label-smoothing",
                f"{self.model.name} is a model of text, and it is for images",
                "leave it out, or give --model vit-b",
            )
        if self.precision == "fp8" and self.model.experts and not of_others:
            raise InputError(
                "--precision",
                f"the experts of {self.model.name}, most of its work, are not computed in fp8",
                "give --precision bf16",
            )
        if self.seed < 0:
            raise InputError("--seed", f"{self.seed} is negative", "give a whole number from 0 on")
        if self.packed and self.model.family == "vit":
            raise InputError("--packed", f"{self.model.name} reads no documents", "leave it out")
        if self.model.family == "vit" and self.seq != self.model.seq:
            raise InputError(
                "--seq",
                f"it is {self.seq}, and images of {self.model.name} have {self.model.seq} patches",
                "leave it out",
            )
        if self.seq > self.model.seq:
            raise InputError(
                "--seq",
                f"{self.seq} is longer than the {self.model.seq} of {self.model.name}",
                f"give at most {self.model.seq}",
            )

    def _check_divides(self) -> None:
        parts = self.mesh.batch_shards
        if self.global_batch % parts:
            raise InputError(
                "--global-batch",
                f"{self.global_batch} sequences do not divide into the {parts} parts of mesh "
                f"{self.mesh}",
                f"give a multiple of {parts}",
            )
        if self.global_batch // parts % self.micro_batch:
            raise InputError(
                "--micro-batch",
                f"{self.micro_batch} does not divide the {self.global_batch // parts} sequences of "
                f"each part of the batch",
                f"give a divisor of {self.global_batch // parts}",
            )
        for axis, what, size in (
            ("model", "heads", self.model.heads),
            ("model", "KV heads", self.model.kv_heads),
            ("model", "feed-forward width", self.model.ffn),
            ("model", self._outputs, self.model.padded_vocab),
            ("expert", "experts", self.model.experts),
        ):
            ways = getattr(self.mesh, axis)
            if size % ways or (ways > 1 and size == 0):
                fix = f"give a {axis} axis that divides {size}" if size else f"leave {axis} out"
                raise InputError("--mesh", f"{axis}={ways} does not divide the {size} {what}", fix)
        # Patches are as many as they are; where they do not divide, the residual stays whole.
        # Every device of the ring holds two chunks of the sequence.
        context = 2 * self.mesh.context if self.mesh.context > 1 else 1
        ways = math.lcm(context, self.mesh.context * self.mesh.model)
        if self.seq % ways and self.model.family != "vit":
            raise InputError(
                "--seq",
                f"{self.seq} tokens do not divide over context={self.mesh.context}, "
                f"model={self.mesh.model}",
                f"give a multiple of {ways}",
            )

    @property
    def _outputs(self) -> str:
        return "classes" if self.model.family == "vit" else "vocabulary"

    @property
    def _scanned(self) -> str:
        return "layers" if self.model.moe_every == 1 else f"groups of {self.model.moe_every} layers"

    def _check_pipeline(self, of_others: bool) -> None:
        """Checks what goes through a pipeline, and what only a pipeline has."""
        stages, scanned = self.mesh.pipe, self.model.layers // self.model.moe_every
        if scanned % stages and not (of_others and stages <= scanned):
            raise InputError(
                "--mesh",
                f"pipe={stages} does not divide the {scanned} {self._scanned}",
                f"give a pipe axis that divides {scanned}",
            )
        if (self.schedule == "interleaved") != (self.interleave > 1):
            raise InputError(
                "--interleave",
                f"{self.interleave} parts of a stage do not go with schedule {self.schedule}",
                "give --schedule interleaved with --interleave 2 or more, or neither",
            )
        if self.interleave > 1 and stages == 1:
            raise InputError("--interleave", "mesh has no pipe axis", "give a mesh with pipe")
        parts = stages * self.interleave
        if self.interleave > 1 and scanned % parts and not (of_others and parts <= scanned):
            raise InputError(
                "--interleave",
                f"{stages} stages x {self.interleave} parts do not divide the {scanned} "
                f"{self._scanned} of {self.model.name}",
                f"make the product a divisor of {scanned}",
            )
        if self.interleave > 1 and self.micro_batches % stages:
            raise InputError(
                "--micro-batch",
                f"{self.micro_batches} micro-batches do not divide over {stages} stages, as the "
                f"interleaved schedule needs",
                f"make global batch / (parts x micro-batch) a multiple of {stages}",
            )
