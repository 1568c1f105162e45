"""A masked or weighted loss: the same numbers however the batch is divided.

The reference is the formula, sum(ce * weight) / sum(weight) + mean(extra), on one device in one go.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import exajax
from exajax.chaos.poison import poisoned

SAMPLES, WIDTH, CLASSES, LAYERS, STEPS, RATE = 64, 16, 10, 4, 5, 0.5


class Stack(nnx.Module):
    def __init__(self, rngs):
        drawn = 0.3 * rngs.params.normal((LAYERS, WIDTH, WIDTH))
        self.kernel = nnx.Param(drawn, out_sharding=("layers", "embed", None))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.stack, self.last = Stack(rngs), nnx.Linear(WIDTH, CLASSES, rngs=rngs)


def through(model, stream, batch):
    """The layers, and what they add to the loss: a plain mean over the samples."""
    extra = jnp.zeros(())
    for layer in model.stack.kernel[...]:
        stream = stream + jnp.tanh(stream @ layer)
        extra += 0.01 * jnp.mean(stream**2)
    return stream, extra


def cross_entropy(model, stream, batch):
    logits = model.last(stream)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])


STAGES = exajax.Stages(
    enter=lambda model, batch: batch["x"],
    body=through,
    exit=lambda model, stream, batch: exajax.weighted_mean(
        cross_entropy(model, stream, batch), batch["weight"]
    ),
)


def in_one_function(model, batch):
    stream, extra = through(model, batch["x"], batch)
    values = cross_entropy(model, stream, batch)
    weights = batch["weight"]
    return exajax.Weighted((values * weights).sum(), weights.sum(), extra)


def as_a_mean_and_its_weight(model, batch):
    stream, extra = through(model, batch["x"], batch)
    values, weights = cross_entropy(model, stream, batch), batch["weight"]
    mean, weight = jnp.average(values, weights=weights + 1e-30), weights.sum()
    return exajax.Weighted(mean * weight, weight, extra)


def workload(loss=STAGES):
    shape = jax.ShapeDtypeStruct
    return exajax.Workload(
        build=Net,
        loss=loss,
        batch={
            "x": shape((SAMPLES, WIDTH), jnp.float32),
            "label": shape((SAMPLES,), jnp.int32),
            "weight": shape((SAMPLES,), jnp.float32),
        },
        optimizer=optax.sgd(RATE),
    )


def batches(kind, step):
    rng = np.random.default_rng(step)
    label = rng.integers(0, CLASSES, SAMPLES).astype(np.int32)
    weight = {
        "mask": rng.random(SAMPLES) < np.linspace(0.1, 1.0, SAMPLES),  # sparse, then dense
        "classes": np.linspace(0.1, 5, CLASSES)[label],
        "gap": np.arange(SAMPLES) >= SAMPLES // 2,  # the first half is masked whole
        "mean": np.ones(SAMPLES),
    }[kind].astype(np.float32)
    return {
        "x": rng.normal(size=(SAMPLES, WIDTH)).astype(np.float32),
        "label": label,
        "weight": weight,
    }


@functools.cache
def reference(kind):
    """Losses of steps of gradient descent by the formula, and the loss of one batch more."""

    @jax.value_and_grad
    def loss(params, batch):
        stream, extra = batch["x"], 0.0
        for layer in params["stack"]["kernel"]:
            stream = stream + jnp.tanh(stream @ layer)
            extra += 0.01 * jnp.mean(stream**2)
        logits = stream @ params["last"]["kernel"] + params["last"]["bias"]
        values = jax.nn.logsumexp(logits, -1) - logits[jnp.arange(SAMPLES), batch["label"]]
        return (values * batch["weight"]).sum() / batch["weight"].sum() + extra

    params, losses = dict(start()), []
    for number in range(STEPS):
        value, gradients = loss(params, batches(kind, number))
        params = jax.tree.map(lambda p, g: p - RATE * g, params, gradients)
        losses.append(float(value))
    return losses, float(loss(params, batches(kind, STEPS))[0])


@functools.cache
def start():
    return jax.device_get(exajax.TrainStep.of(workload(), one_device()).init(np.uint32(0)).params)


def one_device():
    return exajax.MeshSpec().build(jax.devices()[:1])


def step_on(mesh, loss=STAGES, **layout):
    spec = exajax.MeshSpec.parse(mesh)
    built = spec.build(jax.devices()[: spec.devices])
    return exajax.TrainStep.of(workload(loss), built, precision="fp32", **layout)


def placed(step, batch):
    return {k: jax.device_put(batch[k], leaf.sharding) for k, leaf in step.batch.items()}


def assert_as_the_formula(step):
    for kind in ("mask", "classes", "gap", "mean"):
        state, losses = step.init(np.uint32(0)), []
        for number in range(STEPS):
            state, metrics = step.update(state, placed(step, batches(kind, number)))
            losses.append(float(metrics["loss"]))
        validation = float(step.evaluate(state.params, placed(step, batches(kind, STEPS))))
        expected, expected_validation = reference(kind)
        np.testing.assert_allclose(losses, expected, rtol=1e-6, err_msg=kind)
        np.testing.assert_allclose(validation, expected_validation, rtol=1e-6, err_msg=kind)


@pytest.mark.parametrize(
    ("mesh", "micro_batches", "options"),
    [
        ("1x1", 1, {}),
        ("1x1", 4, {}),
        ("4x1", 1, {"zero": 0}),
        ("4x1", 4, {"zero": 0}),
        pytest.param(*("4x1", 4, {"zero": 2}), marks=pytest.mark.slow),
        ("4x1", 4, {"zero": 3}),
        ("2x2", 4, {"zero": 0}),
        ("2x2", 1, {"zero": 3}),
        pytest.param(*("data=2,fsdp=2,expert=2", 4, {"zero": 1}), marks=pytest.mark.slow),
        ("pipe=2", 1, {}),
        ("pipe=2", 4, {"schedule": "gpipe"}),
        ("pipe=2,data=2,fsdp=2", 4, {"zero": 0}),
        pytest.param(*("pipe=4,data=2", 2, {"zero": 3}), marks=pytest.mark.slow),
    ],
)
def test_a_weighted_loss_is_that_of_the_formula_on_every_layout(mesh, micro_batches, options):
    assert_as_the_formula(step_on(mesh, micro_batches=micro_batches, **options))


@pytest.mark.parametrize("loss", [in_one_function, as_a_mean_and_its_weight])
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_so_is_one_that_is_a_function(loss, micro_batches):
    assert_as_the_formula(step_on("2x2", loss, micro_batches=micro_batches, zero=0))


LAYOUTS = [("1x1", 1), ("4x1", 4), ("pipe=2,data=2", 2)]


@pytest.mark.parametrize(("mesh", "micro_batches"), LAYOUTS)
def test_a_batch_that_weighs_nothing_leaves_the_plain_part_of_the_loss(mesh, micro_batches):
    step = step_on(mesh, STAGES.without_extra, micro_batches=micro_batches, zero=0)
    batch = placed(step, {**batches("mean", 0), "weight": np.zeros(SAMPLES, np.float32)})
    _, metrics = step.update(step.init(np.uint32(0)), batch)
    assert jax.device_get(metrics) == {"loss": 0.0, "grad_norm": 0.0}
    step = step_on(mesh, STAGES, micro_batches=micro_batches, zero=0)
    _, metrics = step.update(step.init(np.uint32(0)), batch)
    assert 0 < metrics["loss"] < 1
    assert 0 < metrics["grad_norm"] < 1


def test_evaluation_counts_batches_by_their_weight():
    step = step_on("2x2", micro_batches=4, zero=0)
    held_out = [batches("mask", 0), batches("gap", 1), batches("classes", 2)]
    fitted = exajax.fit(
        step,
        lambda number: batches("mask", number),
        steps=1,
        hooks=[exajax.Evaluation(lambda: iter(held_out))],
    )
    params = fitted.state.params
    losses = [step.evaluate(params, placed(step, batch)) for batch in held_out]
    totals, weights = (sum(float(getattr(x, n)) for x in losses) for n in ("total", "weight"))
    expected = totals / weights + np.mean([float(x.extra) for x in losses])
    assert weights == pytest.approx(sum(float(b["weight"].sum()) for b in held_out))
    assert fitted.validation_loss == pytest.approx(expected, rel=1e-6)
    assert fitted.validation_loss != pytest.approx(np.mean([float(x) for x in losses]), rel=1e-3)


def test_held_out_batches_that_weigh_nothing_are_refused():
    step = step_on("1x1")
    empty = {**batches("mean", 0), "weight": np.zeros(SAMPLES, np.float32)}
    with pytest.raises(exajax.InputError, match="held_out: its samples weigh 0"):
        exajax.fit(
            step, lambda number: batches("mean", number), steps=1,
            hooks=[exajax.Evaluation(lambda: [empty])],
        )  # fmt: skip


@pytest.mark.parametrize(("mesh", "micro_batches"), LAYOUTS)
def test_faults_are_injected_into_a_weighted_loss_too(mesh, micro_batches):
    spec = exajax.MeshSpec.parse(mesh)
    step = exajax.TrainStep.of(
        poisoned(workload()),
        spec.build(jax.devices()[: spec.devices]),
        precision="fp32",
        micro_batches=micro_batches,
        zero=0,
    )
    ones = np.ones(SAMPLES, np.float32)
    for factor, expected in ((1.0, reference("mask")[0][0]), (np.nan, np.nan)):
        batch = {**batches("mask", 0), "poison": ones * np.float32(factor)}
        _, metrics = step.update(step.init(np.uint32(0)), placed(step, batch))
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-6)
