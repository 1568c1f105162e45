"""JAX's own cache of programs: what exajax reads and writes in it, from the inside."""

import jax
import pytest

from exajax.job import compilation_cache, jax_cache
from tests.job.test_collective_order import (
    collectives_in_a_loop_and_beside_it,
    lowered,
    program,
    without_order,
)
from tests.spmd.runs import programs_kept_in

pytestmark = pytest.mark.jax_surface


def made(function):
    """Compiles a function as one that this process has not seen; returns it, and how that went."""
    jax.clear_caches()
    compiled, how = compilation_cache.watch(lowered(function).compile)
    return compiled, how.cache


def test_a_program_is_compiled_then_read_and_anew_takes_the_place_of_the_first(tmp_path):
    def double(x):
        return 2 * x

    with compilation_cache.disabled():
        assert made(double)[1] == "off"
    with programs_kept_in(tmp_path):
        assert [made(double)[1], made(double)[1]] == ["miss", "hit"]
        (entry,) = tmp_path.glob("jit_double-*-cache")
        kept = entry.read_bytes()
        assert jax_cache.unpacked(jax_cache.packed(b"program", 7)) == (b"program", 7)
        jax_cache.unpacked(kept)
        entry.write_bytes(b"damaged")
        jax_cache.keep(anew=True)
        assert made(double)[1] == "miss"
        jax_cache.keep()
        assert made(double)[1] == "hit"


def test_what_jax_reads_for_cpu_devices_runs_in_order(tmp_path):
    with programs_kept_in(tmp_path):
        compiled = made(collectives_in_a_loop_and_beside_it)[0]
        assert without_order(program(compiled.runtime_executable().serialize()))
        read, how = made(collectives_in_a_loop_and_beside_it)
        assert how == "hit"
        ordered = program(read.runtime_executable().serialize())
        assert not without_order(ordered)
        assert any(thunk.info.name.startswith("in-order") for thunk in ordered.thunks)
