"""Options of a training process beside its recipe: data, run folder, checkpoints, health."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exajax.recipe.option import option
from exajax.recipe.recipe import MOST_STEPS
from exajax.train.checkpoint.checkpointing import Checkpointing
from exajax.train.data.documents import BAD_LINES
from exajax.train.health.bad_steps import ON_NAN, ON_SPIKE, Policy

MOST_PORT = 65_000
"""Room above it for one port of each host."""


@dataclass(frozen=True)
class TrainOptions:
    """Options of a training process; those of scope `course` are the same on all hosts.

    Every field is an `option`, which says what it is.
    """

    run_dir: Path = option(
        "where everything goes", unit="DIR", scope="host", derived="runs/MODEL-MESH"
    )
    data: str | None = option(
        "text file, folder or .jsonl, a folder of exajax tokenise, or a mixture 0.7:PATH,0.3:PATH",
        None,
        unit="PATH",
        scope="host",
        derived="Python's own library",
    )
    bad_lines: str = option(
        'where a line of .jsonl holds no "text": end with its number, or leave it out and count it',
        BAD_LINES[0],
        choices=BAD_LINES,
        scope="host",
    )
    tokenizer: str | None = option(
        "bytes, or a Hugging Face tokenizer.json",
        None,
        unit="FILE",
        scope="host",
        derived="that of a tokenised dataset, or bytes",
    )
    metrics_port: int = option(
        "Prometheus port of host 0, loopback only; host i serves on PORT + i; 0: any free",
        9400,
        least=0,
        most=MOST_PORT,
        unit="PORT",
        scope="host",
    )
    init: Path | None = option(
        "begin with the weights of a folder in Hugging Face's form", None, unit="DIR", scope="host"
    )
    cluster: str | None = option(
        "machine whose peak the MFU refers to",
        None,
        unit="NAME",
        scope="host",
        derived="that of the chip",
    )
    profile: bool | None = option(
        "trace a step with JAX's profiler, into RUN_DIR/profile",
        None,
        scope="course",
        derived="in the main job's small run alone",
    )
    save_every: int = option(
        "steps between checkpoints", 50, least=1, most=MOST_STEPS, scope="course"
    )
    keep_checkpoints: int = option(
        "how many of the newest stay in the run folder, besides those in damaged/; 0: all",
        2,
        least=0,
        most=MOST_STEPS,
        scope="host",
    )
    local_checkpoints: Path | None = option(
        "save on a disk of each host too", None, unit="DIR", scope="host"
    )
    local_every: int = option("steps between those", 10, least=1, most=MOST_STEPS, scope="course")
    evaluate_every: int = option(
        "steps between evaluations on held-out data", 50, least=1, most=MOST_STEPS, scope="course"
    )
    evaluation_batches: int = option(
        "batches of an evaluation", 8, least=1, most=1 << 20, scope="course"
    )
    on_nan: str = option(
        "where loss or gradient is not finite", "stop", choices=ON_NAN, scope="course"
    )
    on_spike: str = option("where the loss leaps up", "ignore", choices=ON_SPIKE, scope="course")
    audit_every: int = option(
        "steps between comparisons of what replicas hold and compute; 0 for none",
        0,
        least=0,
        most=MOST_STEPS,
        unit="K",
        scope="course",
    )

    @property
    def policy(self) -> Policy:
        """The policy on bad steps, and the interval of audits."""
        return Policy(self.on_nan, self.on_spike, self.audit_every)

    def checkpointing(self, facts: Mapping[str, Any]) -> Checkpointing:
        """Returns where and how often to save, with facts of the run to save too."""
        return Checkpointing(
            self.run_dir / "checkpoints",
            self.save_every,
            self.keep_checkpoints or None,
            facts,
            self.local_checkpoints,
            self.local_every,
        )
