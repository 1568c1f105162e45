"""`exajax plan`: what it finds, what it promises, and what it says where nothing fits."""

import dataclasses
import json
import shlex

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exajax.cli import plan as plan_command
from exajax.errors import InputError
from exajax.files.schema import decode_record
from exajax.machine.cluster import load_cluster
from exajax.models.presets import PRESETS
from exajax.report import plan_table
from exajax.simulate import plan
from exajax.simulate.formulas.prediction import predict
from exajax.simulate.plan_report import Plan, Plans, Verified
from exajax.simulate.step_report import StepReport
from tests.conftest import command

H100 = load_cluster("dgx-h100")
SMALL = ("--model", "llama2-7b", "--devices", "32", "--global-batch", "64")


@pytest.fixture(scope="module")
def result():
    done = command("plan", *SMALL, "--tokens", "1e12", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


def test_plans_fit_and_are_ranked_by_time(result):
    plans = result["plans"]
    times = [one["step_time_s"] for one in plans]
    assert times == sorted(times)
    assert len({one["mesh"] for one in plans}) == len(plans) == 5
    for one in plans:
        memory, spent = dict(one["memory_bytes"]), dict(one["breakdown_s"])
        assert one["fits"]
        capacity, total = memory.pop("capacity"), memory.pop("total")
        assert sum(memory.values()) == total <= capacity
        waits = spent.pop("exposed_communication")
        assert sum(spent.values()) + sum(waits.values()) == pytest.approx(one["step_time_s"])
        assert set(waits) <= {"data", "fsdp", "model", "pipe", "context", "data+fsdp"}
        assert set(one["provenance"]) >= {"versions", "model", "cluster", "recipe", "engine"}


def test_the_command_of_a_plan_describes_that_plan(result):
    best = result["plans"][0]
    words = shlex.split(best["command"])
    assert words[:2] == ["exajax", "train"]
    done = command("simulate", "--engine", "analytic", "--json", *words[2:])
    found = json.loads(done.stdout)
    assert found["step_time_s"] == pytest.approx(best["step_time_s"])
    assert found["memory_bytes"] == best["memory_bytes"]


def test_the_cost_of_tokens_is_that_of_their_steps(result):
    best, cost = result["plans"][0], result["plans"][0]["cost"]
    assert cost["steps"] == -(-(10**12) // (64 * 4096))
    hours = cost["steps"] * best["step_time_s"] / 3600
    assert cost["node_hours"] == pytest.approx(4 * hours)
    assert cost["device_energy_kwh"] == pytest.approx(hours * 32 * 0.7)


def test_more_memory_would_be_faster_and_is_more_than_there_is(result):
    for one in result["faster_with_more_memory"]:
        assert one["memory_bytes"] > one["capacity"]
        assert one["step_time_s"] < result["plans"][0]["step_time_s"]


def test_words_name_the_engine_and_the_command_and_a_picture_is_drawn(tmp_path):
    done = command("plan", *SMALL, "--plot", tmp_path / "plan.svg")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("simulated (analytic engine): ")
    assert "\n  exajax train --model=llama2-7b --mesh=" in done.stdout
    assert "Pareto front" in (tmp_path / "plan.svg").read_text()


def test_where_nothing_fits_it_says_what_comes_closest_and_what_would_help():
    flags = ("--model", "llama3-405b", "--devices", "8", "--global-batch", "16", "--json")
    done = command("plan", *flags)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["plans"] == []
    assert "nothing fits; closest is" in found["advice"][0]
    assert "--devices 128 makes it fit" in found["advice"][1]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--devices", "65"), "--devices: 65 are not whole nodes of 8"),
        (("--devices", "80000"), "--devices: 80000 are more than the 16384 of dgx-h100"),
        (("--devices", "0"), "--devices: '0' is no such number"),
        (("--devices", "8", "--top", "0"), "--top: '0' is no such number"),
        (("--devices", "8", "--tokens", "nan"), "--tokens: 'nan' is no such number"),
        (("--devices", "8", "--plot", "x.gif"), "--plot: x.gif is neither PNG nor SVG"),
        (("--devices", "8", "--plot", "nowhere/x.png"), "--plot: cannot write to nowhere/x.png"),
        (("--devices", "8", "--global-batch", "9" * 20), "give a whole number from 1 to 1,048,576"),
        (("--devices", "8", "--seq", "1000000"), "--seq: 1000000 is longer than"),
        (("--devices", "56", "--model", "vit-b"), "--global-batch: no mesh of 56 devices"),
    ],
)
def test_what_cannot_be_planned_is_named(flags, told):
    done = command("plan", "--global-batch", "9", *flags)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def typed(printed):
    """A plan from its JSON, its cost left out."""
    report = decode_record(json.dumps(printed).encode(), StepReport)
    return Plan(report, printed["options"], printed["command"], cost=None)


def test_a_plan_is_printed_as_its_json_says(result):
    for printed in result["plans"]:
        assert typed(printed).to_json() == printed | {"cost": None}


def test_a_plan_that_does_not_fit_as_compiled_is_not_the_best(result):
    first, second = (typed(one) for one in result["plans"][:2])
    first = dataclasses.replace(first, verified=Verified(False, "", 1.0, 90 * 10**9, 0.1, -0.2))
    found = Plans("dgx-h100", 32, 99, 9, 1.0, (first, second), (), ())
    printed = plan_table.described(found, H100)
    assert "DOES NOT FIT" in printed
    assert f"best: {second.report.mesh}" in printed
    assert f"train it:\n  {second.command}" in printed
    printed = plan_table.described(dataclasses.replace(found, plans=(first,)), H100)
    assert "train it" not in printed


@pytest.mark.parametrize(
    "flags",
    [("--optimizer", "lion"), ("--packed",), ("--model", "mixtral-tiny", "--moe", "dropless")],
)
def test_options_that_the_formulas_do_not_know_are_refused(flags):
    done = command("simulate", "--engine", "analytic", "--mesh", "8x1", *flags)
    assert done.returncode == 2
    assert "the analytic engine knows" in done.stderr
    assert "give --engine compiled" in done.stderr


def test_the_kernels_of_others_do_not_change_what_our_step_keeps_in_memory():
    megatron = dataclasses.replace(H100.software, program="megatron")
    theirs = dataclasses.replace(H100, software=megatron)
    work = plan.PlannedStep(PRESETS["llama2-7b"], 64, 4096, "bf16")
    assert plan.search(work, theirs, 8).bytes == pytest.approx(plan.search(work, H100, 8).bytes)


@pytest.mark.slow
def test_the_best_plans_are_compiled_too():
    done = command("plan", *SMALL, "--verify", "2", "--json")
    assert done.returncode == 0, done.stderr
    for one in json.loads(done.stdout)["plans"][:2]:
        assert one["verified"]["engine"] == "compiled"
        assert one["verified"]["fits"]
        assert abs(one["verified"]["step_time_gap"]) < 0.15
        assert abs(one["verified"]["memory_gap"]) < 0.15


def found(name, devices, batch):
    model = PRESETS[name]
    return plan.search(plan.PlannedStep(model, batch, min(model.seq, 4096), "bf16"), H100, devices)


@settings(max_examples=40)
@given(
    st.sampled_from(["gpt3-1.3b", "llama2-7b", "mixtral-8x7b", "alphaexa-250b", "vit-l"]),
    st.sampled_from([1, 4, 8, 24, 64]),
    st.sampled_from([24, 64, 192]),
    st.randoms(use_true_random=False),
)
def test_every_layout_is_a_recipe_and_costs_what_it_costs_alone(name, devices, batch, random):
    try:
        layouts = found(name, devices, batch)
    except plan.InputError:
        return  # nothing divides
    row = random.randrange(len(layouts.step_s))
    recipe = layouts.recipe(row)
    alone = predict(recipe, H100)
    assert recipe.mesh.devices == devices
    assert alone.step_time_s == pytest.approx(layouts.step_s[row])
    assert alone.memory.total[0] == pytest.approx(layouts.bytes[row])


def test_no_layout_beats_one_of_the_front_in_both():
    layouts = found("llama2-7b", 16, 64)
    front = layouts.front()
    for row in front:
        better = (layouts.step_s < layouts.step_s[row]) & (layouts.bytes <= layouts.bytes[row])
        assert not better.any()
    assert (np.diff(layouts.step_s[front]) < 0).all()


def test_more_layouts_than_can_be_priced_are_refused():
    deep = dataclasses.replace(PRESETS["llama2-70b"], layers=5040, heads=5040, kv_heads=5040)
    work = plan.PlannedStep(dataclasses.replace(deep, width=10_080), 1 << 20, 4096, "bf16")
    with pytest.raises(InputError, match=r"devices: .* more than 4,000,000 ways; give fewer"):
        plan.search(work, H100, 16_384)


def test_it_says_every_few_seconds_how_many_of_many_layouts_are_priced(caplog, monkeypatch):
    work = plan.PlannedStep(PRESETS["llama2-7b"], 64, 4096, "bf16")
    monkeypatch.setattr(plan, "AT_A_TIME", 1000)
    monkeypatch.setattr(plan_command, "MANY_LAYOUTS", 1)
    monkeypatch.setattr(plan_command, "LOG_EVERY_S", 0.0)
    caplog.set_level("INFO", "exajax")
    count = len(plan.search(work, H100, 32, plan_command.Progress()).layouts)
    lines = caplog.messages.copy()
    assert lines[0] == f"priced 0 of {count:,} layouts"
    assert lines[-1] == f"priced {count:,} of {count:,} layouts"
    assert len(lines) == 2 + count // 1000
    caplog.clear()
    plan_command.MANY_LAYOUTS = count + 1
    plan.search(work, H100, 32, plan_command.Progress())
    assert not caplog.messages
