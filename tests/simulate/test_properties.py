"""What holds for every simulated step, whatever is trained, on whatever mesh and machine."""

import contextlib
import dataclasses
import io
import json
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from exajax.cli import main
from exajax.cli.flags import recipe_argv
from exajax.errors import InputError
from exajax.machine.cluster import load_cluster
from exajax.models.presets import lookup
from exajax.recipe.recipe import PRECISIONS, REMATS, Recipe
from exajax.simulate.formulas import prediction as analytic
from exajax.simulate.prediction import predict_recipe
from exajax.spmd.mesh import MeshSpec

MODELS = ("gpt2-124m", "gpt3-13b", "llama2-7b", "llama3-8b", "mixtral-8x7b", "vit-b", "gpt-tiny")
WAYS = st.sampled_from([1, 1, 1, 2, 3, 4, 8])
MACHINES = st.sampled_from(["dgx-h100", "polaris", "perlmutter", "frontier", "aurora", "tpu-v5p"])


@st.composite
def recipes(draw, models=MODELS, ways=WAYS):
    """Recipes that the trainer takes, most of which nobody would train."""
    axes = ("data", "fsdp", "model", "context", "expert", "pipe")
    mesh = MeshSpec(**{axis: draw(ways) for axis in axes})
    micro_batch, parts = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    interleave = draw(st.sampled_from([1, 1, 2])) if mesh.pipe > 1 else 1
    schedule = draw(st.sampled_from(["gpipe", "1f1b"])) if interleave == 1 else "interleaved"
    model = lookup(draw(st.sampled_from(models)))
    try:
        return Recipe.of(
            model,
            mesh,
            global_batch=mesh.batch_shards * micro_batch * parts,
            micro_batch=micro_batch,
            seq=None if model.family == "vit" else draw(st.sampled_from([64, 768, 1024])),
            precision=draw(st.sampled_from(PRECISIONS)),
            remat=draw(st.sampled_from(REMATS)),
            zero=draw(st.integers(0, 3)),
            schedule=schedule,
            interleave=interleave,
            sequence_parallel=draw(st.booleans()),
            attention=draw(st.sampled_from(["auto", "unfused"])),
        )
    except InputError:
        assume(False)


def numbers(value, path=""):
    """Yields every number of a JSON value, with where it stands."""
    if isinstance(value, dict):
        for key, one in value.items():
            yield from numbers(one, f"{path}.{key}")
    elif isinstance(value, list):
        for index, one in enumerate(value):
            yield from numbers(one, f"{path}[{index}]")
    elif isinstance(value, int | float):
        yield path, value


def check(found):
    """What every prediction promises, of either engine."""
    assert [path for path, number in numbers(found) if not math.isfinite(number)] == []
    spent = dict(found["breakdown_s"])
    seconds = [*spent.pop("exposed_communication").values(), *spent.values()]
    assert all(part >= 0 for part in seconds)
    assert sum(seconds) == pytest.approx(found["step_time_s"], rel=1e-9)
    assert found["step_time_s"] > 0
    assert 0 < found["mfu"] <= found["hfu"] <= 1
    memory = dict(found["memory_bytes"])
    capacity, total = memory.pop("capacity"), memory.pop("total")
    assert all(0 <= part <= total for part in memory.values())
    # Parts partition what is live at the peak, so that they add up to it.
    assert sum(memory.values()) == total
    assert not found["fits"] or total <= capacity


def predicted(recipe, machine):
    try:
        return analytic.predict(recipe, machine)
    except InputError:
        assume(False)  # an option that the formulas do not know


@settings(max_examples=30)
@given(recipes(), MACHINES)
def test_the_formulas_keep_what_a_prediction_promises(recipe, name):
    check(predicted(recipe, load_cluster(name)).to_json())


@settings(max_examples=20)
@given(recipes(), MACHINES)
def test_the_command_says_what_the_library_says(recipe, name):
    machine = load_cluster(name)
    found = predicted(recipe, machine)
    refused = False
    try:
        machine.check(recipe.mesh.devices, recipe.precision)
    except InputError:
        refused = True  # more devices than there are, or parts of a node
    argv = [*recipe_argv(recipe, recipe.model.name), "--cluster", name]

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = main.main(["simulate", "--engine", "analytic", "--json", *argv])
    assert code == (2 if refused else 0)
    if refused:
        return
    said = json.loads(out.getvalue())
    check(said)
    assert said["step_time_s"] == found.step_time_s


def better(machine, what):
    """A machine with twice as much of a good thing, or half of a bad one."""
    chip, network = machine.chip, machine.network
    if what == "peak":
        peaks = {key: 2 * value for key, value in chip.peak_flops.items()}
        return dataclasses.replace(machine, chip=dataclasses.replace(chip, peak_flops=peaks))
    if what in ("memory_bandwidth", "launch_s"):
        factor = 2.0 if what == "memory_bandwidth" else 0.5
        chip = dataclasses.replace(chip, **{what: factor * getattr(chip, what)})
        return dataclasses.replace(machine, chip=chip)
    if what == "network":
        network = dataclasses.replace(network, bandwidth=2 * network.bandwidth)
    else:
        latency_s = {kind: seconds / 2 for kind, seconds in network.latency_s.items()}
        network = dataclasses.replace(network, latency_s=latency_s)
    return dataclasses.replace(machine, network=network)


GOOD = ("peak", "memory_bandwidth", "launch_s", "network", "latency")


@settings(max_examples=30)
@given(recipes(), MACHINES, st.sampled_from(GOOD))
def test_more_of_a_good_thing_is_never_slower(recipe, name, what):
    machine = load_cluster(name)
    before, after = predicted(recipe, machine), predicted(recipe, better(machine, what))
    assert after.step_time_s <= before.step_time_s * (1 + 1e-9)
    assert after.memory.total[0] == before.memory.total[0]


@pytest.mark.slow
@settings(max_examples=4)
@given(recipes(("gpt-tiny", "llama-tiny", "mixtral-tiny"), st.sampled_from([1, 2])), MACHINES)
def test_a_compiled_step_keeps_what_a_prediction_promises(recipe, name):
    check(predict_recipe(recipe, load_cluster(name)).to_json())
