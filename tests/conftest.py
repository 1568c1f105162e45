"""Tests run on eight CPU devices, and in real processes where it matters."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# What tests compile is neither read from the user's cache nor left there.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="exajax-tests-")

# Compiling is most of a test's time. What the optimizer of LLVM adds is speed alone.
os.environ.setdefault(
    "XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

import jax
import pytest
from hypothesis import settings

from tests.fuzz import CI_EXAMPLES, EXAMPLES

jax.config.update("jax_num_cpu_devices", 8)

# Compiling makes the first example slow; a deadline would only measure the machine.
settings.register_profile(
    "exajax", deadline=None, derandomize=EXAMPLES == CI_EXAMPLES, max_examples=EXAMPLES
)
settings.load_profile("exajax")

REPOSITORY = Path(__file__).parent.parent

JOBS = ("benchmarks", "jobs", "resilience")
"""Folders of tests that start processes which use the whole machine: they run one by one."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Spreads tests under `-n`: all real jobs are one lot, and so is every other folder.

    Tests of a folder share what they have compiled, within a process.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFolder(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            folder = nodeid.split("::")[0].split("/")[1]
            return "jobs" if folder in JOBS else folder

    config.option.loadscopereorder = False  # jobs first: they take longest
    return ByFolder(config, log)


def command(
    *args: object, cwd: Path | None = None, timeout_s: float = 300
) -> "subprocess.CompletedProcess[str]":
    """Runs `python -m exajax ...`, or the front door if the first argument is its path."""
    first = [str(args[0])] if str(args[0]).endswith(".py") else ["-m", "exajax", str(args[0])]
    return subprocess.run(
        [sys.executable, *first, *map(str, args[1:])],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd=cwd,
    )


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of 60 kB with enough structure to learn from."""
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    lines = (f"{i} times {i % 7} is {i * (i % 7)}, and so it goes on.\n" for i in range(1500))
    path.write_text("".join(lines))
    return path
