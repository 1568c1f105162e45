"""A process of a small job that saves and restores; started by tests, not collected as one.

`python -m tests.train.checkpoint.checkpoint_job RUN_DIR HOSTS HOST PORT '{"steps": ...}'`
"""

import json
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np


def main(run_dir: Path, hosts: int, host: int, port: int, options: dict) -> None:
    jax.config.update("jax_num_cpu_devices", 2 // hosts if hosts < 3 else 1)
    if hosts > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", hosts, host)

    import jax.numpy as jnp
    import optax
    from flax import nnx

    import exajax
    from exajax.job.events import EventLog
    from tests.train.recorded import Recorded

    width = options.get("width", 64)
    workload = exajax.Workload(
        build=lambda rngs: nnx.Linear(width, width, rngs=rngs),
        loss=lambda model, batch: jnp.mean(model(batch["x"]) ** 2),
        batch={"x": jax.ShapeDtypeStruct((4, width), jnp.float32)},
        optimizer=optax.adam(1e-2),
    )
    step = exajax.train_step(workload, options.get("mesh", "fsdp=2"), precision="fp32")

    def batches(number: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(number)
        return {"x": rng.normal(size=(4, width)).astype(np.float32)}

    class Faults(Recorded):
        def before_commit(self, step):
            if [host, step] == options.get("fail"):
                raise OSError(28, "No space left on device")
            if [host, step] == options.get("kill"):
                os._exit(9)

        def progress(self, phase, step):
            if phase == "step":
                time.sleep(options.get("pace_s", 0))

    events = EventLog(run_dir, host, "worker")
    fit = exajax.fit(
        step,
        batches,
        steps=options["steps"],
        checkpoints=exajax.Checkpointing(
            run_dir / "checkpoints",
            every=options.get("save_every", 50),
            local=run_dir / "local" if "local_every" in options else None,
            local_every=options.get("local_every", 10),
        ),
        hooks=[Faults(events)],
    )
    if host == 0:
        print(json.dumps({"resumed_from": fit.resumed_from, "losses": fit.losses}))


if __name__ == "__main__":
    path, *numbers, said = sys.argv[1:]
    try:
        main(Path(path), *map(int, numbers), json.loads(said))
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
