"""Prints installed versions, attached devices and launchers, and what they allow."""

import argparse
import importlib.metadata
from typing import Any

from exajax.errors import InputError
from exajax.job import launchers, provenance, runtime
from exajax.machine.cluster import cluster_names, load_cluster


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the command's flags."""
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")


def run(args: argparse.Namespace) -> int:
    """Prints the findings."""
    out = runtime.claim_stdout()
    found = findings()
    if args.json:
        print(runtime.json_text(found), file=out)
        return 0
    print("versions   " + ", ".join(f"{k} {v}" for k, v in found["versions"].items()), file=out)
    print(f"machine    {found['machine']['processor']}, {found['machine']['system']}", file=out)
    print(f"attached   {describe_devices(found['devices'])}", file=out)
    print(f"launcher   {found['launcher']}", file=out)
    print(f"ahead of time   {found['ahead_of_time']}", file=out)
    print(f"MPI        {found['mpi']}", file=out)
    print(f"clusters   {', '.join(found['clusters'])}", file=out)
    return 0


def findings() -> dict[str, Any]:
    """Versions, devices and launcher, as JSON. It initializes JAX's devices."""
    devices = runtime.job_devices()
    kinds = sorted({device.device_kind for device in devices})
    return {
        "versions": provenance.versions(),
        "machine": provenance.machine(),
        "devices": {"platform": devices[0].platform, "count": len(devices), "kinds": kinds},
        "launcher": launchers.launcher(),
        "ahead_of_time": _ahead_of_time(),
        "mpi": _mpi(),
        "clusters": cluster_names(),
    }


def describe_devices(devices: dict[str, Any]) -> str:
    """Attached devices in words."""
    if devices["platform"] == "cpu":
        return "no accelerator, CPU only"
    return f"{devices['count']} x {', '.join(devices['kinds'])}"


def _ahead_of_time() -> str:
    from exajax.program.described_devices import described_devices

    try:
        described_devices(load_cluster("dgx-h100"), 8)
    except InputError as error:
        return f"not possible: {error.problem}; {error.fix}"
    return "compiles for NVIDIA GPUs"


def _mpi() -> str:
    """The installed mpi4py, which is not imported: that would initialize MPI."""
    try:
        return f"mpi4py {importlib.metadata.version('mpi4py')}"
    except importlib.metadata.PackageNotFoundError:
        return "mpi4py is not installed: pip install 'exajax[mpi]'"
