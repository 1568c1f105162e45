"""JAX's cache of compiled programs, as exajax wraps it."""

import jax
import pytest

from exajax.job import compilation_cache, jax_cache
from tests.job.test_collective_order import (
    collectives_inside_and_outside_a_loop,
    lowered,
    program,
    unordered,
)
from tests.spmd.runs import programs_kept_in

pytestmark = pytest.mark.jax_surface


def compile_again(function):
    """Compiles a function that is not in memory; returns it, and `hit`, `miss` or `off`."""
    jax.clear_caches()
    compiled, how = compilation_cache.timed_compile(lowered(function).compile)
    return compiled, how.cache


def test_a_program_is_compiled_then_read_and_overwritten_on_request(tmp_path):
    def double(x):
        return 2 * x

    with compilation_cache.disabled():
        assert compile_again(double)[1] == "off"
    with programs_kept_in(tmp_path):
        assert [compile_again(double)[1], compile_again(double)[1]] == ["miss", "hit"]
        (entry,) = tmp_path.glob("jit_double-*-cache")
        stored = entry.read_bytes()
        assert jax_cache.unpacked(jax_cache.packed(b"program", 7)) == (b"program", 7)
        jax_cache.unpacked(stored)
        entry.write_bytes(b"damaged")
        jax_cache.install(overwrite=True)
        assert compile_again(double)[1] == "miss"
        jax_cache.install()
        assert compile_again(double)[1] == "hit"


def test_cpu_programs_that_jax_reads_run_in_order(tmp_path):
    with programs_kept_in(tmp_path):
        compiled = compile_again(collectives_inside_and_outside_a_loop)[0]
        assert unordered(program(compiled.runtime_executable().serialize()))
        read, how = compile_again(collectives_inside_and_outside_a_loop)
        assert how == "hit"
        ordered = program(read.runtime_executable().serialize())
        assert not unordered(ordered)
        assert any(thunk.info.name.startswith("in-order") for thunk in ordered.thunks)
