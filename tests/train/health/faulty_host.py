"""One host process of a job in which host 1 is at fault; tests start it.

Usage: python -m tests.train.health.faulty_host FAULT RUN_DIR STEPS
"""

import sys
import time
import urllib.request
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import exajax
from exajax.chaos.flip import flip_bit
from exajax.job import distributed, launchers
from exajax.job.events import EventLog
from exajax.train.data.batches import WholeBatches
from exajax.train.health.bad_steps import Policy
from exajax.train.sinks.prometheus import Prometheus
from tests.train.recorded import Recorded

MESH = exajax.MeshSpec(data=4)
WIDTH, TURNS = 256, 12


def loss(model, batch):
    """A loss that takes a moment: tens of milliseconds."""
    x = batch["x"]
    for _ in range(TURNS):
        x = nnx.tanh(model(x))
    return jnp.mean((x - batch["x"]) ** 2)


def whole(number):
    return {"x": np.random.default_rng(number).normal(size=(1024, WIDTH)).astype(np.float32)}


class SlowDisk(WholeBatches):
    """Batches that come late."""

    def iterate(self, start, rows):
        for batch in super().iterate(start, rows):
            time.sleep(0.2)
            yield batch


class Gauges:
    """What Prometheus is served, kept as lines."""

    def __init__(self, path, host):
        self._path, self._served = path, Prometheus(0, host, 1)

    def log(self, step, values):
        self._served.log(step, values)
        if "straggler" in values:
            address = f"http://127.0.0.1:{self._served.port}/metrics"
            text = urllib.request.urlopen(address).read().decode()
            lines = [line for line in text.splitlines() if line.startswith(WANTED)]
            self._path.write_text("\n".join(lines))

    def close(self):
        self._served.close()


WANTED = ("exajax_straggler", "exajax_replay_seconds")


def flip(number, state):
    if jax.process_index() == 1 and number == 7 and not flip.done:
        flip.done = True
        device = jax.local_devices()[1]
        flip_bit(state.params["kernel"], device, 3, 2)


flip.done = False


def main():
    fault, run_dir, steps = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    launch = launchers.detect()
    distributed.initialize(launch, MESH)
    guilty = launch.process == 1
    workload = exajax.Workload(
        build=lambda rngs: nnx.Linear(WIDTH, WIDTH, rngs=rngs),
        loss=loss,
        batch={"x": jax.ShapeDtypeStruct((1024, WIDTH), jnp.float32)},
        optimizer=optax.adam(1e-3),
    )
    step = exajax.train_step(workload, MESH, zero=0, precision="fp32")
    if fault == "flip":
        undisturbed = exajax.fit(step, whole, steps=steps)
    done = exajax.fit(
        step,
        SlowDisk(whole) if fault == "data" and guilty else WholeBatches(whole),
        steps=steps,
        checkpoints=exajax.Checkpointing(run_dir / "checkpoints", every=5)
        if fault == "flip"
        else None,
        policy=Policy(audit_every=2),
        hooks=[
            Recorded(
                EventLog(run_dir, launch.process, "worker"),
                [Gauges(run_dir / f"gauges-{launch.process}", launch.process)],
            ),
            *([exajax.Every(1, flip)] if fault == "flip" else []),
        ],
    )
    if fault == "flip":
        assert done.losses == undisturbed.losses


if __name__ == "__main__":
    main()
