"""What a step takes over the kernels it is made of."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exajax import load_cluster
from exajax.calibrate import probes
from exajax.calibrate.probes import Probe
from exajax.errors import InputError
from exajax.files.reading import Malformed
from exajax.machine import software
from exajax.machine.software import SoftwareProfile
from exajax.program.operations import Operation
from exajax.simulate.timeline import lay_out

H100 = load_cluster("dgx-h100")
PRODUCT = Operation("p", "jit(f)/mlp/dot", "matmul", 1e13, 0, "bf16")
COPY = Operation("m", "", "memory", 0.0, 10**10)


def test_every_software_profile_loads_and_says_what_it_was_fitted_on():
    for name in software.names():
        loaded = software.load(name, "software")
        assert loaded.fitted_on
        assert loaded.source


def test_an_unknown_software_profile_is_refused():
    with pytest.raises(InputError, match="unknown software profile 'pax-2042'"):
        software.load("pax-2042", "software")


@pytest.mark.parametrize("value", [0, -1, "fast", float("inf")])
def test_a_factor_is_a_number_above_0(value):
    values = {"title": "t", "matmul": [value, "source"], "memory": [1.0, "source"]}
    with pytest.raises(Malformed, match="matmul is"):
        software.read("own", values)


def test_factors_multiply_their_kind_of_operation():
    plain = lay_out((PRODUCT, COPY), H100)
    slower = dataclasses.replace(
        H100, software=SoftwareProfile("s", "", matmul=1.5, memory=2.0, step_s=0.01)
    )
    spent = lay_out((PRODUCT, COPY), slower)
    assert spent.compute == pytest.approx(1.5 * plain.compute)
    assert spent.memory_bound == pytest.approx(2.0 * plain.memory_bound)
    assert spent.other == pytest.approx(plain.other + 0.01)


@given(st.floats(0.9, 1.1), st.floats(0.5, 7.0))
def test_the_fit_finds_the_factors_that_steps_were_made_with(matmul, memory):
    programs = [(PRODUCT,) * few + (COPY,) * many for few, many in ((9, 1), (1, 9), (1, 4))]
    made = dataclasses.replace(H100, software=SoftwareProfile("s", "", matmul, memory))
    timed = [Probe("p", program, lay_out(program, made).total_s) for program in programs]
    fitted = probes.fit(timed, H100)
    # Products are held to what they were measured to take, so they are not met exactly.
    assert fitted.matmul == pytest.approx(matmul, abs=0.06)
    assert fitted.memory == pytest.approx(memory, rel=0.15)
    assert len(fitted.fitted_on) == 3
