"""The proof's schedules and sums; the runs themselves take an hour."""

import json

import pytest

from exajax.chaos import faults_file
from exajax.chaos.faults import KINDS
from tests.conftest import REPOSITORY


@pytest.fixture
def chaos(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import chaos

    return chaos


def test_the_schedules_hit_every_kind_and_can_be_read(chaos, tmp_path):
    kinds = set()
    for group in chaos.GROUPS.values():
        for seed in (1, 2):
            planned = chaos.schedule(group, seed, 8.0)
            assert planned == chaos.schedule(group, seed, 8.0)
            faults_file.write(planned, tmp_path / "planned.toml")
            assert faults_file.read(tmp_path / "planned.toml") == planned
            faults_file.check_targets(planned, group.hosts)
            assert all(fault.step is None or fault.step < group.steps - 20 for fault in planned)
            kinds |= {fault.kind for fault in planned}
    assert kinds == set(KINDS)


def test_a_summary_counts_what_is_promised_and_what_is_late(chaos):
    def fault(kind, detected_s, in_time, **facts):
        base = {"process": "worker", "target": 0, "phase": "step", "committing": True}
        times = {"detected_s": detected_s, "recovered_s": 9.0, "in_time": in_time}
        return {"kind": kind} | base | times | facts

    report = {
        "group": "kills-2", "seed": 1, "wall_s": 60.0, "survived": True, "passed": True,
        "identity_promised": True, "end_state_identical": True, "samples_missing": 0,
        "samples_repeated": 0, "replayed_steps": 5, "orphans": [], "half_checkpoints": [],
        "stale_locks": [], "not_injected": [7, 8],
        "faults": [fault("kill", 1.0, True), fault("kill", 3.0, True), fault("stop", None, False)],
    }  # fmt: skip
    skipped = report | {"identity_promised": False, "end_state_identical": False, "faults": []}
    shown = chaos.summary([report, skipped])
    assert (shown["kills"], shown["kills_of_rank_0"], shown["kills_while_committing"]) == (2, 2, 2)
    assert (shown["survived"], shown["identity_promised"], shown["identical"]) == (2, 1, 1)
    assert shown["replayed_steps"] == 10
    assert shown["by_kind"]["kill"]["detected_s"] == {"median": 2.0, "most": 3.0}
    assert shown["by_kind"]["stop"] == {
        "faults": 1, "in_time": 0, "unnoticed": 1, "recovered_s": {"median": 9.0, "most": 9.0},
    }  # fmt: skip
    assert json.loads(json.dumps(shown)) == shown
    assert "2 of 2 runs survived, 1 of 1 identical" in chaos.table(shown)
    assert "not in time: stop; it was over before 2 more" in chaos.line(report)
    assert chaos.held(report)
    assert chaos.held(skipped | {"samples_missing": 3})
    for left in ({"samples_missing": 1}, {"orphans": [7]}, {"survived": False}):
        assert not chaos.held(report | left)
