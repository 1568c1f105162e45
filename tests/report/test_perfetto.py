"""Traces of simulated and measured steps, as a viewer reads them."""

import dataclasses
from collections import defaultdict

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given

from exajax import load_cluster
from exajax.program.hlo_collectives import Collective
from exajax.program.operations import Operation, ProgramLoop
from exajax.report import perfetto, profile
from exajax.simulate.timeline import Event, events, lay_out
from exajax.train.profiling import watching
from tests.simulate.test_timeline import programs

H100 = load_cluster("dgx-h100")
GATHER = Collective("all-gather", 1 << 30, tuple(range(8)), "model")
LAYER = (
    Operation("g", "jit(update)/jvp(layers)/mlp/dot", "collective-start", collective=GATHER),
    Operation("d", "jit(update)/jvp(layers)/mlp/dot_general", "matmul", 1e12, 10**8, "bf16"),
    Operation("e", "", "collective-done", start="g"),
)
UPDATE = Operation("u", "jit(update)/optimizer/mul", "memory", 0.0, 9**9)
STEP = (ProgramLoop("layers", "", 3, LAYER), UPDATE)


def traced(program=STEP, title="tiny on one node"):
    return perfetto.simulated(title, program, events(program, H100), H100)


def slices(trace, thread=None, process=1):
    tids = {
        event["tid"]
        for event in trace["traceEvents"]
        if event["name"] == "thread_name" and thread in (None, event["args"]["name"])
    }
    return [
        event
        for event in trace["traceEvents"]
        if event["ph"] == "X" and event["tid"] in tids and event["pid"] == process
    ]


def assert_nothing_overlaps(found):
    end = 0.0
    for one in sorted(found, key=lambda one: (one["ts"], one["ts"] + one["dur"])):
        assert one["ts"] >= end - 1e-6, one
        end = one["ts"] + one["dur"]


@given(programs())
def test_compute_and_waits_fill_the_step_and_nothing_overlaps(program):
    trace = traced(program)
    compute, communication = slices(trace, "compute"), slices(trace, "communication")
    total_us = 1e6 * lay_out(program, H100).total_s
    assert sum(one["dur"] for one in compute) == pytest.approx(total_us, rel=1e-6, abs=0.01)
    assert_nothing_overlaps(compute)
    assert_nothing_overlaps(communication)


def test_names_say_what_it_is_and_arguments_how_well_it_runs():
    trace = traced()
    names = {event["args"]["name"] for event in trace["traceEvents"] if event["ph"] == "M"
             and event["name"].endswith("_name")}  # fmt: skip
    assert names == {"simulated: tiny on one node", "loops", "compute", "communication", "host"}
    compute = slices(trace, "compute")
    assert {one["name"] for one in compute} == {
        "mlp matmul",
        "optimizer memory",
        "exposed model",
    }
    about = next(one["args"] for one in compute if one["name"] == "mlp matmul")
    assert about["op_name"] == "jit(update)/jvp(layers)/mlp/dot_general"
    assert about["hlo"] == "d"
    assert about["direction"] == "forward"
    assert about["bound"] == "compute"
    assert about["flops"] == 1e12
    assert 0.3 < about["of_peak"] < 1
    assert about["tflops_per_s"] == pytest.approx(about["of_peak"] * 989, rel=1e-3)
    gather = slices(trace, "communication")[0]
    assert gather["name"] == "all-gather over model, 1.07 GB"
    assert gather["args"]["bytes_per_s"] == pytest.approx((1 << 30) / gather["dur"] * 1e6, rel=1e-3)
    assert gather["args"]["algorithm"]


def test_every_trip_of_a_loop_is_there_and_spans_its_operations():
    trace = traced()
    trips = slices(trace, "loops")
    assert [one["name"] for one in trips] == [f"forward trip {i} of 3" for i in (1, 2, 3)]
    assert_nothing_overlaps(trips)
    inside = defaultdict(list)
    for one in slices(trace, "compute"):
        inside[one["args"].get("trip")].append(one)
    for number, trip in enumerate(trips, 1):
        for one in inside[f"{number} of 3"]:
            assert trip["ts"] <= one["ts"]
            assert one["ts"] + one["dur"] <= trip["ts"] + trip["dur"] + 1e-6


def test_a_step_of_too_many_events_is_cut_and_says_so(monkeypatch):
    monkeypatch.setattr(perfetto, "MOST", 4)
    compute = slices(traced(), "compute")
    assert compute[-1]["name"].startswith("cut here: ")
    assert len(slices(traced())) - len(slices(traced(), "loops")) == 5


def test_what_a_software_profile_takes_for_every_step_ends_it():
    slow = dataclasses.replace(H100, software=dataclasses.replace(H100.software, step_s=0.25))
    compute = slices(perfetto.simulated("x", STEP, events(STEP, slow), slow), "compute")
    assert_nothing_overlaps(compute)
    assert (compute[-1]["name"], compute[-1]["dur"]) == ("host", 0.25e6)
    total_us = 1e6 * lay_out(STEP, slow).total_s
    assert sum(one["dur"] for one in compute) == pytest.approx(total_us)


def test_the_same_trace_is_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        perfetto.write(tmp_path / name, traced())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert perfetto.read(tmp_path / "a") == traced()


def test_merged_traces_are_processes_of_their_own():
    both = perfetto.merged([traced(), traced(title="another")])
    assert slices(both, process=1) == slices(traced())
    assert len(slices(both, process=2)) == len(slices(traced()))
    titles = [e["args"]["name"] for e in both["traceEvents"] if e["name"] == "process_name"]
    assert titles == ["simulated: tiny on one node", "simulated: another"]


def test_what_the_profiler_saw_of_a_device_is_a_process_with_names_of_the_simulation(tmp_path):
    product = jax.jit(lambda x: jnp.tanh(x @ x).sum())
    x = jnp.ones((256, 256))
    product(x).block_until_ready()
    with watching(tmp_path):
        product(x).block_until_ready()
    path = profile.newest(tmp_path)
    raw = profile.trace("here", path, {})
    found = slices(raw)
    assert found
    assert min(one["ts"] for one in found) == 0
    hlo = found[0]["args"]["hlo"]
    named = profile.trace("here", path, {hlo: "mlp matmul"})
    assert {one["name"] for one in slices(named) if one["args"]["hlo"] == hlo} == {"mlp matmul"}
    assert raw["traceEvents"][0]["args"]["name"] == "measured: here"


def test_a_profile_takes_the_place_of_an_earlier_one_and_none_leaves_nothing(tmp_path):
    with watching(None):
        pass
    assert profile.newest(tmp_path) is None
    for _ in range(2):
        with watching(tmp_path / "profile"):
            jnp.ones(3).block_until_ready()
    assert len(list((tmp_path / "profile").glob("plugins/profile/*"))) == 1


def test_names_of_a_simulation_are_those_of_operations_and_not_of_waits():
    names = perfetto.names_of(traced())
    assert names == {
        "g": "all-gather over model, 1.07 GB",
        "d": "mlp matmul",
        "u": "optimizer memory",
    }


def test_an_event_keeps_its_place_when_rounded():
    touching = [Event(UPDATE, "compute", 0.1, 0.2), Event(UPDATE, "compute", 0.1 + 0.2, 0.3)]
    first, second = slices(perfetto.simulated("x", STEP, touching, H100), "compute")
    assert first["ts"] + first["dur"] == pytest.approx(second["ts"], abs=1e-6)
