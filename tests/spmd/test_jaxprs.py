"""Traced programs, as the installed JAX makes them."""

import jax
import jax.numpy as jnp
import pytest

from exajax.spmd import jaxprs

pytestmark = pytest.mark.jax_surface


def test_what_is_within_jit_loops_and_branches_is_found():
    def function(x):
        x = jax.jit(jnp.sin)(x)
        x, _ = jax.lax.scan(lambda total, _: (jnp.cos(total), None), x, length=3)
        return jax.lax.cond(x > 0, jnp.tanh, jnp.exp, x)

    found = jaxprs.operations(jax.make_jaxpr(function)(1.0).jaxpr)
    assert {"sin", "cos", "tanh", "exp"} <= {operation.primitive.name for operation in found}


def test_a_loop_hands_on_what_stands_between_constants_and_what_it_scans_over():
    scale = jnp.arange(3.0)

    def function(x, xs):
        return jax.lax.scan(lambda total, each: (total * scale + each, total), x, xs)

    jaxpr = jax.make_jaxpr(function)(jnp.zeros(3), jnp.zeros((5, 3))).jaxpr
    (loop,) = [equation for equation in jaxpr.eqns if equation.primitive.name == "scan"]
    operands = [value.aval.shape for value in loop.invars]
    assert operands == [(3,), (3,), (5, 3)]
    assert jaxprs.carry_operands(loop) == slice(1, 2)
    assert [value.aval.shape for value in loop.outvars] == [(3,), (5, 3)]


def test_a_result_is_computed_from_the_inputs_that_it_needs(capfd):
    def function(unused, x, scale):
        jax.debug.print("never seen {}", unused)
        looped, _ = jax.lax.scan(lambda total, _: (total + scale, jnp.sin(unused)), x, length=3)
        return looped

    used, run = jaxprs.needed_inputs(jax.make_jaxpr(function)(0.0, 1.0, 2.0))
    assert used == [False, True, True]
    assert float(jax.jit(lambda x, scale: run([x, scale]))(1.0, 2.0)) == 7.0
    jax.effects_barrier()
    assert capfd.readouterr().out == ""
