"""Trains a model on the devices that are attached, or on host processes of this machine."""

import argparse
import sys
from typing import Any

from exajax import units
from exajax.chaos.self_inflicted import faults_from_environment
from exajax.cli import flags
from exajax.job import environment, goodput, launchers, runtime
from exajax.recipe.recipe import Recipe
from exajax.resilience import start, watchdog
from exajax.resilience.job import Job
from exajax.resilience.options import JobOptions
from exajax.train import inputs, session
from exajax.train.hooks import Chain, Hooks
from exajax.train.options import TrainOptions
from exajax.train.process import TrainingProcess


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    flags.add_recipe_flags(parser)
    flags.add_options(parser.add_argument_group("run"), TrainOptions, types={"data": str})
    flags.add_options(parser.add_argument_group("job, and when something fails"), JobOptions)


def run(args: argparse.Namespace) -> int:
    """Trains as one process of a job, or supervises those that do."""
    return run_job(job_of(args))


def job_of(args: argparse.Namespace) -> Job:
    """The job that the flags describe.

    Raises:
        InputError: a value is impossible, or two contradict each other.
    """
    recipe = flags.recipe_of(args)
    return Job(recipe, train_options(args, recipe), flags.options_of(JobOptions, args), args.json)


def train_options(args: argparse.Namespace, recipe: Recipe) -> TrainOptions:
    """The options of a training process, with the default run folder if none is given."""
    args.run_dir = args.run_dir or inputs.default_run_dir(recipe)
    return flags.options_of(TrainOptions, args)


def run_job(job: Job) -> int:
    """Runs this process's part of a job: supervision, or training if a supervisor started it."""
    if environment.ROLE.get() != "worker":
        return start.supervise(job)
    run_dir, launch = job.options.run_dir, launchers.detect()
    dog = watchdog.start_watchdog(run_dir, launch.process == 0)
    if dog:
        runtime.log_libraries_to(run_dir / "logs" / f"host-{dog.events.host}.log")
    out = runtime.claim_stdout()
    hooks: list[Hooks] = [dog] if dog else []
    result = session.run(
        TrainingProcess(
            job.recipe,
            job.options,
            sys.stderr if job.json else out,
            Chain([*hooks, faults_from_environment(run_dir)]),
            job.owns_folder,
            launch,
        )
    )
    if not launchers.is_first_process():
        pass
    elif job.result:
        job.result.write_text(runtime.json_text(result))
    else:
        print(runtime.json_text(result) if job.json else describe(result), file=out, flush=True)
    return 130 if result["interrupted"] else 0


def describe(result: dict[str, Any]) -> str:
    """The result of a run for the terminal."""
    times = result["step_time_s"]
    speed = "no step was timed"
    if times["p50"]:
        speed = (
            f"p50 {units.show(times['p50'], 's')}, p95 {units.show(times['p95'], 's')} a step, "
            f"{result['tokens_per_s']:,.0f} tokens/s, {result['data_wait']:.2%} waiting for data"
        )
    accuracy = result["validation_accuracy"]
    named = "" if accuracy is None else f", {accuracy:.1%} of the held-out images named right"
    state = "interrupted" if result["interrupted"] else "done"
    again = ", give the same command to go on" if result["interrupted"] else ""
    side = "below" if result["below_unigram_entropy"] else "not below"
    loss = (
        "nothing was evaluated yet"
        if result["validation_loss"] is None
        else f"validation loss {result['validation_loss']:.3f} nats, {side} the held-out data's "
        f"unigram entropy of {result['unigram_entropy']:.3f}{named}"
    )
    return (
        f"{state} at step {result['step']}{again}\n"
        f"measured: {speed}\n"
        f"measured: {loss}\n"
        f"measured: {goodput.Goodput.from_json(result['goodput']).describe()}"
    )
