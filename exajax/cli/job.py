"""Runs a process of a job as a file says: how processes start each other."""

import argparse
from pathlib import Path

from exajax.cli import train
from exajax.recipe import option
from exajax.recipe.recipe import Recipe
from exajax.resilience.job import Job
from exajax.resilience.options import JobOptions
from exajax.train.options import TrainOptions


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the command's only argument."""
    parser.add_argument("file", type=Path, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    """Reads the job and runs it."""
    job = Job.read(args.file)
    # Errors are reported in the run folder, and name the flags that the job was given with.
    args.run_dir = job.options.run_dir
    args.options = [name for of in (Recipe, TrainOptions, JobOptions) for name in option.names(of)]
    return train.run_job(job)
