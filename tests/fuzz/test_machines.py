"""Whatever stands in a machine's file, it is refused on one line or both engines give numbers."""

import math
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from exajax.errors import InputError
from exajax.files.reading import Malformed
from exajax.machine import cluster
from exajax.machine.cluster import Cluster
from exajax.models.presets import lookup
from exajax.program import compiled_recipe
from exajax.recipe.recipe import Recipe
from exajax.simulate.formulas import prediction as analytic
from exajax.simulate.timeline import lay_out
from exajax.spmd.mesh import MeshSpec
from tests.fuzz import strategies_machines
from tests.fuzz.mutations import HOSTILE

RECIPES = [
    Recipe.of(lookup("llama-tiny"), MeshSpec.parse(mesh), global_batch=16)
    for mesh in ("data=2,model=4", "fsdp=16")
]


@pytest.fixture(scope="module")
def program() -> Any:
    """A step that was compiled for two nodes of a machine without anything wrong."""
    return compiled_recipe.load_or_compile(RECIPES[1], cluster.load_cluster("dgx-h100")).program


def accepted(table: Any) -> Cluster | None:
    """Returns the machine that a table makes, None where it is refused as it should be."""
    try:
        return cluster._build_cluster("drawn", table)
    except Malformed as error:
        told = f"{error}; {error.fix}"
        assert told.isprintable()
        assert len(told) < 1000
        return None


def numbers(value: Any) -> list[float]:
    """Returns all numbers within a plain value."""
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    if isinstance(value, (list, tuple)):
        return [number for item in value for number in numbers(item)]
    return [float(value)] if isinstance(value, (int, float)) else []


def check(machine: Cluster, program: Any) -> None:
    """Asserts that both engines give finite numbers on a machine, or say that they cannot."""
    for recipe in RECIPES:
        try:
            machine.check_mesh(recipe.mesh.devices, recipe.precision)
            predicted = analytic.predict(recipe, machine)
        except InputError as error:
            assert str(error).isprintable()
            continue
        assert 0 < predicted.step_time_s < math.inf
        assert all(map(math.isfinite, numbers(predicted.to_json())))
    try:
        assert 0 < lay_out(program, machine).total_s < math.inf
    except InputError as error:
        assert str(error).isprintable()


@settings(suppress_health_check=[HealthCheck.large_base_example])
@given(table=strategies_machines.machines() | st.sampled_from(HOSTILE))
def test_a_machine_is_refused_on_one_line_or_priced(table: Any, program: Any) -> None:
    machine = accepted(table)
    if machine is not None:
        check(machine, program)


def test_a_chip_that_says_nothing_of_attention_is_refused_and_not_priced_as_nan() -> None:
    machine = strategies_machines.MACHINES["dgx-h100"]
    chip = {key: value for key, value in machine["chip"].items() if key != "attention"}
    found = accepted(machine | {"chip": chip})
    assert found is not None
    with pytest.raises(InputError, match=r"fused attention .* add \[attention\]"):
        analytic.predict(RECIPES[0], found)


@pytest.mark.parametrize("name", sorted(strategies_machines.MACHINES))
def test_a_machine_that_is_written_out_is_itself(name: str, program: Any) -> None:
    machine = accepted(strategies_machines.MACHINES[name])
    assert machine is not None
    assert machine.link == cluster.load_cluster(name).link
    check(machine, program)
