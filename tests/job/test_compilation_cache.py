"""The cache of compiled steps, in real runs one after the other."""

import json
import os
import subprocess
import sys

import pytest

from exajax.job import collective_order, jax_cache
from tests.jobs.processes import SMALL

JOB = (f"--model={SMALL}", "--precision=fp32", "--metrics-port=0", "--json")


def train(cache, text, run_dir, *flags, **environment):
    """Trains with the user's cache folder at `cache`; returns what the run says and its result."""
    command = [sys.executable, "-m", "exajax", "train", *JOB, *flags]
    command += [f"--data={text}", f"--run-dir={run_dir}"]
    environment = os.environ | {"XDG_CACHE_HOME": str(cache)} | environment
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr, json.loads(done.stdout)


def test_a_second_run_reads_the_step_and_changes_no_bit(tmp_path, text):
    said, straight = train(tmp_path, text, tmp_path / "one", "--mesh=1x2", "--steps=6")
    assert straight["compilation"]["cache"] == "miss"
    assert f"compilation cache miss ({tmp_path}" in said
    train(tmp_path, text, tmp_path / "two", "--mesh=1x2", "--steps=3")
    said, resumed = train(tmp_path, text, tmp_path / "two", "--mesh=1x2", "--steps=6")
    assert resumed["compilation"]["cache"] == "hit"
    assert "step read in" in said
    assert resumed["compilation"]["seconds"] < straight["compilation"]["seconds"]
    assert resumed["resumed_from"] == 3
    assert resumed["losses"] == straight["losses"]


def loops_for_ever(entry):
    """Changes a program in the cache: every loop of it makes 2 ** 40 turns."""
    program, seconds = jax_cache.unpacked(entry.read_bytes())
    begin = collective_order._program_begins(program)
    executable = collective_order._message("Executable")()
    executable.ParseFromString(program[begin:])
    loops = [thunk.loop for thunk in executable.program.sequence.thunks if thunk.HasField("loop")]
    assert loops
    turns = b"\x08" + b"\x80" * 5 + b"\x20" + b"\x10\x01"  # Int64Optional: value, contains_value
    for loop in loops:
        loop.MergeFromString(b"\x1a" + bytes([len(turns)]) + turns)  # trip_count
    program = program[:begin] + executable.SerializeToString()
    entry.write_bytes(jax_cache.packed(program, seconds))


@pytest.mark.slow
def test_a_program_from_the_cache_that_hangs_is_compiled_anew_and_replaced(tmp_path, text):
    job = ("--mesh=1x1", "--steps=3", "--deadlines=step=15")
    straight = train(tmp_path, text, tmp_path / "one", *job)[1]
    (entry,) = (tmp_path / "exajax" / "jax").glob("*/jit_update*-cache")
    loops_for_ever(entry)
    said, result = train(tmp_path, text, tmp_path / "two", *job)
    assert "attempt 1: all hosts are stuck at step" in said
    assert said.count("the next attempt compiles it anew") == 1
    assert result["compilation"]["cache"] == "miss"
    assert result["losses"] == straight["losses"]
    said, result = train(tmp_path, text, tmp_path / "three", *job)
    assert result["compilation"]["cache"] == "hit"
    assert "attempt 1" not in said
    assert result["losses"] == straight["losses"]


@pytest.mark.slow
def test_two_processes_read_what_the_first_one_kept(tmp_path, text):
    job = ("--mesh=2x1", "--hosts=2", "--steps=2")
    first = train(tmp_path, text, tmp_path / "one", *job)[1]
    second = train(tmp_path, text, tmp_path / "two", *job)[1]
    assert (first["compilation"]["cache"], second["compilation"]["cache"]) == ("miss", "hit")
    assert first["losses"] == second["losses"]


@pytest.mark.slow
def test_a_folder_that_cannot_be_made_and_a_broken_entry_stop_no_run(tmp_path, text):
    job = ("--mesh=1x1", "--steps=1")
    (tmp_path / "file").touch()
    said, result = train(tmp_path / "file", text, tmp_path / "one", *job)
    assert result["compilation"]["cache"] == "off"
    assert "cannot be written" in said
    train(tmp_path, text, tmp_path / "two", *job)
    (entry,) = (tmp_path / "exajax" / "jax").glob("*/jit_update*-cache")
    entry.write_bytes(entry.read_bytes()[:1000])
    assert train(tmp_path, text, tmp_path / "three", *job)[1]["compilation"]["cache"] == "miss"


@pytest.mark.slow
def test_jax_settings_come_first(tmp_path, text):
    job = ("--mesh=1x1", "--steps=1")
    own = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "own")}
    said, _ = train(tmp_path, text, tmp_path / "one", *job, **own)
    assert f"compilation cache miss ({tmp_path / 'own'})" in said
    none = {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    said, result = train(tmp_path, text, tmp_path / "two", *job, **none)
    assert result["compilation"]["cache"] == "off"
    assert "JAX_ENABLE_COMPILATION_CACHE is false" in said
