"""A step under JAX's profiler: it trains as ever, and its time does not count."""

import pytest

import exajax
from exajax.report import profile
from tests.train.test_loop import Recorder, batches, step

__all__ = ["step"]  # the fixture


@pytest.fixture
def fitted(step, tmp_path):
    recorder = Recorder()
    fit = exajax.fit(
        step,
        batches,
        steps=8,
        hooks=[recorder, exajax.Profile(tmp_path / "profile", after=3)],
    )
    return fit, recorder, tmp_path / "profile"


def test_a_traced_step_leaves_its_operations_and_no_time(fitted):
    fit, recorder, folder = fitted
    timed = [number for number, values in recorder.records if "step_time_s" in values]
    assert timed == [2, 3, 6, 7, 8]  # 1 has nothing before it; 4 was traced; 5 began after it
    assert len(fit.step_times_s) == len(timed)
    events = profile.trace("here", profile.newest(folder), {})["traceEvents"]
    names = [event["args"].get("hlo", "") for event in events if event["ph"] == "X"]
    assert any("all-reduce" in name or "all-gather" in name for name in names)


def test_a_traced_run_trains_the_same(fitted, step):
    traced, _, _ = fitted
    plain = exajax.fit(step, batches, steps=8)
    assert traced.losses == plain.losses
    assert len(plain.step_times_s) == 7


def test_a_process_that_does_not_trace_leaves_out_the_same_times(step, tmp_path):
    recorder = Recorder()
    exajax.fit(
        step,
        batches,
        steps=6,
        hooks=[recorder, exajax.Profile(None, after=2)],
    )
    timed = [number for number, values in recorder.records if "step_time_s" in values]
    assert timed == [2, 5, 6]
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_too_short_is_not_traced(step, tmp_path):
    exajax.fit(step, batches, steps=3, hooks=[exajax.Profile(tmp_path / "profile", after=5)])
    assert profile.newest(tmp_path / "profile") is None
