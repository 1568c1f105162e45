import dataclasses
import json
import re
import time
import urllib.request

from exajax import MeshSpec, Recipe, load_cluster
from exajax.job.events import EventLog
from exajax.job.goodput import CAUSES
from exajax.job.runtime import json_text
from exajax.models.presets import lookup
from exajax.simulate import weak_scaling
from exajax.simulate.formulas.prediction import predict
from exajax.train.sinks.goodput import LiveGoodput
from exajax.train.sinks.prometheus import Prometheus
from tests.conftest import REPOSITORY

VALUES = {
    "learning_rate": 3e-4,
    "loss": 2.5,
    "grad_norm": 1.0,
    "step_time_s": 0.4,
    "tokens_per_s": 2560.0,
    "mfu": 0.3,
}


def served(port):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode()


def test_a_host_serves_its_metrics_and_says_where(tmp_path):
    host = Prometheus(0, 3, 100, tmp_path)
    try:
        host.log(7, VALUES)
        text = served(host.port)
        targets = json.loads((tmp_path / "host-3.json").read_text())
    finally:
        host.close()
    assert 'exajax_step{host="3"} 7.0' in text
    assert 'exajax_loss{host="3"} 2.5' in text
    assert 'exajax_learning_rate{host="3"} 0.0003' in text
    assert 'exajax_step_time_seconds_count{host="3"} 1.0' in text
    assert targets[0]["targets"] == [f"127.0.0.1:{host.port}"]
    assert not list(tmp_path.iterdir())  # or Prometheus would look for ever


def test_a_port_that_is_taken_is_replaced_by_a_free_one():
    first = Prometheus(0, 0, 1)
    second = Prometheus(first.port, 1, 1)
    try:
        assert second.port != first.port
        assert "exajax_steps" in served(second.port)
    finally:
        first.close()
        second.close()


def test_the_dashboard_asks_only_for_what_is_served():
    host = Prometheus(0, 0, 100)
    try:
        host.log(1, VALUES | {"validation_loss": 2.0})
        text = served(host.port)
    finally:
        host.close()
    names = set(re.findall(r"^(exajax_\w+)[{ ]", text, re.MULTILINE))
    dashboard = (REPOSITORY / "launch/monitoring/grafana-dashboard.json").read_text()
    asked = set()
    for panel in json.loads(dashboard)["panels"]:
        for target in panel["targets"]:
            asked |= set(re.findall(r"exajax_\w+", target["expr"]))
    assert len(asked) >= 8
    assert asked <= names


def test_json_has_null_for_what_is_not_a_number():
    assert (
        json_text({"a": float("nan"), "b": [float("inf"), 1.5]}) == '{"a": null, "b": [null, 1.5]}'
    )


def test_a_curve_has_only_meshes_that_can_be_compiled():
    recipe = Recipe.of(lookup("llama2-7b"), MeshSpec(24, 1, 4))
    machine = load_cluster("dgx-h100")
    chosen = weak_scaling.smaller_meshes(recipe, point(96, 1.0), machine)
    assert 1 <= len(chosen) <= 3
    for smaller in chosen:
        machine.check(smaller.mesh.devices, "bf16")
        assert smaller.global_batch // smaller.mesh.batch_shards == 4


def point(devices, tokens_per_s, fits=True):
    """A report with these figures, and 10 GB a device."""
    recipe = Recipe.of(lookup("llama2-7b"), MeshSpec(24, 1, 4))
    report = predict(recipe, load_cluster("dgx-h100")).report
    memory = dataclasses.replace(
        report.memory_bytes, parameters=10**8, optimizer=2 * 10**8, total=10**10
    )
    figures = {"devices": devices, "tokens_per_s": tokens_per_s, "fits": fits}
    return dataclasses.replace(report, memory_bytes=memory, **figures)


def test_efficiency_is_of_the_smallest_mesh_that_fits():
    curve = weak_scaling.curve([point(8, 900.0, fits=False), point(16, 1600.0), point(64, 5760.0)])
    assert curve["tokens_per_s"] == {16: 1600.0, 64: 5760.0}
    assert curve["efficiency"] == {16: 1.0, 64: 0.9}


def test_where_time_went_is_served_and_written_while_a_run_goes_on(tmp_path):
    events = EventLog(tmp_path, 0, "worker", 1)
    events.write("phase", phase="start", step=0)
    live = LiveGoodput(tmp_path, events.host, events.attempt)
    host = Prometheus(0, 0, 100)
    live.sinks = [host]
    try:
        for phase, step in (("compile", 0), ("step", 1), ("step", 2), ("checkpoint", 2)):
            time.sleep(0.02)
            live.progress(phase, step)
        live.log(2, {"loss": 2.0})
        text = served(host.port)
    finally:
        host.close()
    ratio = float(re.search(r'^exajax_goodput_ratio\{host="0"\} (\S+)', text, re.MULTILINE)[1])
    assert 0 < ratio < 1
    lost = dict(
        re.findall(r'^exajax_lost_seconds\{cause="(\w+)",host="0"\} (\S+)', text, re.MULTILINE)
    )
    assert set(lost) == set(CAUSES)
    assert float(lost["compile"]) >= 0.02
    assert float(lost["stalled"]) == 0
