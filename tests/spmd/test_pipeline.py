"""Pipeline schedules: which item each stage works on, when, and how many are in flight."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exajax.spmd.pipeline_schedule import Schedule

stages, parts, groups = st.integers(1, 6), st.integers(1, 4), st.integers(1, 4)


def plan(name, stages, parts, groups):
    return Schedule.of(name, stages, parts if name == "interleaved" else 1, stages * groups)


def slots_of(schedule, forward):
    """Slot in which each stage works on each (micro-batch, part) of one direction."""
    slots = {}
    for stage in range(schedule.stages):
        delay = stage if forward else schedule.stages - 1 - stage
        for index in range(schedule.micro_batches * schedule.parts):
            micro, part, _ = schedule.item(index, forward=forward)
            slots[stage, micro, part] = index + delay
    return slots


@given(st.sampled_from(["gpipe", "1f1b", "interleaved"]), stages, parts, groups)
def test_every_item_is_processed_once_and_reaches_the_next_stage_one_slot_later(name, p, v, g):
    schedule = plan(name, p, v, g)
    forward, backward = slots_of(schedule, True), slots_of(schedule, False)
    everything = schedule.stages * schedule.micro_batches * schedule.parts
    assert len(forward) == len(backward) == everything
    assert max(forward.values()) == max(backward.values()) == schedule.slots - 1
    for stage, micro, part in forward:
        following = (stage + 1, part) if stage + 1 < schedule.stages else (0, part + 1)
        if following[1] < schedule.parts:
            assert forward[following[0], micro, following[1]] == forward[stage, micro, part] + 1
            assert backward[stage, micro, part] == backward[following[0], micro, following[1]] + 1


@given(st.sampled_from(["gpipe", "1f1b", "interleaved"]), stages, parts, groups)
def test_backward_follows_forward_and_no_saved_item_is_overwritten(name, p, v, g):
    schedule = plan(name, p, v, g)
    forward, backward = slots_of(schedule, True), slots_of(schedule, False)
    for stage in range(schedule.stages):
        saved = {}
        for slot in range(2 * schedule.slots):
            for (s, micro, part), when in forward.items():
                if s == stage and when == slot:
                    buffer = schedule.forward_index(micro, part)
                    assert buffer % schedule.in_flight not in saved
                    saved[buffer % schedule.in_flight] = micro, part
            for (s, micro, part), when in backward.items():
                # Backward slot t follows forward slot t + lead - 1.
                if s == stage and when + schedule.lead - 1 == slot:
                    buffer = schedule.forward_index(micro, part) % schedule.in_flight
                    assert saved.pop(buffer) == (micro, part)
        assert not saved


@pytest.mark.parametrize("micro_batches", [8, 64])
def test_1f1b_bounds_the_items_in_flight_by_the_stages_and_gpipe_has_all_in_flight(micro_batches):
    assert Schedule.of("1f1b", 4, 1, micro_batches).in_flight == 7
    assert Schedule.of("gpipe", 4, 1, micro_batches).in_flight == micro_batches


def test_the_bubble_is_that_of_the_textbook():
    # arXiv:2104.04473, section 2.2: of the ideal time, (p - 1) / m, and interleaved (p - 1) / vm.
    for parts in (1, 2, 4):
        schedule = Schedule.of("interleaved" if parts > 1 else "1f1b", 4, parts, 16)
        ideal = schedule.micro_batches * schedule.parts
        assert (schedule.slots - ideal) / ideal == pytest.approx(3 / (parts * 16))
        assert schedule.bubble == pytest.approx(3 / schedule.slots)
