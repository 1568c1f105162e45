"""Checkpoints saved and restored, against what the disk does with dd in the same folder.

    python benchmarks/checkpoint_speed.py --folder FOLDER

One process, then two, hold a state of `--gib` (parameters and two moments, fp32) and make real
training steps. Every round goes: dd writes as many zeros with `conv=fsync`; a save that the loop
waits for; a save beside the steps; pages of the cache given back; dd reads its file; a restore.
Save and restore are whole: digests, checksums and the commit are in their times. A disk that has
just written a lot may be slower for a while, as those of clouds are: every other round saves
before dd writes, each after a pause, and rates are all bytes over all seconds.

Stall is the time that the loop waits; `lost` is by how much the steps until the save's end took
longer than as many steps alone, with the stall: the thread takes processor time from them.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent.parent))  # a checkout needs no installation

from exajax.job.local_hosts import free_port
from exajax.job.provenance import machine, versions
from exajax.train.checkpoint.checkpointing import Checkpointing
from exajax.train.hooks import Hooks

if TYPE_CHECKING:
    from exajax.job.events import EventLog

OUT = Path(__file__).parent / "data" / "checkpoint_speed.json"
AIM = 0.7
LAYERS = 8
SAMPLES = 64
ALONE = 3
PAUSE_S = 5.0
GB = 1e9
SPEEDS = ("dd_write", "dd_read", "save", "restore")


class Written(Hooks):
    """Writes down what becomes of checkpoints."""

    def __init__(self, log: "EventLog") -> None:
        self._log = log

    def event(self, name: str, **facts: Any) -> None:
        """Writes an event."""
        self._log.write(name, **facts)


@contextmanager
def timed(into: dict[str, Any], name: str) -> Iterator[None]:
    started_s = time.perf_counter()
    yield
    into[name] = time.perf_counter() - started_s


def build(hosts: int, gib: float) -> Any:
    """Returns the step of a network of equal layers whose state has so many GiB."""
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    import exajax

    width = int((gib * 2**30 / 12 / LAYERS) ** 0.5) // 64 * 64
    init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("embed", "mlp"))

    class Network(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.layers = nnx.List(
                [
                    nnx.Linear(width, width, use_bias=False, kernel_init=init, rngs=rngs)
                    for _ in range(LAYERS)
                ]
            )

        def __call__(self, x: jax.Array) -> jax.Array:
            for layer in self.layers:
                x = nnx.relu(layer(x))
            return x

    workload = exajax.Workload(
        build=Network,
        loss=lambda network, batch: jnp.mean((network(batch["x"]) - batch["x"]) ** 2),
        batch={"x": jax.ShapeDtypeStruct((SAMPLES, width), jnp.float32)},
        optimizer=optax.adam(1e-4),
    )
    return exajax.train_step(workload, f"model={hosts}", precision="fp32")


def dd(folder: Path, size_bytes: int, *, read: bool) -> None:
    file = folder / "dd"
    way = [f"if={file}", "of=/dev/null"] if read else ["if=/dev/zero", f"of={file}", "conv=fsync"]
    count = -(-size_bytes // 2**22)
    subprocess.run(["dd", *way, "bs=4M", f"count={count}", "status=none"], check=True)


def forget(folder: Path) -> None:
    """Gives back the pages of the cache that hold files, so that they are read from the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def work(host: int, hosts: int, port: int, folder: Path, gib: float, rounds: int) -> None:
    """Is one process of the job; the first one prints what it measured."""
    import jax
    import numpy as np

    jax.config.update("jax_num_cpu_devices", 1)
    if hosts > 1:
        jax.distributed.initialize(f"127.0.0.1:{port}", hosts, host)

    from exajax.job.events import EventLog, read_events
    from exajax.train.checkpoint.agreement import Agreement
    from exajax.train.checkpoint.checkpoints import Checkpoints
    from exajax.train.data.placement import local_rows, place

    step = build(hosts, gib)
    state = step.init(np.uint32(0))
    size_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    rows = local_rows(step.batch)
    x = np.random.default_rng(0).normal(size=(SAMPLES, step.batch["x"].shape[1]))
    batch = place({"x": x.astype(np.float32)[rows]}, rows, step.batch)

    def advance() -> float:
        nonlocal state
        started_s = time.perf_counter()
        state, metrics = step.update(state, batch)
        jax.block_until_ready(metrics)
        jax.block_until_ready(state)
        return time.perf_counter() - started_s

    together, turns = Agreement(), itertools.count()

    def meet() -> None:
        together.on(f"round-{next(turns)}", None, lambda said: None)

    store = Checkpoints(
        Checkpointing(folder / "checkpoints"), step, hooks=Written(EventLog(folder, host, "worker"))
    )
    found: list[dict[str, Any]] = []
    for number in range(rounds):
        measured: dict[str, Any] = {}
        advance()
        for writer in ("dd", "save") if number % 2 == 0 else ("save", "dd"):
            time.sleep(PAUSE_S)
            meet()
            if writer == "save":
                with timed(measured, "save_s"):
                    store.save(int(state.step), state, {}, wait=True)
            elif host == 0:
                with timed(measured, "dd_write_s"):
                    dd(folder, size_bytes, read=False)
        meet()
        alone_s = statistics.median(advance() for _ in range(ALONE))
        done = int(state.step)
        meet()
        started_s = time.perf_counter()
        store.save(done, state, {})
        measured["stall_s"] = time.perf_counter() - started_s
        steps = 0
        while together.on(f"busy-{next(turns)}", store.busy, any):
            advance()
            steps += 1
        whole_s = time.perf_counter() - started_s
        measured |= {"step_s": alone_s, "lost_s": whole_s - steps * alone_s, "beside_s": whole_s}
        if host == 0:
            forget(folder)
            with timed(measured, "dd_read_s"):
                dd(folder, size_bytes, read=True)
        meet()
        del state
        with timed(measured, "restore_s"):
            state = store.restore().state
            jax.block_until_ready(state)
        found.append(measured)
    if host == 0:
        saved = [event for event in read_events(folder) if event["event"] == "checkpoint-saved"]
        print(json.dumps({"state_bytes": size_bytes, "rounds": found, "saved": saved}))


def measure(hosts: int, folder: Path, gib: float, rounds: int) -> dict[str, Any]:
    """Starts a job of some processes; returns what the first one measured."""
    folder.mkdir(parents=True)
    port = free_port()
    jobs = [
        subprocess.Popen(
            [
                *(sys.executable, __file__, f"--work={host}", f"--hosts={hosts}"),
                *(f"--port={port}", f"--folder={folder}", f"--gib={gib}", f"--rounds={rounds}"),
            ],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        for host in range(hosts)
    ]
    try:
        outs = [job.communicate()[0] for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    if any(job.returncode for job in jobs):
        raise SystemExit("a process has failed, see above")
    subprocess.run(["rm", "-r", str(folder)], check=True)
    return {"hosts": hosts} | json.loads(outs[0].splitlines()[-1])


def summary(case: dict[str, Any]) -> dict[str, float]:
    rounds, size_bytes = case["rounds"], case["state_bytes"]

    def median(of: Any) -> float:
        return statistics.median(map(of, rounds))

    seconds = {name: sum(r[f"{name}_s"] for r in rounds) for name in SPEEDS}
    return {
        **{f"{name}_bytes_per_s": size_bytes * len(rounds) / seconds[name] for name in SPEEDS},
        "save_of_dd": seconds["dd_write"] / seconds["save"],
        "restore_of_dd": seconds["dd_write"] / seconds["restore"],
        "restore_of_dd_read": seconds["dd_read"] / seconds["restore"],
        "step_s": median(lambda r: r["step_s"]),
        "stall_of_step": median(lambda r: r["stall_s"] / r["step_s"]),
        "lost_of_step": median(lambda r: r["lost_s"] / r["step_s"]),
        "sync_stall_of_step": median(lambda r: r["save_s"] / r["step_s"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="on the disk to measure")
    parser.add_argument("--gib", type=float, default=1.0, help="size of the state")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--hosts", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work is not None:
        work(args.work, args.hosts, args.port, args.folder, args.gib, args.rounds)
        return
    cases = []
    for hosts in (1, 2):
        folder = args.folder.absolute() / f"checkpoint-speed-{os.getpid()}-{hosts}"
        case = measure(hosts, folder, args.gib, args.rounds)
        case["summary"] = found = summary(case)
        cases.append(case)
        print(f"{hosts} processes, {case['state_bytes'] / GB:.2f} GB of state, no compression")
        speed = {name: f"{found[f'{name}_bytes_per_s'] / GB:.2f} GB/s" for name in SPEEDS}
        print(
            f"  dd conv=fsync {speed['dd_write']}, reads {speed['dd_read']}\n"
            f"  save {speed['save']}, {found['save_of_dd']:.0%} of dd conv=fsync\n"
            f"  restore {speed['restore']}, {found['restore_of_dd']:.0%} of dd conv=fsync, "
            f"{found['restore_of_dd_read']:.0%} of dd reading (aim {AIM:.0%} of dd conv=fsync)"
        )
        print(
            f"  a step of {found['step_s']:.2f} s: the loop waits {found['stall_of_step']:.1%} of "
            f"it beside the training, {found['sync_stall_of_step']:.0%} where it waits for the "
            f"disk; steps lose {found['lost_of_step']:.0%} to the thread"
        )
    about = {
        "kind": "measured",
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine(),
        "versions": versions(),
        "compression": "none",
        "load_before": os.getloadavg(),
    }
    args.out.write_text(json.dumps(about | {"cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    main()
