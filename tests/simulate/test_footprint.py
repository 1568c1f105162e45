"""Memory in closed formulas: figures that others published, and what holds for every layout."""

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exajax.machine import software
from exajax.models.dimensions import ModelConfig
from exajax.models.presets import PRESETS
from exajax.recipe.recipe import REMATS
from exajax.simulate.formulas import engine
from exajax.simulate.formulas.shared.layouts import Layouts
from exajax.simulate.formulas.shared.results import Footprint
from exajax.simulate.formulas.shared.saved import in_flight
from exajax.simulate.formulas.shared.work import Work
from exajax.spmd.pipeline_schedule import Schedule
from tests.simulate.test_formulas import BATCH, H100, NAMES, SEQ, layouts

GIB = 2.0**30
KORTHIKANTI = {  # arXiv:2205.05198, table 3: layers, width, heads, pipe, interleave, micro-batch
    "22B": (48, 6144, 64, 1, 1, 4),
    "175B": (96, 12288, 96, 8, 3, 1),
    "530B": (105, 20480, 128, 35, 3, 1),
    "1T": (128, 25600, 160, 64, 1, 1),
}


def footprint(model, profile, how, batch, seq) -> Footprint:
    machine = dataclasses.replace(H100, software=profile)
    work = Work(model, machine, batch, seq, "bf16")
    return engine.memory(work, how, unlimited=True)


def published(name, remat, sequence_parallel):
    layers, width, heads, pipe, interleave, micro_batch = KORTHIKANTI[name]
    model = ModelConfig(name, "gpt", layers, width, heads, heads, 4 * width, 51_200, 2048)
    how = Layouts.of(
        pipe=pipe,
        tensor=8,
        interleave=interleave,
        micro_batch=micro_batch,
        remat=REMATS.index(remat),
        sequence_parallel=sequence_parallel,
    )
    given = software.load("megatron-2021", "software")
    return model, footprint(model, given, how, 512 * micro_batch, 2048)


# Figure 1 of arXiv:2205.05198, read by calculon-ai/calculon, calculon/llm/validation.py, in GiB.
@pytest.mark.parametrize(
    ("name", "everything", "selective"),
    [
        ("22B", 59.25, 9.5625),
        ("175B", 66.84375, 12.3515625),
        ("530B", 114.0234375, 23.076171875),
        ("1T", 131.25, 26.5625),
    ],
)
def test_activations_are_those_of_korthikanti(name, everything, selective):
    found = published(name, "none", False)[1].activations / GIB
    assert found == pytest.approx(everything, rel=1e-3)
    found = published(name, "attention", True)[1].activations / GIB
    assert found == pytest.approx(selective, rel=1e-3)


# Their figures leave the tables out, which the first and the last stage have besides.
@pytest.mark.parametrize(
    ("name", "gib"),
    [("22B", 45.5625), ("175B", 45.5625), ("530B", 31.640625), ("1T", 32.958984375)],
)
def test_parameters_and_optimizer_are_those_of_korthikanti(name, gib):
    model, found = published(name, "full", True)
    table = 18.0 * model.width * model.padded_vocab / 8
    state = found.parameters + found.gradients + found.optimizer
    assert (state - table) / GIB == pytest.approx(gib, rel=0.03)


# Peaks on B200 with Megatron-LM 0.14: SimuMax v1.2, docs/b200/b200_release_v1.2_summary.md, GiB.
@pytest.mark.parametrize(
    ("name", "layers", "axes", "gib"),
    [
        ("llama3-70b", 12, {"pipe": 2, "data": 4}, 66.55),
        ("llama3-70b", 12, {"tensor": 8}, 28.29),
        ("llama3-405b", 4, {"data": 4, "tensor": 2}, 81.59),
        ("llama3-405b", 4, {"tensor": 8}, 38.57),
    ],
)
def test_peaks_are_those_measured_on_b200(name, layers, axes, gib):
    model = dataclasses.replace(PRESETS[name], layers=layers)
    how = Layouts.of(**axes, zero=1, flash=True, sequence_parallel=True)
    given = software.load("megatron-core-2025", "software")
    found = footprint(model, given, how, 16, 4096)
    assert found.total / GIB == pytest.approx(gib, rel=0.05)


def memory(name, how, program="jax") -> Footprint:
    model = PRESETS[name]
    seq = SEQ if model.is_text else model.seq
    given = dataclasses.replace(software.AS_MEASURED, program=program)
    return footprint(model, given, how, BATCH, seq)


PROGRAMS = st.sampled_from(software.PROGRAMS)


@given(st.sampled_from(NAMES), layouts(), PROGRAMS)
def test_memory_falls_as_zero_rises(name, how, program):
    levels = [
        float(memory(name, dataclasses.replace(how, zero=np.array([level])), program).total[0])
        for level in range(4)
    ]
    assert all(more >= less * (1 - 1e-12) for more, less in itertools.pairwise(levels))


@given(st.sampled_from(NAMES), layouts(count=4), PROGRAMS)
def test_memory_of_a_layout_does_not_depend_on_the_others(name, how, program):
    together = memory(name, how, program).total
    alone = [memory(name, how.take(np.array([row])), program).total[0] for row in range(4)]
    assert together == pytest.approx(alone)


@given(st.sampled_from(NAMES), layouts(), PROGRAMS)
def test_every_kind_of_memory_is_there_and_none_is_negative(name, how, program):
    found = memory(name, how, program)
    kinds = [getattr(found, field.name) for field in dataclasses.fields(found)]
    assert all(kind >= 0 for kind in kinds)
    assert found.parameters > 0
    assert found.optimizer > 0


@given(
    st.sampled_from(["gpipe", "1f1b", "interleaved"]),
    st.integers(2, 6),
    st.integers(2, 4),
    st.integers(1, 5),
)
def test_a_stage_has_as_many_micro_batches_in_flight_as_the_schedule_of_the_trainer(
    name, stages, parts, groups
):
    parts = parts if name == "interleaved" else 1
    micro_batches = groups * stages
    kept = Schedule.of(name, stages, parts, micro_batches).in_flight / parts
    how = Layouts.of(pipe=stages, interleave=parts, gpipe=name == "gpipe")
    assert in_flight(how, np.array([micro_batches])) == pytest.approx(kept)
