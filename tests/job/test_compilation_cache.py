"""The cache of compiled steps, in real runs that follow each other."""

import json
import os
import subprocess
import sys

import pytest

from exajax.job import collective_order, jax_cache
from tests.jobs.processes import SMALL

JOB = (f"--model={SMALL}", "--precision=fp32", "--metrics-port=0", "--json")


def train(cache, text, run_dir, *flags, **environment):
    """Trains with the user's cache folder at `cache`; returns standard error and the result."""
    command = [sys.executable, "-m", "exajax", "train", *JOB, *flags]
    command += [f"--data={text}", f"--run-dir={run_dir}"]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)} | environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr, json.loads(done.stdout)


def test_a_second_run_reads_the_step_from_the_cache_with_identical_losses(tmp_path, text):
    stderr, straight = train(tmp_path, text, tmp_path / "one", "--mesh=1x2", "--steps=6")
    assert straight["compilation"]["cache"] == "miss"
    assert f"compilation cache miss ({tmp_path}" in stderr
    train(tmp_path, text, tmp_path / "two", "--mesh=1x2", "--steps=3")
    stderr, resumed = train(tmp_path, text, tmp_path / "two", "--mesh=1x2", "--steps=6")
    assert resumed["compilation"]["cache"] == "hit"
    assert "step read in" in stderr
    assert resumed["compilation"]["seconds"] < straight["compilation"]["seconds"]
    assert resumed["resumed_from"] == 3
    assert resumed["losses"] == straight["losses"]


def make_loops_endless(entry):
    """Changes a program in the cache: every loop of it has a trip count of 2 ** 40."""
    program, seconds = jax_cache.unpacked(entry.read_bytes())
    begin = collective_order._program_begins(program)
    executable = collective_order._message("Executable")()
    executable.ParseFromString(program[begin:])
    loops = [thunk.loop for thunk in executable.program.sequence.thunks if thunk.HasField("loop")]
    assert loops
    trips = b"\x08" + b"\x80" * 5 + b"\x20" + b"\x10\x01"  # Int64Optional: value, contains_value
    for loop in loops:
        loop.MergeFromString(b"\x1a" + bytes([len(trips)]) + trips)  # trip_count
    program = program[:begin] + executable.SerializeToString()
    entry.write_bytes(jax_cache.packed(program, seconds))


@pytest.mark.slow
def test_a_cached_program_that_hangs_is_compiled_again_and_replaced(tmp_path, text):
    job = ("--mesh=1x1", "--steps=3", "--deadlines=step=15")
    straight = train(tmp_path, text, tmp_path / "one", *job)[1]
    (entry,) = (tmp_path / "exajax" / "jax").glob("*/jit_update*-cache")
    make_loops_endless(entry)
    stderr, result = train(tmp_path, text, tmp_path / "two", *job)
    assert "attempt 1: all hosts are stuck at step" in stderr
    assert stderr.count("the next attempt compiles it anew") == 1
    assert result["compilation"]["cache"] == "miss"
    assert result["losses"] == straight["losses"]
    stderr, result = train(tmp_path, text, tmp_path / "three", *job)
    assert result["compilation"]["cache"] == "hit"
    assert "attempt 1" not in stderr
    assert result["losses"] == straight["losses"]


@pytest.mark.slow
def test_two_processes_read_the_entry_of_an_earlier_job(tmp_path, text):
    job = ("--mesh=2x1", "--hosts=2", "--steps=2")
    first = train(tmp_path, text, tmp_path / "one", *job)[1]
    second = train(tmp_path, text, tmp_path / "two", *job)[1]
    assert (first["compilation"]["cache"], second["compilation"]["cache"]) == ("miss", "hit")
    assert first["losses"] == second["losses"]


@pytest.mark.slow
def test_runs_survive_an_unwritable_cache_folder_and_a_truncated_entry(tmp_path, text):
    job = ("--mesh=1x1", "--steps=1")
    (tmp_path / "file").touch()
    stderr, result = train(tmp_path / "file", text, tmp_path / "one", *job)
    assert result["compilation"]["cache"] == "off"
    assert "cannot be written" in stderr
    train(tmp_path, text, tmp_path / "two", *job)
    (entry,) = (tmp_path / "exajax" / "jax").glob("*/jit_update*-cache")
    entry.write_bytes(entry.read_bytes()[:1000])
    assert train(tmp_path, text, tmp_path / "three", *job)[1]["compilation"]["cache"] == "miss"


@pytest.mark.slow
def test_jax_settings_take_precedence(tmp_path, text):
    job = ("--mesh=1x1", "--steps=1")
    own = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own")}
    stderr, _ = train(tmp_path, text, tmp_path / "one", *job, **own)
    assert f"compilation cache miss ({tmp_path / 'own'})" in stderr
    none = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    stderr, result = train(tmp_path, text, tmp_path / "two", *job, **none)
    assert result["compilation"]["cache"] == "off"
    assert "JAX_ENABLE_COMPILATION_CACHE is false" in stderr
