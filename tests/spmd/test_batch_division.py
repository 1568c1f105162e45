"""Losses that divide by a sum over their batch: right in one go, refused in micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import exajax

pytestmark = pytest.mark.jax_surface

SAMPLES, WIDTH, CLASSES = 8, 3, 5


def step_of(loss, **layout):
    shape = jax.ShapeDtypeStruct
    workload = exajax.Workload(
        build=lambda rngs: {"w": jnp.ones((WIDTH, CLASSES))},
        loss=loss,
        batch={
            "x": shape((SAMPLES, WIDTH), jnp.float32),
            "label": shape((SAMPLES,), jnp.int32),
            "weight": shape((SAMPLES,), jnp.float32),
        },
        optimizer=optax.sgd(0.1),
    )
    mesh = exajax.MeshSpec().build(jax.devices()[:1])
    return exajax.TrainStep.of(workload, mesh, precision="fp32", **layout)


def values(params, batch):
    logits = batch["x"] @ params["w"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


def in_a_loop(params, batch):
    def add(sums, sample):
        value, weight = sample
        return (sums[0] + value * weight, sums[1] + weight), None

    zeros = (jnp.zeros(()), jnp.zeros(()))
    (total, weight), _ = jax.lax.scan(add, zeros, (values(params, batch), batch["weight"]))
    return total / weight


RATIOS = {
    "masked": lambda p, b: (values(p, b) * b["weight"]).sum() / b["weight"].sum(),
    "clipped": lambda p, b: (values(p, b) * b["weight"]).sum() / jnp.maximum(b["weight"].sum(), 1),
    "average": lambda p, b: jnp.average(values(p, b), weights=b["weight"]),
    "where": lambda p, b: jnp.mean(values(p, b), where=b["weight"] > 0.5),
    "shares": lambda p, b: (values(p, b) * (b["weight"] / b["weight"].sum())).sum(),
    "reciprocal": lambda p, b: (values(p, b) * b["weight"]).sum() * b["weight"].sum() ** -1,
    "repeated": lambda p, b: (
        values(p, b) * b["weight"] / jnp.broadcast_to(b["weight"].sum(), (SAMPLES,))
    ).sum(),
    "labels": lambda p, b: values(p, b).sum() / (b["label"] != 0).sum(),
    "jitted": jax.jit(lambda p, b: (values(p, b) * b["weight"]).sum() / b["weight"].sum()),
    "recomputed": jax.checkpoint(
        lambda p, b: (values(p, b) * b["weight"]).sum() / b["weight"].sum()
    ),
    "safe": lambda p, b: jnp.where(
        b["weight"].sum() > 0, (values(p, b) * b["weight"]).sum() / b["weight"].sum(), 0.0
    ),
    "looped": in_a_loop,
}


@pytest.mark.parametrize("name", RATIOS)
def test_a_ratio_of_sums_over_the_batch_is_refused_in_micro_batches(name):
    with pytest.raises(exajax.InputError, match="divides by a number that it computes from the b"):
        step_of(RATIOS[name], micro_batches=2)


def test_in_one_go_it_is_the_formula():
    rng = np.random.default_rng(0)
    batch = {
        "x": rng.normal(size=(SAMPLES, WIDTH)).astype(np.float32),
        "label": rng.integers(0, CLASSES, SAMPLES).astype(np.int32),
        "weight": rng.random(SAMPLES).astype(np.float32),
    }
    step = step_of(RATIOS["masked"])
    _, metrics = step.update(step.init(np.uint32(0)), batch)
    # All logits of a sample are equal at the start: its loss is the log of the classes' number.
    assert metrics["loss"] == pytest.approx(np.log(CLASSES), rel=1e-6)


def test_a_pipelines_last_stage_may_not_divide_by_the_batch_either():
    stages = exajax.Stages(
        enter=lambda p, b: b["x"] @ p["w"],
        body=lambda p, x, b: (x, jnp.zeros(())),
        exit=lambda p, x, b: (x.sum(-1) * b["weight"]).sum() / b["weight"].sum(),
    )
    with pytest.raises(exajax.InputError, match="return exajax"):
        step_of(stages, micro_batches=2)


@pytest.mark.parametrize(
    "loss",
    [
        lambda p, b: values(p, b).mean(),
        lambda p, b: values(p, b).sum() / SAMPLES,
        lambda p, b: (values(p, b) * b["weight"]).mean(),
        # Each sample divides by what is its own.
        lambda p, b: (values(p, b) / (1 + b["weight"])).mean(),
        lambda p, b: values(
            p, {**b, "x": b["x"] / jnp.linalg.norm(b["x"], axis=1, keepdims=True)}
        ).mean(),
        lambda p, b: values(p, b).mean() / jnp.linalg.norm(p["w"]),
        lambda p, b: jax.lax.map(lambda x: x[0] / x[1], (values(p, b), 1 + b["weight"])).mean(),
    ],
)
def test_means_over_samples_are_taken_in_micro_batches(loss):
    step_of(loss, micro_batches=2)
