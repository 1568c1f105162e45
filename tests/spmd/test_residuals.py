"""What differentiation saves, taken apart and put together again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from exajax.spmd import residuals

pytestmark = pytest.mark.jax_surface


def test_parameters_are_not_among_what_is_saved_and_the_pullback_is_the_same():
    weights = {"w": jnp.arange(12.0).reshape(3, 4), "v": jnp.arange(4.0)}
    shapes = []

    def function(weights, x):
        return jnp.tanh(x @ weights["w"]) @ weights["v"]

    @jax.jit
    def gradients(weights, x):
        y, pullback = jax.vjp(function, weights, x)
        kept, form = residuals.split(pullback, weights)
        shapes.extend(leaf.shape for leaf in kept)
        return residuals.joined(form, kept, weights)(jnp.ones_like(y))

    x = jnp.ones((2, 3))
    expected = jax.grad(lambda *both: function(*both).sum(), (0, 1))(weights, x)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), gradients(weights, x), expected
    )
    assert (3, 4) not in shapes
    assert (2, 4) in shapes
