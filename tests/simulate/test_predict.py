"""The compiled engine on real programs: what it promises in JSON, and that it repeats itself."""

import json

import pytest

from tests.conftest import command


def simulate(*flags):
    result = command("simulate", *flags, "--json")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("\n") == 1
    return result.stdout


@pytest.fixture(scope="module")
def whole():
    return simulate("--mesh", "128x8")


def test_1024_gpus_are_simulated_with_every_promised_key(whole):
    result = json.loads(whole)
    assert result["engine"] == "compiled"
    assert result["kind"] == "simulated"
    assert result["devices"] == 1024
    assert result["fits"]
    memory, spent = result["memory_bytes"], result["breakdown_s"]
    parts = [v for k, v in memory.items() if k not in ("total", "capacity") and v is not None]
    assert sum(parts) == memory["total"] <= memory["capacity"]
    waits = spent.pop("exposed_communication")
    assert set(waits) <= {"data", "model", "data+model"}
    assert sum(spent.values()) + sum(waits.values()) == pytest.approx(result["step_time_s"])
    tokens = 512 * 4096
    assert result["tokens_per_s"] == pytest.approx(tokens / result["step_time_s"])
    assert 0.1 < result["mfu"] < 0.7
    assert set(result["provenance"]) >= {"versions", "model", "cluster", "recipe", "engine"}


def test_the_same_input_gives_the_same_bytes(whole):
    assert simulate("--mesh", "128x8") == whole


def test_what_does_not_fit_is_said_with_advice_and_exits_0():
    result = json.loads(simulate("--mesh", "1x8"))
    assert not result["fits"]
    assert "parameters and optimizer" in result["advice"][0]


@pytest.mark.parametrize("cluster", ["frontier", pytest.param("polaris", marks=pytest.mark.slow)])
def test_other_machines_are_compiled_for(cluster):
    flags = ("--mesh", "8x4", "--model", "gpt3-1.3b", "--cluster", cluster)
    result = json.loads(simulate(*flags))
    assert result["step_time_s"] > 0
    # XLA compiles for no AMD GPU that is not there.
    assert (result["proxy"], result["compiled_for"]) == {
        "polaris": (False, "a100-40"),
        "frontier": (True, "a100-80"),
    }[cluster]


def test_a_mesh_larger_than_the_machine_is_refused():
    result = command("simulate", "--mesh", "1024x8", "--cluster", "polaris")
    assert result.returncode == 2
    assert result.stderr.startswith("exajax: error: --mesh: 8192 devices are more than the 2240")
    assert result.stderr.count("\n") == 1
