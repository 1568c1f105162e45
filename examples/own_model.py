"""A module of one's own: trained on a mesh of this machine, simulated on another machine's.

python examples/own_model.py
"""

import jax

jax.config.update("jax_num_cpu_devices", 4)  # a GPU machine brings its own devices

import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import exajax


class Classifier(nnx.Module):
    """Two layers; `embed` and `mlp` name axes, so that `model` in a mesh divides the wide one."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        up, down = {"out_sharding": ("embed", "mlp")}, {"out_sharding": ("mlp", "embed")}
        self.up = nnx.Linear(64, width, kernel_metadata=up, rngs=rngs)
        self.down = nnx.Linear(width, 10, kernel_metadata=down, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Returns logits [B, 10]."""
        return self.down(nnx.relu(self.up(x)))


def loss(model: Classifier, batch: dict[str, jax.Array]) -> jax.Array:
    """Cross-entropy."""
    logits = model(batch["x"]).astype(jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()


def workload(width: int, samples: int) -> exajax.Workload:
    """Returns what one step computes."""
    return exajax.Workload(
        build=lambda rngs: Classifier(width, rngs),
        loss=loss,
        batch={
            "x": jax.ShapeDtypeStruct((samples, 64), jnp.float32),
            "label": jax.ShapeDtypeStruct((samples,), jnp.int32),
        },
        optimizer=optax.adamw(1e-3),
    )


def batches(step: int) -> dict[str, np.ndarray]:
    """Returns points around ten centres."""
    rng = np.random.default_rng(step)
    label = rng.integers(0, 10, 256).astype(np.int32)
    centres = np.random.default_rng(0).normal(size=(10, 64))
    noise = rng.normal(size=(256, 64))
    return {"x": (centres[label] + noise).astype(np.float32), "label": label}


if __name__ == "__main__":
    step = exajax.train_step(workload(256, 256), "2x2", precision="fp32")
    held_out = exajax.Evaluation(lambda: [batches(1_000)])
    done = exajax.fit(step, batches, steps=200, hooks=[held_out])
    print(
        f"measured on 2x2 here: loss {done.losses[0]:.3f} to {done.losses[-1]:.3f}, "
        f"{done.validation_loss:.3f} on held-out data"
    )

    wide = exajax.predict(workload(65_536, 128 * 1024), "128x8", "dgx-h100")
    print(
        f"simulated on 128x8 H100: {wide.step_time_s * 1e3:.3g} ms a step, "
        f"{wide.compiled.memory.total / 1e9:.2f} GB a device"
    )
