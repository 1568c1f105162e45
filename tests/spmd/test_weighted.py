"""Weighted means as values, and what a loss may return."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import exajax
from exajax.spmd.weighted import weight_without_loss

pytestmark = pytest.mark.jax_surface


def step_of(loss, **layout):
    shape = jax.ShapeDtypeStruct
    workload = exajax.Workload(
        build=lambda rngs: {"w": jnp.ones(3)},
        loss=loss,
        batch={"x": shape((8, 3), jnp.float32), "m": shape((8,), jnp.bool)},
        optimizer=optax.sgd(0.1),
    )
    mesh = exajax.MeshSpec().build(jax.devices()[:1])
    return exajax.TrainStep.of(workload, mesh, precision="fp32", **layout)


def values(params, batch):
    return batch["x"] @ params["w"]


@pytest.mark.parametrize(
    ("loss", "problem"),
    [
        (lambda p, b: values(p, b), r"an array of shape \(8,\)"),
        (lambda p, b: (values(p, b).sum(), b["m"].sum()), "returned a tuple"),
        (lambda p, b: exajax.Weighted(values(p, b), b["m"].sum()), r"total has shape \(8,\)"),
        (lambda p, b: exajax.Weighted(values(p, b).sum(), b["m"]), r"weight has shape \(8,\)"),
        (lambda p, b: exajax.Weighted(b["m"].sum(), b["m"].sum()), "total is int32"),
        (
            lambda p, b: exajax.Weighted(values(p, b).sum(), (values(p, b) > 0).sum()),
            "weight depends on the parameters",
        ),
        (lambda p, b: exajax.weighted_mean(values(p, b), b["x"]), "weights: their shape"),
    ],
)
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_loss_of_another_form_is_refused_before_anything_is_compiled(
    loss, problem, micro_batches
):
    with pytest.raises(exajax.InputError, match=problem):
        step_of(loss, micro_batches=micro_batches)


def test_a_weight_in_a_pipelines_last_stage_must_not_depend_on_the_stream():
    stages = exajax.Stages(
        enter=lambda p, b: b["x"] * p["w"],
        body=lambda p, x, b: (x, jnp.zeros(())),
        exit=lambda p, x, b: exajax.Weighted(x.sum(), (x > 0).sum()),
    )
    with pytest.raises(exajax.InputError, match="weight depends on the parameters"):
        step_of(stages)


@pytest.mark.parametrize("jitted", [False, True])
def test_printing_in_a_loss_does_not_make_its_weight_depend_on_it(jitted):
    def loss(params, batch):
        found = values(params, batch)
        jax.debug.print("mean {}", found.mean())
        return exajax.weighted_mean(found, batch["m"])

    step = step_of(jax.jit(loss) if jitted else loss, micro_batches=2)
    batch = {"x": jnp.arange(24.0).reshape(8, 3), "m": jnp.arange(8) % 3 == 0}
    _, metrics = step.update(step.init(np.uint32(0)), batch)
    expected = np.asarray(batch["x"]).sum(1)[np.arange(8) % 3 == 0].mean()
    assert metrics["loss"] == pytest.approx(expected)


def test_the_weight_is_computed_without_the_loss():
    def loss(params, batch):
        return exajax.weighted_mean(values(params, batch), batch["m"])

    params = {"w": jax.ShapeDtypeStruct((3,), jnp.float32)}
    described = {
        "x": jax.ShapeDtypeStruct((8, 3), jnp.float32),
        "m": jax.ShapeDtypeStruct((8,), jnp.bool),
    }
    program = jax.make_jaxpr(lambda batch: weight_without_loss(loss, (params,), batch))(described)
    assert "dot_general" not in str(program)
    assert "reduce_sum" in str(program)


def test_values_that_do_not_count_may_be_anything():
    weighted = exajax.weighted_mean(jnp.array([jnp.nan, 3.0, 5.0]), jnp.array([0, 1, 3]))
    assert float(weighted) == 4.5
    assert weighted.weight == 4


def test_sums_are_in_fp32_whatever_the_values_are():
    weighted = exajax.weighted_mean(jnp.full(4096, 1.0, jnp.bfloat16), jnp.ones(4096, bool))
    assert weighted.total == weighted.weight == 4096
    assert weighted.total.dtype == jnp.float32


def test_the_mean_of_nothing_is_zero_and_so_is_its_gradient():
    def mean(x):
        return exajax.weighted_mean(x, jnp.zeros(3)).mean

    value, gradient = jax.value_and_grad(mean)(jnp.ones(3))
    assert value == 0
    assert not gradient.any()
