"""Provenance of a result: versions, machine and hashes, without a time of day."""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from exajax.machine.cluster import Cluster
from exajax.machine.software_of_rows import unvalidated
from exajax.models.dimensions import FLOPS_CONVENTION
from exajax.recipe.recipe import Recipe
from exajax.spmd import compiler_options

PACKAGES = (
    "exajax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "jax-cuda12-plugin",
)


def versions() -> dict[str, str]:
    """The installed versions of Python and of `PACKAGES`; missing packages are left out."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return installed


@functools.cache
def source_digest() -> str:
    """SHA-256 of this package's modules, which tells checkouts of one version apart."""
    package = Path(__file__).parents[1]
    folders = [package, *(package / link for link in ("models", "meshes", "launch"))]
    files = {str(file.relative_to(package)): file for root in folders for file in _modules(root)}
    digest = hashlib.sha256()
    for name, file in sorted(files.items()):
        digest.update(f"{name}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _modules(folder: Path) -> list[Path]:
    # In a checkout some folders are links, which pathlib follows only at the root of a pattern.
    return [*folder.glob("*.py"), *folder.glob("[a-z]*/**/*.py")]


def start_versions() -> dict[str, str]:
    """The versions that must be equal on all hosts of a job: packages, Python's minor, source."""
    python = ".".join(platform.python_version_tuple()[:2])
    return versions() | {"python": python, "exajax's source": source_digest()}


def provenance(
    recipe: Recipe, cluster: Cluster | None, left_out: Sequence[str] = ()
) -> dict[str, Any]:
    """Everything that determines a result; equal provenance means an equal simulated result.

    Args:
        recipe: what was trained or simulated.
        cluster: the described machine; None for the attached devices.
        left_out: compiler options that the installed compiler does not know.
    """
    model = json.dumps(asdict(recipe.model), sort_keys=True).encode()
    return {
        "versions": versions(),
        "model": {"name": recipe.model.name, "sha256": hashlib.sha256(model).hexdigest()[:16]},
        "recipe": recipe.digest,
        "flops_convention": FLOPS_CONVENTION,
        "xla_options": compiler_options.compiler_options(cluster.chip.platform)
        if cluster
        else None,
        "xla_options_left_out": list(left_out),
        "cluster": cluster and {"name": cluster.name, "sha256": cluster.digest},
        "calibration": cluster and cluster.chip.calibration,
        "unvalidated": cluster and unvalidated(cluster.chip.name, cluster.software.name),
        "stack": cluster
        and {"name": cluster.software.name, "fitted_on": cluster.software.fitted_on},
    }


def machine() -> dict[str, Any]:
    """This machine: host name, processor and operating system."""
    return {"host": platform.node(), "processor": processor(), "system": platform.platform()}


def memory_bytes() -> int:
    """Physical memory of this machine, bytes."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def processor() -> str:
    """The processor's name and count, such as `16 x AMD EPYC 7763 64-Core Processor`."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:
            models = [
                line.split(":", 1)[1].strip() for line in file if line.startswith("model name")
            ]
        name = models[0] if models else name
    except OSError:
        pass
    return f"{os.cpu_count()} x {name}"
