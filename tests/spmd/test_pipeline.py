"""Schedules as data: who works on what, when, and how much is kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exajax.spmd.pipeline import Schedule

stages, parts, groups = st.integers(1, 6), st.integers(1, 4), st.integers(1, 4)


def plan(name, stages, parts, groups):
    return Schedule.of(name, stages, parts if name == "interleaved" else 1, stages * groups)


def times(schedule, forward):
    """Turn in which each stage works on each (micro-batch, part) of one direction."""
    found = {}
    for stage in range(schedule.stages):
        late = stage if forward else schedule.stages - 1 - stage
        for index in range(schedule.micro_batches * schedule.parts):
            micro, part, _ = schedule.item(index, forward=forward)
            found[stage, micro, part] = index + late
    return found


@given(st.sampled_from(["gpipe", "1f1b", "interleaved"]), stages, parts, groups)
def test_every_item_is_worked_on_once_and_is_at_the_next_stage_a_turn_later(name, p, v, g):
    schedule = plan(name, p, v, g)
    ahead, back = times(schedule, True), times(schedule, False)
    everything = schedule.stages * schedule.micro_batches * schedule.parts
    assert len(ahead) == len(back) == everything
    assert max(ahead.values()) == max(back.values()) == schedule.turns - 1
    for stage, micro, part in ahead:
        following = (stage + 1, part) if stage + 1 < schedule.stages else (0, part + 1)
        if following[1] < schedule.parts:
            assert ahead[following[0], micro, following[1]] == ahead[stage, micro, part] + 1
            assert back[stage, micro, part] == back[following[0], micro, following[1]] + 1


@given(st.sampled_from(["gpipe", "1f1b", "interleaved"]), stages, parts, groups)
def test_nothing_goes_back_before_it_has_come_and_nothing_kept_is_overwritten(name, p, v, g):
    schedule = plan(name, p, v, g)
    ahead, back = times(schedule, True), times(schedule, False)
    for stage in range(schedule.stages):
        kept = {}
        for turn in range(2 * schedule.turns):
            for (s, micro, part), when in ahead.items():
                if s == stage and when == turn:
                    place = schedule.item_place(micro, part)
                    assert place % schedule.in_flight not in kept
                    kept[place % schedule.in_flight] = micro, part
            for (s, micro, part), when in back.items():
                # Backward turn t is behind forward turn t + lead - 1.
                if s == stage and when + schedule.lead - 1 == turn:
                    place = schedule.item_place(micro, part) % schedule.in_flight
                    assert kept.pop(place) == (micro, part)
        assert not kept


@pytest.mark.parametrize("micro_batches", [8, 64])
def test_one_forward_one_backward_keeps_what_the_stages_need_and_gpipe_keeps_all(micro_batches):
    assert Schedule.of("1f1b", 4, 1, micro_batches).in_flight == 7
    assert Schedule.of("gpipe", 4, 1, micro_batches).in_flight == micro_batches


def test_the_bubble_is_that_of_the_textbook():
    # arXiv:2104.04473, section 2.2: of the ideal time, (p - 1) / m, and interleaved (p - 1) / vm.
    for parts in (1, 2, 4):
        schedule = Schedule.of("interleaved" if parts > 1 else "1f1b", 4, parts, 16)
        ideal = schedule.micro_batches * schedule.parts
        assert (schedule.turns - ideal) / ideal == pytest.approx(3 / (parts * 16))
        assert schedule.bubble == pytest.approx(3 / schedule.turns)
