"""Bad steps of real runs: skipped, gone back from, or the end of it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

import exajax
from exajax.chaos.poison import PoisonedBatches, poisoned
from exajax.errors import RunFailed
from exajax.job.events import EventLog, read_events
from exajax.train.data.batches import WholeBatches
from exajax.train.data.skipping import Skipping
from exajax.train.health.bad_steps import (
    FEWEST,
    ROLL_BACKS,
    SKIPS,
    WINDOW,
    BadSteps,
    Policy,
    is_spike,
)
from exajax.train.sinks import history
from exajax.train.sinks.records import JsonLines, SampleLog
from tests.conftest import command
from tests.train.checkpoint.regression import Regressor, loss, whole
from tests.train.recorded import Recorded

NAN = float("nan")
BACK = Policy(on_nan="roll-back", on_spike="roll-back")


def feed(factors, numbers=lambda step: step):
    """Batches of which some multiply the loss, by number."""
    clean = WholeBatches(lambda step: whole(numbers(step)))
    return PoisonedBatches(clean, lambda number: factors.get(number, 1.0))


@pytest.fixture(scope="module")
def build():
    workload = exajax.Workload(
        build=Regressor,
        loss=loss,
        batch={
            "x": jax.ShapeDtypeStruct((16, 4), jnp.float32),
            "y": jax.ShapeDtypeStruct((16, 1), jnp.float32),
        },
        optimizer=optax.adam(1e-2),
    )
    made = {
        skips: exajax.train_step(
            poisoned(workload), "data=2,fsdp=2,model=2", precision="fp32", skip_bad=skips
        )
        for skips in (False, True)
    }
    return lambda skips=False: made[skips]


def bad_ones(run_dir):
    return [event for event in read_events(run_dir) if event["event"] == "bad-step"]


def assert_same(ours, theirs):
    for a, b in zip(
        jax.tree.leaves(jax.device_get(ours.state)),
        jax.tree.leaves(jax.device_get(theirs.state)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@given(st.lists(st.floats(2.0, 2.1), min_size=FEWEST, max_size=WINDOW), st.floats(0, 0.15))
def test_noise_is_no_spike_and_a_leap_is(before, above):
    assert not is_spike(float(np.median(before)) + above, before)
    assert is_spike(float(np.median(before)) + 2.0, before)
    assert not is_spike(1000.0, before[: FEWEST - 1])


def test_a_spike_is_judged_by_the_noise_around_it():
    noisy = [2.0 + 0.2 * (-1) ** n for n in range(WINDOW)]
    assert not is_spike(3.5, noisy)
    assert is_spike(3.5, [2.0 + 0.01 * (-1) ** n for n in range(WINDOW)])


@given(st.frozensets(st.integers(0, 30)), st.integers(0, 20))
def test_the_batch_of_a_step_follows_from_what_is_skipped(skipped, start):
    batches = Skipping(WholeBatches(lambda number: {"n": np.array([number])}))
    batches.skip(skipped)
    expected = [number for number in range(80) if number not in skipped][start : start + 20]
    assert [batches.number(start + i) for i in range(20)] == expected
    read = batches.iterate(start, np.array([0]))
    assert [int(next(read)["n"][0]) for _ in range(20)] == expected


def place(step, batch):
    return {k: jax.device_put(batch[k], leaf.sharding) for k, leaf in step.batch.items()}


def copied(tree):
    return [np.array(leaf) for leaf in jax.tree.leaves(tree)]


def test_a_skipped_update_leaves_every_bit_and_counts(build):
    step = build(True)
    state = step.init(np.uint32(0))
    for factor in (1.0, NAN, float("inf"), 1.0):
        before = copied((state.params, state.optimizer))
        batch = next(feed({0: factor}).iterate(0, np.arange(16)))
        state, _ = step.update(state, place(step, batch))
        same = [
            np.array_equal(a, b)
            for a, b in zip(before, copied((state.params, state.optimizer)), strict=True)
        ]
        assert not any(same) if factor == 1.0 else all(same)
    assert int(state.step) == 4


class Stack(nnx.Module):
    def __init__(self, rngs):
        drawn = rngs.params.normal((2, 4, 4))
        self.kernel = nnx.Param(drawn, out_sharding=("layers", None, None))


class Deep(nnx.Module):
    def __init__(self, rngs):
        self.stack, self.last = Stack(rngs), nnx.Linear(4, 1, rngs=rngs)


def through(model, stream, batch):
    for layer in model.stack.kernel[...]:
        stream = nnx.tanh(stream @ layer)
    return stream, jnp.zeros(())


@pytest.mark.parametrize("mesh", ["pipe=2,data=2,fsdp=2", "data=2,fsdp=2,model=2"])
def test_poison_is_felt_in_stages_and_in_micro_batches_and_else_changes_no_bit(build, mesh):
    workload = exajax.Workload(
        build=Deep,
        loss=exajax.Stages(
            enter=lambda model, batch: batch["x"],
            body=through,
            exit=lambda model, stream, batch: jnp.mean((model.last(stream) - batch["y"]) ** 2),
        ),
        batch={name: leaf for name, leaf in build().workload.batch.items() if name != "poison"},
        optimizer=optax.adam(1e-2),
    )
    plain, step = (
        exajax.train_step(w, mesh, precision="fp32", micro_batches=2, zero=1)
        for w in (workload, poisoned(workload))
    )
    ones = np.ones(16, np.float32)
    _, expected = plain.update(plain.init(np.uint32(0)), place(plain, whole(0)))
    _, clean = step.update(step.init(np.uint32(0)), place(step, {**whole(0), "poison": ones}))
    assert jax.device_get(clean) == jax.device_get(expected)
    ones[5] = NAN
    _, bad = step.update(step.init(np.uint32(0)), place(step, {**whole(0), "poison": ones}))
    assert np.isnan(bad["loss"])
    assert np.isnan(bad["grad_norm"])


def test_what_is_not_asked_for_is_not_in_the_program(build):
    texts = {
        skips: build(skips).update.lower(build().state, build().batch).as_text()
        for skips in (False, True)
    }
    assert "is_finite" in texts[True]
    assert "is_finite" not in texts[False]


def test_a_run_skips_and_says_so(build, tmp_path):
    log = EventLog(tmp_path, 0, "worker")
    metrics = JsonLines(tmp_path / "metrics.jsonl", 0)
    policy = Policy(on_nan="skip")
    done = exajax.fit(
        build(True),
        feed({4: NAN}),
        steps=8,
        policy=policy,
        hooks=[Recorded(log, [metrics])],
    )
    assert [math.isnan(value) for value in done.losses] == [n == 4 for n in range(8)]
    (event,) = bad_ones(tmp_path)
    assert (event["event"], event["step"], event["kind"], event["action"]) == (
        "bad-step", 5, "nan", "skip"
    )  # fmt: skip
    records = history.read(tmp_path / "metrics.jsonl")
    assert [r["step"] for r in records if "bad_steps" in r] == [5]
    # Where the update before was left out, the loss is that of the same parameters.
    other = exajax.fit(build(True), feed({4: NAN, 5: NAN}), steps=7, policy=policy)
    assert other.losses[:4] == done.losses[:4]
    assert other.losses[6] != done.losses[6]


def test_skips_without_end_end_the_run(build):
    policy = Policy(on_nan="skip")
    with pytest.raises(RunFailed, match=f"step {5 + SKIPS} is bad"):
        exajax.fit(build(True), feed(dict.fromkeys(range(4, 99), NAN)), steps=99, policy=policy)


def test_skipping_needs_a_step_that_can(build):
    with pytest.raises(exajax.InputError, match="skip_bad=True"):
        exajax.fit(build(), feed({}), steps=1, policy=Policy(on_nan="skip"))


@pytest.mark.parametrize(("factor", "bad"), [(NAN, 13), (NAN, 3), (1e4, 21)])
def test_a_run_that_goes_back_ends_as_one_that_never_saw_those_samples(
    build, tmp_path, factor, bad
):
    never = exajax.fit(build(), feed({}, lambda step: step + (step >= bad)), steps=30)
    batches = Skipping(feed({bad: factor}))
    metrics = JsonLines(tmp_path / "metrics.jsonl", 0)
    samples = SampleLog(
        tmp_path / "samples.jsonl", 0, lambda step: np.array([batches.number(step)])
    )
    done = exajax.fit(
        build(), batches, steps=30, policy=BACK, hooks=[Recorded(loggers=[metrics, samples])],
        checkpoints=exajax.Checkpointing(tmp_path / "checkpoints", every=5),
    )  # fmt: skip
    assert done.losses == never.losses
    assert_same(done, never)
    records = [r for r in history.read(tmp_path / "metrics.jsonl") if "loss" in r]
    assert [(r["step"], r["loss"]) for r in records] == list(enumerate(never.losses, 1))
    seen = [record["ids"] for record in history.read(tmp_path / "samples.jsonl")]
    assert seen == [[number] for number in range(31) if number != bad]


def test_what_is_skipped_stays_skipped_after_a_resume(build, tmp_path):
    never = exajax.fit(build(), feed({}, lambda step: step + (step >= 13)), steps=30)
    options = {"policy": BACK, "checkpoints": exajax.Checkpointing(tmp_path, every=5)}
    first = exajax.fit(build(), feed({13: NAN}), steps=18, **options)
    # What was bad then would not be now: the samples are the same all the same.
    second = exajax.fit(build(), feed({}), steps=30, **options)
    assert (first.step, second.resumed_from) == (18, 18)
    assert first.losses + second.losses == never.losses
    assert_same(second, never)


def test_a_resumed_run_calls_the_same_a_spike(build, tmp_path):
    straight = exajax.fit(build(), feed({21: 1e4}), steps=26, policy=BACK)
    options = {"policy": BACK, "checkpoints": exajax.Checkpointing(tmp_path, every=5)}
    exajax.fit(build(), feed({21: 1e4}), steps=20, **options)
    resumed = exajax.fit(build(), feed({21: 1e4}), steps=26, **options)
    assert resumed.losses == straight.losses[20:]


@pytest.mark.parametrize("bad", [9, 10, 11])
def test_a_run_stops_and_saves_nothing_of_a_bad_state(build, tmp_path, bad):
    """The bad step is before a checkpoint, at one, and behind one."""
    with pytest.raises(RunFailed) as caught:
        exajax.fit(
            build(), feed({bad - 1: NAN}), steps=30,
            checkpoints=exajax.Checkpointing(tmp_path, every=5),
        )  # fmt: skip
    newest = max(int(path.name) for path in tmp_path.iterdir())
    assert newest in ((5, 10) if bad > 10 else (5,))  # one is left out while another is written
    assert str(caught.value) == (
        f"step {bad} is bad (nan: loss nan, gradient norm nan); the newest checkpoint is of step "
        f"{newest}"
    )
    again = exajax.fit(build(), feed({}), steps=12, checkpoints=exajax.Checkpointing(tmp_path))
    assert again.resumed_from == newest
    assert np.isfinite(again.losses).all()


def test_a_run_that_goes_back_in_vain_stops(build, tmp_path):
    log = EventLog(tmp_path, 0, "worker")
    with pytest.raises(RunFailed, match=r"step 6 is bad.*newest checkpoint is of step 5"):
        exajax.fit(
            build(), feed(dict.fromkeys(range(7, 99), NAN)), steps=30, policy=BACK,
            checkpoints=exajax.Checkpointing(tmp_path / "checkpoints", every=5),
            hooks=[Recorded(log)],
        )  # fmt: skip
    actions = [event["action"] for event in bad_ones(tmp_path)]
    assert actions == ["roll-back"] * ROLL_BACKS + ["stop"]


def test_where_the_bad_batch_was_not_to_blame_those_before_it_are_skipped_too():
    bad = BadSteps(BACK)
    assert [bad.roll_back(step).batches for step in (8, 8, 7, 20)] == [1, 2, 4, 1]


def test_two_processes_stop_alike_with_one_line(tmp_path, text):
    model = tmp_path / "small.toml"
    model.write_text(
        'family = "llama"\nlayers = 1\nwidth = 16\nheads = 2\nkv_heads = 2\nffn = 32\n'
        "vocab = 256\nseq = 16\n"
    )
    flags = ("--model", model, "--mesh", "2x1", "--hosts", 2, "--data", text)
    result = command(
        "train", *flags, "--learning-rate", 1e6, "--precision", "fp32", "--run-dir",
        tmp_path / "run", "--metrics-port", 0, "--steps", 20, "--save-every", 1,
    )  # fmt: skip
    assert result.returncode == 1, result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("exajax: failed")]
    assert "gradient norm nan" in line
    assert "Traceback" not in result.stderr
    (event,) = bad_ones(tmp_path / "run")
    saved = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert max(saved) < event["step"]
    assert f"step {event['step']} is bad (nan" in line
    assert f"newest checkpoint is of step {max(saved)}" in line
