"""The flags that describe a job, shared by every command."""

import argparse
import sys
from typing import Any, NoReturn

from exajax import flag_types
from exajax.mesh import MeshSpec
from exajax.models.presets import FLOPS_CONVENTION, PRESETS, lookup
from exajax.recipe import (
    ATTENTIONS,
    BATCH_PER_SHARD,
    LR_SCHEDULES,
    MIXTURES,
    OPTIMIZERS,
    PRECISIONS,
    REMATS,
    SCHEDULES,
    ZEROS,
    Recipe,
)
from exajax.train.data.documents import BAD_LINES

MODEL = "llama2-70b"

RECIPE_FLAGS = (
    "model",
    "mesh",
    "global_batch",
    "micro_batch",
    "seq",
    "seed",
    "precision",
    "remat",
    "zero",
    "schedule",
    "interleave",
    "sequence_parallel",
    "moe",
    "capacity_factor",
    "packed",
    "attention",
    "steps",
    "schedule_steps",
    "learning_rate",
    "optimizer",
    "lr_schedule",
    "z_loss",
    "label_smoothing",
)
"""Fields of a recipe that have a flag of their name."""


MOST_MESSAGE = 800
"""Characters of a message that are printed."""


class Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong on one line."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Parses as its base does, which raises a `ValueError` at `--flag=--`."""
        for word in sys.argv[1:] if args is None else args:
            if word.startswith("-") and word.partition("=")[2] == "--":
                self.error(f"argument {word.partition('=')[0]}: '--' is no value")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Prints the message and exits with code 2."""
        line = " ".join(message.split())
        shown = line if len(line) <= MOST_MESSAGE else f"{line[:MOST_MESSAGE]}..."
        self.exit(2, f"{self.prog}: error: {shown}; see {self.prog} --help\n")


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Prints defaults, where there are any to print."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or "default" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def add_recipe_flags(parser: argparse.ArgumentParser, model: str = MODEL) -> None:
    """Adds the flags of a recipe."""
    parser.epilog = FLOPS_CONVENTION
    add = parser.add_argument_group("recipe").add_argument
    axes = "data x model, or by name: data=16,fsdp=8,model=8; also context, expert, pipe"
    add("--mesh", required=True, metavar="AxB", help=axes)
    add(
        "--model",
        type=flag_types.name,
        default=model,
        help="a preset or a TOML of dimensions: " + ", ".join(PRESETS),
    )
    add(
        "--global-batch",
        type=flag_types.whole(1, flag_types.MOST_BATCH),
        metavar="N",
        help=f"sequences of one step (default: {BATCH_PER_SHARD} for each part of the batch, and "
        f"for each pipeline stage)",
    )
    add(
        "--micro-batch",
        type=flag_types.whole(1, flag_types.MOST_BATCH),
        metavar="N",
        help="sequences of each part that are worked on at a time (default: 1 in a pipeline, else "
        "all)",
    )
    add(
        "--seq",
        type=flag_types.whole(1, flag_types.MOST_SEQ),
        metavar="N",
        help="tokens of a sequence (default: the model's)",
    )
    add(
        "--seed",
        type=flag_types.whole(0, flag_types.MOST_SEED),
        default=0,
        metavar="N",
        help="of parameters and data order",
    )
    add(
        "--precision", choices=PRECISIONS, default="bf16", help="masters are fp32, but in pure-bf16"
    )
    add("--remat", choices=REMATS, default="selective", help="what to recompute backward")
    add(
        "--zero",
        type=lambda text: int(text) if text in ("0", "1", "2", "3") else text,
        choices=ZEROS,
        default=3,
        help="what the data axis shards; auto is the lowest that fits",
    )
    add("--schedule", choices=SCHEDULES, default="1f1b", help="of a pipeline")
    add(
        "--interleave",
        type=flag_types.whole(1, flag_types.MOST_TIMES),
        default=1,
        metavar="V",
        help="parts of each pipeline stage",
    )
    add(
        "--sequence-parallel",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let model divide the sequence between sublayers",
    )
    add("--moe", choices=MIXTURES, default="capacity", help="what an expert does with many tokens")
    add(
        "--capacity-factor",
        type=flag_types.number(0, 1e6, above=True),
        default=1.25,
        metavar="X",
        help="room of an expert",
    )
    add(
        "--packed",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="train on each document of a sequence apart: attention stays within it, positions "
        "begin anew, and its last token has no target",
    )
    add("--attention", choices=ATTENTIONS, default="auto", help="auto is flash where it works")
    add(
        "--steps",
        type=flag_types.whole(1, flag_types.MOST_STEPS),
        default=100,
        metavar="N",
        help="optimizer steps in total",
    )
    add(
        "--schedule-steps",
        type=flag_types.whole(1, flag_types.MOST_STEPS),
        metavar="N",
        help="steps of the learning rate's schedule, after which it keeps its last value (default: "
        "--steps)",
    )
    add(
        "--learning-rate",
        type=flag_types.number(0, 1e6, above=True),
        default=3e-4,
        metavar="X",
        help="peak of the schedule",
    )
    add(
        "--optimizer",
        choices=OPTIMIZERS,
        default="adamw",
        help="lion wants a learning rate 3 to 10 times lower than the others",
    )
    add("--lr-schedule", choices=LR_SCHEDULES, default="cosine", help="after a linear warm-up")
    add(
        "--z-loss",
        type=flag_types.number(0, 1e6),
        default=0.0,
        metavar="X",
        help="weight of z-loss, such as 1e-4",
    )
    add(
        "--label-smoothing",
        type=flag_types.number(0, 1),
        default=0.0,
        metavar="X",
        help="for images, such as 0.1",
    )
    add("--json", action="store_true", help="print one JSON object on stdout, nothing else")


def add_run_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of a run: its text, its folder, its metrics."""
    group = parser.add_argument_group("run")
    add = group.add_argument
    add(
        "--data",
        metavar="PATH",
        help="text file, folder or .jsonl, a folder of exajax tokenise, or a mixture "
        "0.7:PATH,0.3:PATH (default: Python's own library)",
    )
    add_bad_lines(group)
    add(
        "--tokenizer",
        type=flag_types.name,
        metavar="FILE",
        help="bytes, or a Hugging Face tokenizer.json (default: that of a tokenised --data, or "
        "bytes)",
    )
    add(
        "--run-dir",
        type=flag_types.name,
        metavar="DIR",
        help="where everything goes (default: runs/MODEL-MESH)",
    )
    add(
        "--metrics-port",
        type=flag_types.whole(0, flag_types.MOST_PORT),
        default=9400,
        metavar="PORT",
        help="Prometheus port of host 0, loopback only; host i serves on PORT + i; 0: any free",
    )


def add_bad_lines(parser: argparse._ActionsContainer) -> None:
    """Adds the flag of every command that reads text."""
    parser.add_argument(
        "--bad-lines",
        choices=BAD_LINES,
        default=BAD_LINES[0],
        help='where a line of .jsonl holds no "text": end with its number, or leave it out and '
        "count it",
    )


def recipe_of(args: argparse.Namespace, **changes: Any) -> Recipe:
    """Returns the recipe that the flags describe, with some of its fields changed.

    Raises:
        InputError: a flag's value is impossible, or they do not go together.
    """
    options = {name: getattr(args, name) for name in RECIPE_FLAGS}
    options |= {"model": lookup(args.model), "mesh": MeshSpec.parse(args.mesh)} | changes
    return Recipe.of(options.pop("model"), options.pop("mesh"), **options)


def recipe_argv(recipe: Recipe, model: str) -> list[str]:
    """Returns the flags that describe a recipe, for another process.

    Args:
        recipe: what to describe.
        model: its model as it was given: a name, or the path of a file.
    """
    values = {name: getattr(recipe, name) for name in RECIPE_FLAGS}
    values |= {"model": model}
    argv = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            argv.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            argv.append(f"--{flag}={value}")
    return argv


def data_argv(args: argparse.Namespace) -> list[str]:
    """Returns the flags that name the data, for another process."""
    given = {"--data": args.data, "--tokenizer": args.tokenizer, "--bad-lines": args.bad_lines}
    return [f"{flag}={value}" for flag, value in given.items() if value is not None]
