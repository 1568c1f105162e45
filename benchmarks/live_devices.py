"""What shrinking inside the process would bring: JAX's `live_devices` against supervisors.

Some processes train a model in data-parallel steps; one is killed; the others find out by
`jax.experimental.multihost_utils.live_devices`, and go on among themselves with the state that they
have in memory. Measured is the time from the kill to the end of their next step. JAX learns of the
dead by the heartbeats that they miss, so that is tried with several limits (JAX's own is 100 s).
What supervisors take, which see at once that a process has ended and start all of them again from
the newest checkpoint, is in `chaos.json`.

    python benchmarks/live_devices.py
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from exajax.job.provenance import machine, versions

OUT = Path(__file__).parent / "data" / "live_devices.json"

PROCESSES, WIDTH, BEFORE, BEHIND = 3, 512, 10, 5
"""Processes; the sides of the parameters; steps before the kill, and behind the shrinking."""

HEARTBEATS_S = (5, 10, 30)
"""How long a process may miss heartbeats until it counts as dead."""

COLLECTIVE_S = 2
"""How long a collective waits for a peer."""


def train(process: int, port: int, heartbeat_s: int, notes: Path) -> None:
    """Trains in one process, and notes each step that was made, with its time and devices."""
    import jax
    import jax.numpy as jnp
    from jax.experimental.multihost_utils import live_devices
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1)
    jax.config.update("jax_enable_recoverability", True)
    address = f"127.0.0.1:{port}"
    jax.distributed.initialize(address, PROCESSES, process, heartbeat_timeout_seconds=heartbeat_s)

    def step(state: jax.Array, batch: jax.Array) -> jax.Array:
        return state - 1e-3 * jax.grad(lambda w: jnp.mean(jnp.tanh(batch @ w) ** 2))(state)

    state, made = jnp.ones((WIDTH, WIDTH)), 0
    programs: dict[tuple[int, ...], Any] = {}
    with notes.open("w") as file:
        while made < BEFORE + BEHIND:
            try:
                with live_devices(jax.devices()) as devices:
                    mesh = Mesh(devices, "data")
                    rows = NamedSharding(mesh, PartitionSpec("data"))
                    everywhere = NamedSharding(mesh, PartitionSpec())
                    among = tuple(device.id for device in devices)
                    program = programs.setdefault(among, jax.jit(step, out_shardings=everywhere))
                    batch = jnp.ones((64, WIDTH))
                    batch = jax.make_array_from_process_local_data(rows, batch)
                    placed = jax.make_array_from_process_local_data(everywhere, state)
                    new = jax.block_until_ready(program(placed, batch))
            except Exception as error:  # JAX names no class: all of them take this branch
                file.write(json.dumps({"time": time.time(), "failed": type(error).__name__}) + "\n")
            else:
                state, made = new.addressable_data(0), made + 1
                file.write(json.dumps({"time": time.time(), "devices": len(devices)}) + "\n")
            file.flush()
    os._exit(0)  # the barrier at the end would wait for who is gone


def measure(heartbeat_s: int, folder: Path) -> dict[str, Any]:
    """Kills the last process of a job; returns how long the others took to go on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    notes = [folder / f"{heartbeat_s}-{process}.jsonl" for process in range(PROCESSES)]
    place = [f"--port={port}", f"--heartbeat={heartbeat_s}"]
    flag = f"--xla_cpu_collective_timeout_seconds={COLLECTIVE_S}"
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, *place, f"--process={process}", f"--notes={path}"],
            env={**os.environ, "XLA_FLAGS": flag},
            stderr=path.with_suffix(".log").open("w"),
        )
        for process, path in enumerate(notes)
    ]
    try:
        while len(_read(notes[-1])) < BEFORE - 1:
            time.sleep(0.01)
        killed_s = time.time()
        processes[-1].send_signal(signal.SIGKILL)
        codes = [process.wait(120) for process in processes[:-1]]
    except subprocess.TimeoutExpired:
        codes = []
    finally:
        for process in processes:
            process.kill()
    behind = [note for note in _read(notes[0]) if note["time"] > killed_s]
    steps = [n for n in behind if n.get("devices", PROCESSES) < PROCESSES]
    return {
        "heartbeat_s": heartbeat_s,
        "exit_codes": codes,
        "failed": [note["failed"] for note in behind if "failed" in note],
        "first_step_after_s": steps[0]["time"] - killed_s if steps else None,
        "steps_after": len(steps),
    }


def _read(path: Path) -> Sequence[dict[str, Any]]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("runs/live-devices"))
    parser.add_argument("--out", type=Path, default=OUT)
    for internal in ("--process", "--port", "--heartbeat"):
        parser.add_argument(internal, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--notes", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.notes:
        train(args.process, args.port, args.heartbeat, args.notes)
        return
    args.folder.mkdir(parents=True, exist_ok=True)
    found = []
    for heartbeat_s in HEARTBEATS_S:
        found.append(measure(heartbeat_s, args.folder))
        print(found[-1], flush=True)
    data = {"kind": "measured", "machine": machine(), "versions": versions(), "kills": found}
    args.out.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
