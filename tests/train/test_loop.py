"""The loop on one device, with a user's own module; checkpoints are real."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import exajax
from exajax.job.events import PHASES
from exajax.train.sinks import history
from exajax.train.sinks.records import JsonLines
from tests.train.checkpoint.regression import Regressor, loss
from tests.train.checkpoint.regression import whole as batches


@pytest.fixture
def step():
    workload = exajax.Workload(
        build=Regressor,
        loss=loss,
        batch={
            "x": jax.ShapeDtypeStruct((16, 4), jnp.float32),
            "y": jax.ShapeDtypeStruct((16, 1), jnp.float32),
        },
        optimizer=optax.adam(1e-2),
    )
    return exajax.train_step(workload, "data=2,fsdp=2,model=2", precision="fp32")


class Recorder(exajax.Hooks):
    """A hook that is its own logger."""

    def __init__(self):
        self.records, self.closed = [], False

    def loggers(self, resumed_from):
        return [self]

    def log(self, step, values):
        self.records.append((step, dict(values)))

    def close(self):
        self.closed = True


def params(fit):
    return jax.device_get(fit.state.params)


def test_a_users_own_module_learns(step):
    recorder = Recorder()
    result = exajax.fit(step, batches, steps=150, hooks=[recorder])
    assert result.step == 150
    assert result.losses[-1] < 0.2 * result.losses[0]
    assert [number for number, _ in recorder.records] == list(range(1, 151))
    assert recorder.closed
    assert recorder.records[-1][1]["samples_per_s"] > 0


def test_a_resumed_run_ends_bit_identical_to_one_that_never_stopped(step, tmp_path):
    straight = exajax.fit(step, batches, steps=30)
    first = exajax.fit(step, batches, steps=12, checkpoints=exajax.Checkpointing(tmp_path, every=5))
    assert first.resumed_from is None
    second = exajax.fit(
        step, batches, steps=30, checkpoints=exajax.Checkpointing(tmp_path, every=5)
    )
    assert second.resumed_from == 12
    assert first.losses + second.losses == straight.losses
    for ours, theirs in zip(
        jax.tree.leaves(params(second)), jax.tree.leaves(params(straight)), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)


def test_a_run_that_is_complete_trains_no_further(step, tmp_path):
    saving = exajax.Checkpointing(tmp_path)
    exajax.fit(step, batches, steps=4, checkpoints=saving)
    evaluation = exajax.Evaluation(lambda: [batches(1000)])
    again = exajax.fit(step, batches, steps=4, checkpoints=saving, hooks=[evaluation])
    assert (again.step, again.losses, again.resumed_from) == (4, [], 4)
    assert again.validation_loss > 0


def test_the_wait_for_data_is_measured(step):
    def slow(number):
        time.sleep(0.2 if number == 3 else 0)
        return batches(number)

    recorder = Recorder()
    result = exajax.fit(step, slow, steps=5, hooks=[recorder])
    assert result.data_wait_s[3] > 0.2
    assert max(result.data_wait_s[:3]) < 0.2
    assert [values["data_wait_s"] for _, values in recorder.records] == result.data_wait_s


def test_each_step_is_given_the_rows_that_are_here(step):
    class Rows:
        def iterate(self, start, rows):
            self.asked = start, rows.tolist()
            while True:
                yield {name: array[rows] for name, array in batches(start).items()}
                start += 1

    rows = Rows()
    result = exajax.fit(step, rows, steps=5)
    assert rows.asked == (0, list(range(16)))
    assert result.losses == exajax.fit(step, batches, steps=5).losses


def test_a_checkpoint_of_other_data_is_refused(step, tmp_path):
    data = {"tokenizer": "bytes 1", "text": ["a"], "seed": 0}

    def saving(data):
        return exajax.Checkpointing(tmp_path, facts={"data": data})

    exajax.fit(step, batches, steps=2, checkpoints=saving(data))
    for change, field, says in (
        ({"tokenizer": "other 2"}, "tokenizer", "its tokenizer is 'bytes 1', here it is 'other"),
        ({"text": ["b"]}, "data", "its text is"),
    ):
        with pytest.raises(exajax.InputError, match=says) as caught:
            exajax.fit(step, batches, steps=4, checkpoints=saving(data | change))
        assert caught.value.field == field
    assert exajax.fit(step, batches, steps=4, checkpoints=saving(data)).step == 4


def test_a_checkpoint_of_another_module_is_refused(step, tmp_path):
    exajax.fit(step, batches, steps=2, checkpoints=exajax.Checkpointing(tmp_path))

    class Wider(Regressor):
        def __init__(self, rngs):
            self.first = nnx.Linear(4, 64, rngs=rngs)
            self.second = nnx.Linear(64, 1, rngs=rngs)

    workload = exajax.Workload(Wider, loss, step.workload.batch, optax.adam(1e-2))
    other = exajax.train_step(workload, "8x1", precision="fp32")
    with pytest.raises(exajax.InputError, match=r"params\.first\.bias has shape \[32\], and this"):
        exajax.fit(other, batches, steps=4, checkpoints=exajax.Checkpointing(tmp_path))


def test_metrics_are_the_history_of_the_state_after_a_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = JsonLines(path, 0)
    for number in range(1, 8):
        first.log(number, {"loss": 1.0 / number})
    first.close()
    with path.open("a") as file:
        file.write('{"step": 8, "lo')  # as a crash leaves it
    JsonLines(path, 5).close()
    assert [record["step"] for record in history.read(path)] == [1, 2, 3, 4, 5]


def test_what_is_due_after_a_step_comes_in_a_fixed_order(step, tmp_path):
    class Phases(exajax.Hooks):
        def __init__(self):
            self.seen = []

        def progress(self, phase, step):
            self.seen.append((phase, step))

    phases = Phases()
    alone = exajax.train_step(step.workload, "1x8", precision="fp32")  # an audit without a replay
    exajax.fit(
        alone,
        batches,
        steps=2,
        checkpoints=exajax.Checkpointing(tmp_path),
        policy=exajax.Policy(audit_every=1),
        hooks=[
            exajax.Every(2, lambda number, state: None),
            phases,
            exajax.Evaluation(lambda: [batches(1000)]),
        ],
    )
    assert phases.seen == [
        ("compile", 0),
        ("restore", 0),
        ("step", 1),
        ("audit", 1),
        ("step", 2),
        ("evaluate", 2),
        ("callback", 2),
        ("audit", 2),
        ("checkpoint", 2),
        ("end", 2),
    ]
    assert {phase for phase, _ in phases.seen} == set(PHASES) - {"start"}  # which is before it


@pytest.mark.parametrize(
    ("field", "make"),
    [
        ("steps", lambda: exajax.Every(0, print)),
        ("every", lambda: exajax.Evaluation(list, every=0)),
        ("every", lambda: exajax.Checkpointing("run", every=-1)),
        ("local_every", lambda: exajax.Checkpointing("run", local_every=0)),
    ],
)
def test_nothing_happens_every_0_steps(field, make):
    with pytest.raises(exajax.InputError, match=f"{field}: it is "):
        make()


def test_the_mfu_is_that_of_the_peak_of_all_devices(step):
    step = dataclasses.replace(step, workload=dataclasses.replace(step.workload, model_flops=8e6))
    recorder = Recorder()
    exajax.fit(step, batches, steps=3, hooks=[recorder, exajax.Mfu(peak_flops=1e9)])
    _, values = recorder.records[-1]
    assert values["mfu"] == pytest.approx(8e6 / values["step_time_s"] / 8e9)
    assert "mfu" not in recorder.records[0][1]
