"""Prices every layout of a model over so many devices, and ranks those that fit."""

import argparse
import dataclasses
import logging
import os
import sys
import time

from exajax.cli import flag_types, flags
from exajax.cli.plan_results import advice, plan_of, verify, with_more_memory
from exajax.errors import InputError
from exajax.job import runtime
from exajax.machine.cluster import Cluster, cluster_names, load_cluster
from exajax.models.dimensions import FLOPS_CONVENTION
from exajax.models.presets import PRESETS, lookup
from exajax.recipe.recipe import PRECISIONS
from exajax.report import plan_table
from exajax.simulate import plan
from exajax.simulate.plan_report import Plans

LOGGER = logging.getLogger(__name__)

MANY_LAYOUTS = 500_000
"""Layouts from which on pricing takes seconds, and progress is logged every `LOG_EVERY_S`."""

LOG_EVERY_S = 5.0

MOST_SEQUENCES = 1 << 20
"""Upper bound of the global batch, small enough to list its divisors."""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    add = parser.add_argument
    parser.epilog = FLOPS_CONVENTION
    machines = ", ".join([*cluster_names(), "local"])
    add(
        "--model",
        type=flag_types.name,
        default=flags.MODEL,
        help="a preset or a TOML of dimensions: " + ", ".join(PRESETS),
    )
    add(
        "--cluster",
        type=flag_types.name,
        default="dgx-h100",
        help=f"a TOML of one's own, or one of {machines}",
    )
    add(
        "--devices",
        type=flag_types.whole(1, flag_types.MOST_DEVICES),
        required=True,
        metavar="N",
        help="devices to lay it over",
    )
    add(
        "--global-batch",
        type=flag_types.whole(1, MOST_SEQUENCES),
        required=True,
        metavar="N",
        help="sequences of one step",
    )
    add(
        "--seq",
        type=flag_types.whole(1, flag_types.MOST_SEQ),
        metavar="N",
        help="tokens of a sequence (default: the model's)",
    )
    add("--precision", choices=PRECISIONS, default="bf16", help="what the passes compute in")
    _add_output_flags(parser)


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--top",
        type=flag_types.whole(1, flag_types.MOST_TIMES),
        default=5,
        metavar="K",
        help="meshes to show, the best layout of each",
    )
    add(
        "--verify",
        type=flag_types.whole(0, flag_types.MOST_TIMES),
        default=0,
        metavar="K",
        help="compile the best K ahead of time too",
    )
    add(
        "--tokens",
        type=flag_types.number(0, 1e30, above=True),
        metavar="N",
        help="tell node-hours and energy of so many tokens",
    )
    add(
        "--plot",
        type=flag_types.path,
        metavar="FILE",
        help="draw time against memory, a .png or .svg",
    )
    add("--json", action="store_true", help="one JSON object on standard output")


def run(args: argparse.Namespace) -> int:
    """Prints the plans."""
    work, cluster = _checked(args)
    out = sys.stdout
    if args.verify:
        cluster.check(args.devices, args.precision)
        os.environ["JAX_PLATFORMS"] = "cpu"  # it is compiled for a described machine
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        out = runtime.claim_stdout(with_jax=False)
    begin_s = time.perf_counter()
    search = plan.search(work, cluster, args.devices, Progress())
    seconds = time.perf_counter() - begin_s
    fitting = search.fits.nonzero()[0]
    best = search.ranked(fitting)[: max(args.top, args.verify)]
    recipes = [search.recipe(int(row)) for row in best]
    plans = [plan_of(recipe, search.cluster, args.model, args.tokens) for recipe in recipes]
    for number, recipe in enumerate(recipes[: args.verify]):
        count = min(args.verify, len(recipes))
        LOGGER.info("compiling %d of %d: %s", number + 1, count, recipe.mesh)
        verified = verify(recipe, plans[number].report, cluster)
        plans[number] = dataclasses.replace(plans[number], verified=verified)
    result = Plans(
        cluster=cluster.name,
        devices=args.devices,
        evaluated=len(search.layouts),
        fitting=len(fitting),
        seconds=seconds,
        plans=tuple(plans),
        faster_with_more_memory=tuple(with_more_memory(search, args.model)),
        advice=() if len(fitting) else tuple(advice(search, args.devices, args.model, Progress())),
    )
    table = flags.as_flags(plan_table.described(result, cluster), vars(args))
    text = runtime.json_text(result.to_json()) if args.json else table
    print(text, file=out, flush=True)
    if args.plot:
        from exajax.report import plan_plot, plots

        plots.write(args.plot, plan_plot.draw(search))
    return 0


class Progress:
    """Logs the progress of pricing many layouts every `LOG_EVERY_S` seconds."""

    def __init__(self) -> None:
        self._logged_s = -LOG_EVERY_S

    def __call__(self, priced: int, layouts: int) -> None:
        """Logs a line if one is due."""
        now_s = time.monotonic()
        if layouts >= MANY_LAYOUTS and now_s - self._logged_s >= LOG_EVERY_S:
            self._logged_s = now_s
            LOGGER.info("priced %s of %s layouts", f"{priced:,}", f"{layouts:,}")


def _checked(args: argparse.Namespace) -> tuple[plan.PlannedStep, Cluster]:
    """The workload to plan and the machine; raises an `InputError` that names a flag."""
    model, cluster = lookup(args.model), load_cluster(args.cluster)
    cluster.chip.peak(args.precision)
    if args.devices > cluster.devices:
        raise InputError(
            "devices",
            f"{args.devices} are more than the {cluster.devices} of {cluster.name}",
            f"give at most {cluster.devices}, or another --cluster",
        )
    if not cluster.in_whole_nodes(args.devices):
        raise InputError(
            "devices",
            f"{args.devices} are not whole nodes of {cluster.devices_per_node}",
            f"give a multiple of {cluster.devices_per_node}",
        )
    if args.plot:
        from exajax.report import plots  # matplotlib, for this alone

        plots.check_file(args.plot)
    seq = model.seq if args.seq is None else args.seq
    return plan.PlannedStep(model, args.global_batch, seq, args.precision), cluster
