"""What to train: model, mesh, batch, precision and optimizer, checked before anything starts."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from exajax.errors import InputError
from exajax.models.dimensions import ModelConfig
from exajax.recipe.option import check, names, option
from exajax.spmd.mesh import MeshSpec
from exajax.spmd.pipeline_schedule import SCHEDULES

if TYPE_CHECKING:  # reading a recipe must not cost an import of jax
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
"""Sequences of each part of the batch, and of each pipeline stage, where the global batch is not
given: a pipeline is then busy four fifths of the time or more."""

MOST_BATCH = 1 << 24
"""Sequences of a step: 16 M, a thousand times the largest that was published."""

MOST_SEQ = 1 << 30
MOST_STEPS = 10**12

MOST_TIMES = 10**6
"""How often something is to be done: parts of a stage, restarts, kills, layouts to show."""

MOST_SEED = (1 << 32) - 1
"""Seeds are 32-bit numbers: JAX's own, of its generators."""

MOST_RATE = 1e6
"""Larger than any learning rate, capacity factor or weight of a loss that trains anything."""


@dataclass(frozen=True)
class Recipe:
    """One training job, complete: two equal recipes make the same program.

    Every field is an `option`, which says what it is; `of` makes a checked recipe.
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
        check(recipe)
        recipe._check_model(of_others)
        recipe._check_divides()
        recipe._check_pipeline(of_others)
        return recipe

    def replaced(self, **changes: Any) -> "Recipe":
        """Returns this recipe with other options, checked as a whole.

        Raises:
            InputError: as of `of`.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values |= changes
        return Recipe.of(values.pop("model"), values.pop("mesh"), **values)

    @classmethod
    def from_json(cls, table: Mapping[str, Any]) -> "Recipe":
        """Returns the checked recipe that `to_json` has written.

        Raises:
            InputError: a value cannot be; names the option.
        """
        values = dict(table)
        model = ModelConfig(**values.pop("model"))
        return cls.of(model, MeshSpec.parse(values.pop("mesh")), **values)

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
    def layout(self) -> "StepOptions":
        """What `TrainStep.of` is told beside workload and mesh; of one of the `levels`."""
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
        lengths = names(self, "length")
        return {name: value for name, value in self.to_json().items() if name not in lengths}

    @property
    def job(self) -> dict[str, Any]:
        """What is trained, as JSON: a run of the same job goes on from where another one is.

        That is the options that change its results: it may go on on another mesh.
        """
        results = names(self, "results")
        return {name: value for name, value in self.program.items() if name in results}

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
                "attention",
                f"flash needs a CUDA GPU, bf16, heads of a multiple of 8 up to 128, and neither "
                f"`packed` nor context; here it is {platform}, {self.precision}, heads of {head}, "
                f"packed {self.packed} and mesh {self.mesh}",
                "give `attention` auto",
            )
        return possible and self.attention != "unfused"

    def _check_model(self, of_others: bool) -> None:
        if self.label_smoothing and self.model.family != "vit":
            raise InputError(
                "label_smoothing",
                f"{self.model.name} is a model of text, and it is for images",
                "leave it out, or give `model` vit-b",
            )
        if self.precision == "fp8" and self.model.experts and not of_others:
            raise InputError(
                "precision",
                f"the experts of {self.model.name}, most of its work, are not computed in fp8",
                "give `precision` bf16",
            )
        if self.packed and self.model.family == "vit":
            raise InputError("packed", f"{self.model.name} reads no documents", "leave it out")
        if self.model.family == "vit" and self.seq != self.model.seq:
            raise InputError(
                "seq",
                f"it is {self.seq}, and images of {self.model.name} have {self.model.seq} patches",
                "leave it out",
            )
        if self.seq > self.model.seq:
            raise InputError(
                "seq",
                f"{self.seq} is longer than the {self.model.seq} of {self.model.name}",
                f"give at most {self.model.seq}",
            )

    def _check_divides(self) -> None:
        parts = self.mesh.batch_shards
        if self.global_batch % parts:
            raise InputError(
                "global_batch",
                f"{self.global_batch} sequences do not divide into the {parts} parts of mesh "
                f"{self.mesh}",
                f"give a multiple of {parts}",
            )
        if self.global_batch // parts % self.micro_batch:
            raise InputError(
                "micro_batch",
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
                raise InputError("mesh", f"{axis}={ways} does not divide the {size} {what}", fix)
        # Patches are as many as they are; where they do not divide, the residual stays whole.
        # Every device of the ring holds two chunks of the sequence.
        context = 2 * self.mesh.context if self.mesh.context > 1 else 1
        ways = math.lcm(context, self.mesh.context * self.mesh.model)
        if self.seq % ways and self.model.family != "vit":
            raise InputError(
                "seq",
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
                "mesh",
                f"pipe={stages} does not divide the {scanned} {self._scanned}",
                f"give a pipe axis that divides {scanned}",
            )
        if (self.schedule == "interleaved") != (self.interleave > 1):
            raise InputError(
                "interleave",
                f"{self.interleave} parts of a stage do not go with schedule {self.schedule}",
                "give `schedule` interleaved with `interleave` 2 or more, or neither",
            )
        if self.interleave > 1 and stages == 1:
            raise InputError("interleave", "mesh has no pipe axis", "give a mesh with pipe")
        parts = stages * self.interleave
        if self.interleave > 1 and scanned % parts and not (of_others and parts <= scanned):
            raise InputError(
                "interleave",
                f"{stages} stages x {self.interleave} parts do not divide the {scanned} "
                f"{self._scanned} of {self.model.name}",
                f"make the product a divisor of {scanned}",
            )
        if self.interleave > 1 and self.micro_batches % stages:
            raise InputError(
                "micro_batch",
                f"{self.micro_batches} micro-batches do not divide over {stages} stages, as the "
                f"interleaved schedule needs",
                f"make global batch / (parts x micro-batch) a multiple of {stages}",
            )
