"""The analytic engine: what holds for every layout, and steps that others measured."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exajax.machine import software
from exajax.machine.cluster import load_cluster
from exajax.models.dimensions import ModelConfig
from exajax.models.presets import PRESETS
from exajax.recipe.recipe import REMATS
from exajax.simulate.formulas import engine
from exajax.simulate.formulas.shared.block_parts import ORDER
from exajax.simulate.formulas.shared.blocks import PARTS, RECOMPUTED
from exajax.simulate.formulas.shared.collectives import group_s
from exajax.simulate.formulas.shared.layouts import Layouts
from exajax.simulate.formulas.shared.work import Work

H100 = load_cluster("dgx-h100")
BATCH, SEQ = 512, 2048
NAMES = ("gpt3-13b", "llama2-7b", "mixtral-8x7b", "vit-l")
WAYS = st.sampled_from([1, 2, 4, 8])


@st.composite
def layouts(draw, count=1):
    """Layouts whose axes are powers of two, which divide every model of `NAMES`."""
    columns = {
        name: [draw(WAYS) for _ in range(count)]
        for name in ("pipe", "data", "fsdp", "context", "tensor", "micro_batch")
    }
    return Layouts.of(
        **columns,
        interleave=[draw(st.sampled_from([1, 2])) if p > 1 else 1 for p in columns["pipe"]],
        zero=[draw(st.integers(0, 3)) for _ in range(count)],
        remat=[draw(st.integers(0, len(REMATS) - 1)) for _ in range(count)],
        sequence_parallel=[draw(st.booleans()) for _ in range(count)],
        flash=[draw(st.booleans()) for _ in range(count)],
    )


def step_times(model, cluster, how, batch=BATCH, seq=SEQ, precision="bf16"):
    return engine.step(Work(model, cluster, batch, seq, precision), how)[0]


def times(name, how, cluster=H100, *, precision="bf16", **changes):
    model = dataclasses.replace(PRESETS[name], **changes)
    seq = model.seq if not model.is_text else SEQ
    return step_times(model, cluster, how, seq=seq, precision=precision)


def faster(**changes):
    """The machine with some figures of its chip or its links multiplied."""
    chip = H100.chip
    peaks = {key: value * changes.get("peak", 1) for key, value in chip.peak_flops.items()}
    bandwidth = chip.memory_bandwidth * changes.get("memory", 1)
    chip = dataclasses.replace(chip, peak_flops=peaks, memory_bandwidth=bandwidth)
    network = dataclasses.replace(
        H100.network, bandwidth=H100.network.bandwidth * changes.get("network", 1)
    )
    return dataclasses.replace(H100, chip=chip, network=network)


def test_every_policy_says_what_it_recomputes():
    assert list(RECOMPUTED) == list(REMATS)
    assert all(set(parts) <= set(PARTS) for parts in RECOMPUTED.values())
    assert set(ORDER) == set(PARTS)


def test_every_program_of_a_profile_has_formulas_and_figures():
    assert set(engine.PROGRAMS) == set(software.PROGRAMS)
    for program in software.PROGRAMS:
        assert len(engine.figures_of(program)["sha256"]) == 16


@settings(deadline=None, max_examples=40)
@given(layouts(), st.sampled_from(NAMES), st.sampled_from(["peak", "memory", "network"]))
def test_a_better_machine_is_never_slower(how, name, what):
    before, after = times(name, how), times(name, how, faster(**{what: 2.0}))
    assert after.step_s <= before.step_s * (1 + 1e-9)


@settings(deadline=None, max_examples=40)
@given(layouts(), st.sampled_from(NAMES))
def test_less_work_is_never_slower(how, name):
    layers = PRESETS[name].layers
    assert times(name, how, layers=layers // 2).step_s <= times(name, how).step_s
    more = step_times(PRESETS["llama2-7b"], H100, how, 2 * BATCH)
    assert times("llama2-7b", how).step_s <= more.step_s


@settings(deadline=None, max_examples=25)
@given(layouts(count=7), st.sampled_from(NAMES))
def test_a_layout_does_not_depend_on_the_others(how, name):
    together = times(name, how).step_s
    alone = [times(name, how.take(np.array([i]))).step_s[0] for i in range(len(how))]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


@settings(deadline=None, max_examples=40)
@given(layouts(count=3), st.sampled_from(NAMES))
def test_no_part_of_a_step_is_negative_and_they_add_up(how, name):
    spent = times(name, how)
    parts = [getattr(spent, field.name) for field in dataclasses.fields(spent)]
    assert all((part >= 0).all() for part in parts)
    np.testing.assert_allclose(np.sum(parts, axis=0), spent.step_s)
    assert np.isfinite(spent.step_s).all()


@settings(deadline=None, max_examples=20)
@given(layouts(), st.sampled_from(NAMES))
def test_more_is_recomputed_the_less_is_saved(how, name):
    order = ("none", "attention", "selective", "full")
    steps = [
        times(name, dataclasses.replace(how, remat=np.array([REMATS.index(remat)]))).compute[0]
        for remat in order
    ]
    assert steps == sorted(steps)


def test_devices_that_are_alone_send_nothing():
    spent = times("llama2-7b", Layouts.of(micro_batch=1, zero=3, flash=True))
    for what in ("tensor", "context", "expert", "shards", "gradients", "stages", "bubble"):
        assert getattr(spent, what)[0] == 0


def test_a_ring_that_leaves_its_node_is_as_slow_as_its_hops_between_nodes():
    """On nodes of four, a ring of four is in one; of a ring of eight all wait for two hops."""
    polaris = load_cluster("polaris")

    def hop_s(ranks, stride):
        return group_s("collective-permute", 1e8, ranks, stride, polaris)[0]

    assert hop_s(8, 1) == hop_s(2, 4) > 2 * hop_s(4, 1)
    assert hop_s(4, 2) == hop_s(2, 4)  # stages of a pipeline, two devices each


def test_the_bubble_is_that_of_the_schedule():
    # arXiv:2104.04473, section 2.2: (p - 1) / m of the work of all micro-batches, over v.
    how = Layouts.of(pipe=8, interleave=[1, 2], micro_batch=1, flash=True)
    model = dataclasses.replace(PRESETS["llama2-7b"], vocab=128)  # ends that weigh nothing
    spent = step_times(model, H100, how, 64)
    working = spent.compute + spent.memory_bound
    np.testing.assert_allclose(spent.bubble / working, [7 / 64, 7 / 128], rtol=0.02)


def test_a_host_that_is_slow_is_waited_for():
    slow = dataclasses.replace(software.AS_MEASURED, host_s=1e-3)
    how = Layouts.of(micro_batch=1, flash=True)
    spent = times("gpt3-13b", how, dataclasses.replace(H100, software=slow))
    assert spent.other[0] > (spent.compute + spent.memory_bound)[0]
    assert times("gpt3-13b", how).other[0] == 0


MEASURED = {
    # arXiv:2205.05198, table 5: full and selective recomputation; seconds of a step.
    "full": {"22B": 1.42, "175B": 18.13, "530B": 49.05, "1T": 94.42},
    "attention": {"22B": 1.10, "175B": 13.75, "530B": 37.83, "1T": 71.49},
}
SIZES = {  # layers, width, heads, stages, parts of a stage, batch, micro-batch
    "22B": (48, 6144, 64, 1, 1, 4, 4),
    "175B": (96, 12288, 96, 8, 3, 64, 1),
    "530B": (105, 20480, 128, 35, 3, 280, 1),
    "1T": (128, 25600, 160, 64, 1, 512, 1),
}


@pytest.mark.parametrize("remat", MEASURED)
@pytest.mark.parametrize("size", SIZES)
def test_steps_that_megatron_took_on_selene(size, remat):
    layers, width, heads, pipe, parts, batch, micro_batch = SIZES[size]
    model = ModelConfig(size, "gpt", layers, width, heads, heads, 4 * width, 51_200, SEQ)
    how = Layouts.of(
        pipe=pipe,
        tensor=8,
        interleave=parts,
        micro_batch=micro_batch,
        remat=REMATS.index(remat),
        sequence_parallel=remat == "attention",
    )
    cluster = dataclasses.replace(
        load_cluster("selene"), software=software.load("megatron-2021", "software")
    )
    spent = step_times(model, cluster, how, batch)
    assert spent.step_s[0] == pytest.approx(MEASURED[remat][size], rel=0.08)
