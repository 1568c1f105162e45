"""Serves a host's metrics to Prometheus, on the loopback interface."""

import json
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from exajax.job.goodput import CAUSES

GAUGES = {
    "loss": ("exajax_loss", "Training loss, nats"),
    "validation_loss": ("exajax_validation_loss", "Loss on held-out data, nats"),
    "grad_norm": ("exajax_grad_norm", "Global norm of the gradients before the clip"),
    "learning_rate": ("exajax_learning_rate", "Learning rate of the last update"),
    "tokens_per_s": ("exajax_tokens_per_second", "Tokens a second over the whole job"),
    "samples_per_s": ("exajax_samples_per_second", "Sequences a second over the whole job"),
    "data_wait_s": ("exajax_data_wait_seconds", "Time that the last step waited for its batch"),
    "bad_steps": ("exajax_bad_steps", "Steps so far of which loss or gradient was bad"),
    "replay_s": ("exajax_replay_seconds", "Time of the last audit's replay on this host"),
    "straggler": ("exajax_straggler", "1 where this host is slower than the others, else 0"),
    "mfu": ("exajax_mfu_ratio", "Model FLOPs a second as a share of the peak"),
    "goodput": ("exajax_goodput_ratio", "Useful step time as a share of the wall time of the run"),
}
BUCKETS_S = tuple(0.01 * 2**power for power in range(14))


class Prometheus:
    """Metrics of one host process at `http://127.0.0.1:PORT/metrics`.

    Args:
        port: port to serve on, 0 for any that is free. Where it is taken, any that is free.
        host: number of the host process, a label of every metric.
        steps: steps in total.
        targets: folder for a file that tells Prometheus where to look (`file_sd_configs`).
    """

    def __init__(self, port: int, host: int, steps: int, targets: Path | None = None) -> None:
        registry = CollectorRegistry()
        label = str(host)
        self._gauges = {
            key: Gauge(name, help_, ["host"], registry=registry).labels(label)
            for key, (name, help_) in GAUGES.items()
        }
        lost = Gauge(
            "exajax_lost_seconds", "Wall time of the run that was not useful", ["host", "cause"],
            registry=registry,
        )  # fmt: skip
        self._gauges |= {f"lost_{cause}_s": lost.labels(label, cause) for cause in CAUSES}
        self._step = Gauge("exajax_step", "Updates done", ["host"], registry=registry).labels(label)
        total = Gauge("exajax_steps", "Updates of the whole run", ["host"], registry=registry)
        total.labels(label).set(steps)
        self._updates = Counter(
            "exajax_updates", "Updates done by this process", ["host"], registry=registry
        ).labels(label)
        self._last = Gauge(
            "exajax_last_step_timestamp_seconds", "When the last update ended", ["host"],
            registry=registry,
        ).labels(label)  # fmt: skip
        self._step_time = Histogram(
            "exajax_step_time_seconds",
            "Time of one optimizer step",
            ["host"],
            buckets=BUCKETS_S,
            registry=registry,
        ).labels(label)
        if port and _taken(port):
            port = 0
        self._server, self._thread = start_http_server(port, "127.0.0.1", registry)
        self.port = self._server.server_port
        self._target = targets / f"host-{host}.json" if targets else None
        if self._target:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            entry = [{"targets": [f"127.0.0.1:{self.port}"], "labels": {"job": "exajax"}}]
            self._target.write_text(json.dumps(entry) + "\n")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the values of a step."""
        for key, gauge in self._gauges.items():
            if key in values:
                gauge.set(values[key])
        if "loss" in values:
            self._step.set(step)
            self._updates.inc()
            self._last.set(time.time())
        if "step_time_s" in values:
            self._step_time.observe(values["step_time_s"])

    def close(self) -> None:
        """Stops serving, and Prometheus from looking."""
        if self._target:
            self._target.unlink(missing_ok=True)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
