"""`launch/multihost.py`: trains where the mesh's devices are, and simulates where they are not.

python launch/multihost.py --mesh 128x8 [--model llama2-70b] [--cluster dgx-h100]
"""

import argparse

from exajax.cli import flags, train
from exajax.cli.main_job import run_main_job
from exajax.job import launchers, runtime


def multihost_parser() -> argparse.ArgumentParser:
    """The parser of the flags, those of `exajax train`."""
    arguments = flags.Parser(
        prog="multihost.py",
        description=(__doc__ or "").splitlines()[0],
        formatter_class=flags.Formatter,
    )
    train.add_flags(arguments)
    return arguments


def run(args: argparse.Namespace) -> int:
    """Trains here under a launcher, with `--hosts` or on matching devices; else the main job."""
    mesh = flags.recipe_of(args).mesh
    if launchers.launcher() != "single" or args.hosts is not None:
        return train.run(args)
    devices = runtime.attached_devices()
    if devices["platform"] != "cpu" and devices["count"] == mesh.devices:
        return train.run(args)
    return run_main_job(args, devices)
