"""Runs a process of a job from a file, which is how processes start each other."""

import argparse
from pathlib import Path

from exajax.cli import simulate, train
from exajax.cli.simulate_job import KIND, SimulateJob
from exajax.files.reading import Malformed, read_json
from exajax.machine.cluster import load_cluster
from exajax.recipe import option
from exajax.recipe.recipe import Recipe
from exajax.resilience.job import FIELD, Job
from exajax.resilience.options import JobOptions
from exajax.train.options import TrainOptions


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the command's only argument."""
    parser.add_argument("file", type=Path, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Reads the job file, and trains or simulates."""
    try:
        content = read_json(args.file)
    except Malformed as error:
        raise error.within(FIELD, args.file) from error
    if isinstance(content, dict) and KIND in content:
        job = SimulateJob.from_json(content)
        return simulate.run_compiled(job.recipe, load_cluster(job.cluster), job.out, as_json=True)
    training = Job.read(args.file)
    # Errors are reported in the run folder, and name the flags of the command that wrote the file.
    args.run_dir = training.options.run_dir
    args.options = [
        name for of in (Recipe, TrainOptions, JobOptions) for name in option.option_names(of)
    ]
    return train.run_job(training)
