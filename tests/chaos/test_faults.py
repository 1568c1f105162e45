"""Kinds and schedules of faults, and the files that hold them."""

import math
from collections import Counter
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exajax import InputError
from exajax.chaos import faults, faults_file
from exajax.chaos.faults import COMMIT, KINDS, ROLES, Fault
from exajax.chaos.injections import INJECTIONS
from exajax.job.events import PHASES


@st.composite
def schedules(draw):
    """Schedules of faults of every kind."""
    seconds = st.floats(0, 1e6, allow_nan=False)

    def fault(number):
        kind = draw(st.sampled_from(sorted(KINDS)))
        about = KINDS[kind]
        role = draw(st.sampled_from(ROLES)) if about.signals else "worker"
        others = st.sampled_from(["any", "leader"]) | st.integers(0, 3)
        when = draw(st.tuples(st.none() | seconds, st.none() | st.integers(0, 99), moments))
        if when == (None, None, None):
            when = (1.5, None, None)
        if about.stepwise:
            when = (None, draw(st.integers(0, 99)), None)
        lasts = {"no": st.none(), "yes": seconds, "maybe": st.none() | seconds}[about.lasts]
        details = {
            name: draw((st.floats if name == "share" else st.integers)(least, most))
            for name, (_, least, most) in about.details.items()
            if draw(st.booleans())
        }
        target = "parent" if role == "parent" else draw(others)
        return Fault(number, kind, target, role, *when, draw(lasts), MappingProxyType(details))

    moments = st.none() | st.sampled_from([*PHASES, COMMIT])
    return tuple(fault(number) for number in range(draw(st.integers(1, 6))))


@given(schedules())
def test_a_schedule_survives_a_round_trip_through_its_file(tmp_path_factory, schedule):
    path = tmp_path_factory.mktemp("faults") / "faults.toml"
    faults_file.write(schedule, path)
    assert faults_file.read(path) == schedule


@given(st.integers(0, 2**32), st.integers(0, 30), st.integers(1, 8), st.floats(0.1, 100))
def test_kills_follow_from_their_seed(seed, count, hosts, mean_gap_s):
    schedule = faults.kills(seed, count, hosts, mean_gap_s)
    assert schedule == faults.kills(seed, count, hosts, mean_gap_s)
    assert len(schedule) == count
    assert [fault.id for fault in schedule] == list(range(count))
    assert [fault.at_s for fault in schedule] == sorted(fault.at_s for fault in schedule)
    faults_file.check_targets(schedule, hosts)


def test_kills_hit_every_process_equally_often_at_the_given_rate():
    schedule = faults.kills(7, 6000, 4, 5.0)
    roles = Counter(fault.role for fault in schedule)
    hosts = Counter(fault.target for fault in schedule)
    # Five standard deviations of a binomial count.
    for role in ROLES:
        assert abs(roles[role] - 2000) < 5 * math.sqrt(6000 * 2 / 9)
    for host in range(4):
        assert abs(hosts[host] - 1000) < 5 * math.sqrt(1000)
    assert hosts["parent"] == roles["parent"]
    assert schedule[-1].at_s / 6000 == pytest.approx(5.0, rel=5 / math.sqrt(6000))


@given(st.integers(0, 2**32), st.integers(1, 64), st.sampled_from(["host", "job"]))
def test_the_rate_of_faults_follows_from_their_mean_time(seed, hosts, of):
    week_s = 7 * 86400.0
    mtbf_s = {"kill": week_s / 40, "slow-host": week_s / 10}
    schedule = faults.poisson(seed, hosts, week_s, mtbf_s, of=of, duration_s=60.0)
    assert schedule == faults.poisson(seed, hosts, week_s, mtbf_s, of=of, duration_s=60.0)
    counts = Counter(fault.kind for fault in schedule)
    for kind, mean_s in mtbf_s.items():
        expected = week_s / mean_s * (hosts if of == "host" else 1)
        assert abs(counts[kind] - expected) < 6 * math.sqrt(expected)
    assert all(0 <= fault.at_s < week_s and 0 <= fault.target < hosts for fault in schedule)
    assert {fault.duration_s for fault in schedule if fault.kind == "slow-host"} <= {60.0}
    assert {fault.duration_s for fault in schedule if fault.kind == "kill"} <= {None}


def test_gaps_between_poisson_faults_are_exponential():
    schedule = faults.poisson(3, 1024, 1e6, {"kill": 1e6})
    gaps_s = np.diff([fault.at_s for fault in schedule])
    # An exponential's standard deviation is its mean.
    assert gaps_s.std() == pytest.approx(gaps_s.mean(), rel=0.15)


def test_one_generator_draws_different_schedules():
    draw = np.random.default_rng(1)
    first, second = (faults.poisson(draw, 8, 1e5, {"kill": 1e5}) for _ in range(2))
    assert first != second


def test_the_host_of_a_random_target_follows_from_the_faults_number():
    hit = {Fault(number, "stuck", "any", at_s=0.0).host(4) for number in range(40)}
    assert hit == {0, 1, 2, 3}
    fault = Fault(5, "stuck", "any", at_s=0.0)
    assert fault.host(4) == fault.host(4)
    assert Fault(5, "kill", "leader", at_s=0.0).host(4, leader=2) == 2


def test_every_kind_is_injected_from_outside_or_self_inflicted():
    assert {name for name, kind in KINDS.items() if not kind.inside} == set(INJECTIONS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "fault is missing"),
        ("fault = 3", "fault is 3; give a list"),
        ("fault = []", "fault is []"),
        ("kind = 'kill'", "kind is unknown; choose one of fault"),
        ("[[fault]\n", "is not TOML"),
        ("[[fault]]\nkind = 'kil'\nat_s = 1", "fault[0].kind is 'kil'; did you mean 'kill'"),
        ("[[fault]]\nkind = 'kill'", "fault[0].at_s is missing: nothing says when"),
        ("[[fault]]\nkind = 'kill'\nat = 1", "[0].at is unknown"),
        ("[[fault]]\nkind = 'kill'\nat_s = '1'", "[0].at_s is '1'; give a number"),
        ("[[fault]]\nkind = 'kill'\nat_s = nan", "finite number"),
        ("[[fault]]\nkind = 'kill'\nat_s = -1", "[0].at_s is -1; give a number from 0"),
        ("[[fault]]\nkind = 'kill'\nat_s = 1e300", "[0].at_s is 1e+300; give a number from 0"),
        ("[[fault]]\nkind = 'kill'\nstep = 1.5", "[0].step is 1.5; give a whole number"),
        ("[[fault]]\nkind = 'kill'\nphase = 'stop'", "[0].phase is 'stop'; did you mean 'step'"),
        ("[[fault]]\nkind = 'kill'\nat_s = 1\ntarget = 'one'", "[0].target is 'one'"),
        ("[[fault]]\nkind = 'kill'\nat_s = 1\ntarget = -1", "[0].target is -1; give a whole"),
        ("[[fault]]\nkind = 'kill'\nat_s = 1\ntarget = true", "[0].target is True; give a whole"),
        ("[[fault]]\nkind = 'kill'\nat_s = 1\nrole = 'king'", "[0].role is 'king'"),
        ("[[fault]]\nkind = 'nan'\nstep = 1\nrole = 'worker'", "and a nan is no signal"),
        ("[[fault]]\nkind = 'nan'\nstep = 1\ntarget = 'parent'", "[0].target is 'parent', which"),
        (
            "[[fault]]\nkind = 'kill'\nat_s = 1\nrole = 'parent'\ntarget = 0",
            "[0].target is 0, which does not go with a parent",
        ),
        ("[[fault]]\nkind = 'kill'\nat_s = 1\nduration_s = 2", "a kill takes no time"),
        ("[[fault]]\nkind = 'nan'\nat_s = 1", "[0].step alone says when a nan comes"),
        ("[[fault]]\nkind = 'full-disk'\nat_s = 1", "duration_s is missing: a full-disk lasts"),
        (
            "[[fault]]\nkind = 'bit-flip'\nat_s = 1\nbits = 1.5",
            "fault[0].bits is 1.5; give a whole number",
        ),
        ("[[fault]]\nkind = 'kill'\nat_s = 1\nshare = 0.5", "share is no field of a kill"),
        (
            "[[fault]]\nkind = 'kill'\nat_s = 1\n[[fault]]\nkind = 'slow-host'\nat_s = 1\n"
            "duration_s = 2\nshare = 1.0",
            "fault[1].share is 1.0; give a number from 0.01 to 0.99",
        ),
        ("[[fault]]\nkind = 'kill'\nat_s = 1\n" * 10_001, "at most 10000 items"),
    ],
)
def test_a_wrong_schedule_names_table_and_field(tmp_path, text, says):
    path = tmp_path / "faults.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        faults_file.read(path)
    assert says in str(caught.value)


def test_role_or_target_alone_can_name_the_parent(tmp_path):
    path = tmp_path / "faults.toml"
    for field in ("role = 'parent'", "target = 'parent'"):
        path.write_text(f"[[fault]]\nkind = 'kill'\nat_s = 1\n{field}")
        assert faults_file.read(path) == (Fault(0, "kill", "parent", "parent", 1),)


def test_a_target_beyond_the_hosts_is_refused():
    with pytest.raises(InputError, match=r"fault\[0\].target: there is no host 2 among 2"):
        faults_file.check_targets([Fault(0, "kill", 2, at_s=1.0)], 2)
