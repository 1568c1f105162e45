"""Axes of a mesh that divide nothing of a step are said, on both roads."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import exajax
from exajax.spmd.sharding import constrain

pytestmark = pytest.mark.jax_surface

WIDTH = 64
X = {"x": jax.ShapeDtypeStruct((16, WIDTH), jnp.float32)}
NAMED = {"out_sharding": ("embed", "mlp")}


def batches(step):
    return {"x": np.full((16, WIDTH), step, np.float32)}


def plain(module, batch):
    return jnp.square(module(batch["x"])).mean()


def constrained(module, batch):
    return jnp.square(constrain(module(batch["x"]), ("batch", "mlp"))).mean()


def workload(loss=plain, metadata=None, width=WIDTH):
    def build(rngs):
        return nnx.Linear(WIDTH, width, kernel_metadata=metadata or {}, rngs=rngs)

    return exajax.Workload(build, loss, X, optax.sgd(1e-3))


@pytest.mark.parametrize(
    ("work", "mesh", "idle"),
    [
        (workload(), "data=2,model=4", ("model",)),
        (workload(), "fsdp=2,model=2,context=2", ("context", "model")),
        (workload(metadata=NAMED), "data=2,model=4", ()),
        (workload(metadata=NAMED, width=30), "data=2,model=4", ("model",)),
        (workload(constrained), "data=2,model=4", ()),
        (workload(), "data=2,fsdp=4", ()),
    ],
    ids=["unnamed", "two axes", "named", "named, not divisible", "an activation", "batch"],
)
def test_a_prediction_says_which_axes_are_idle(work, mesh, idle):
    found = exajax.predict(work, mesh, "dgx-h100")
    again = exajax.predict(work, mesh, "dgx-h100")  # read from the cache
    for one in (found, again):
        assert one.idle_axes == idle
        assert one.to_json()["idle_axes"] == list(idle)
        assert len(one.notes) == bool(idle)
        lines = str(one).splitlines()
        assert len(lines) == 7 + bool(idle)
        assert "simulated on" in lines[0]
        assert lines[5].endswith("on a device: fits")
        assert lines[-1].endswith("leave these out of the mesh") == bool(idle)
        assert len(repr(one)) < 100
        assert all(f"{axis}=" in one.notes[0] for axis in idle)
    assert found.mfu is None
    assert 0 < found.hfu <= 1


def test_training_warns_once_of_an_idle_axis():
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        step = exajax.train_step(workload(), "data=2,model=4", precision="fp32")
        exajax.fit(step, batches, steps=1)
    assert [str(one.message).partition(";")[0] for one in told if "idle" in str(one.message)] == [
        "idle mesh axes: model=4"
    ]


def test_training_does_not_warn_where_every_axis_divides_something():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exajax.train_step(workload(constrained), "data=2,model=4", precision="fp32")
        exajax.train_step(workload(metadata=NAMED), "data=2,model=4", precision="fp32")
